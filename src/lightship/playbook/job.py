"""What a playbook's rollout is about: found out once, by its first task, and given to all others."""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from lightship.errors import ConfigurationError, UsageError
from lightship.model import Server
from lightship_agent.records import asdict, dataclass, field

if TYPE_CHECKING:
    from lightship.config.load import Config
    from lightship.config.schema import Service
    from lightship.operations.context import Connect, Context
    from lightship.rollout.events import Emit

__all__ = ["Job", "JobKind", "Source"]

JobKind = Literal["code", "container", "full", "rollback"]


@dataclass(frozen=True, slots=True)
class Source:
    """Where a service is described: in a lightship.yml, or by plain variables (``settings``), its keys as there."""

    config: str | None = None
    service: str | None = None
    stage: str | None = None
    settings: Mapping[str, Any] | None = None

    def load(self) -> Config:
        """The configuration, by the same schema wherever it stands."""
        from lightship.config import load  # noqa: PLC0415

        if self.settings is None:
            return load.load(Path(self.config) if self.config else None)
        if self.service is None:
            raise UsageError("plain variables describe a service without a name", hint="-e service=NAME")
        place = Path(self.config or ".").absolute() / load.FILE_NAME
        return load.parse(json.dumps({"services": {self.service: dict(self.settings)}}), place)


@dataclass(frozen=True, slots=True)
class Job:
    """One rollout. ``hosts`` are all that it is for, in their order; ``env`` are the variables, secrets among them."""

    source: Source
    kind: JobKind
    hosts: tuple[str, ...]
    folder: str
    root: str = ""
    ref: str = ""
    commit: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    secret: tuple[str, ...] = ()
    """The names of those of ``env`` whose values nobody is to see."""
    roles: Mapping[str, tuple[str, ...] | None] = field(default_factory=dict)
    to: str | None = None
    retry: bool = False
    force: bool = False
    wait: float = 0.0
    take_over: bool = False
    skip_unreachable: bool = False
    most_failures: float | None = None
    """The percentage of hosts that may fail; ``None``: as configured."""
    silence: float = 600.0
    whole_image: bool = False
    """Whether an image is sent with all its layers, for engines that take no other."""

    @property
    def why(self) -> str:
        """What it is for, as whoever waits for the lock is told."""
        what = self.to if self.kind == "rollback" else self.ref
        return f"ansible {'rollback' if self.kind == 'rollback' else 'deploy'} {what or ''}".strip()

    def sealed(self) -> str:
        """The whole of it as one text, which nothing makes a template of. It has the secrets in it."""
        return base64.b64encode(json.dumps(asdict(self)).encode()).decode()

    @classmethod
    def unsealed(cls, text: str) -> Self:
        """What ``sealed`` made. Raises ``UsageError`` for anything else."""
        try:
            found = json.loads(base64.b64decode(str(text), validate=True))
            roles = {name: None if one is None else tuple(one) for name, one in found["roles"].items()}
            lists = {"hosts": tuple(found["hosts"]), "secret": tuple(found["secret"]), "roles": roles}
            return cls(**{**found, **lists, "source": Source(**found["source"])})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UsageError(
                f"rollout is not what lightship.deploy.resolve registered ({type(error).__name__})",
                hint='give it as it is: rollout: "{{ lightship_rollout.rollout }}"',
            ) from None

    def context(self, emit: Emit, connect: Connect) -> Context:
        """What the operations need. The servers are the hosts of the play."""
        from lightship.operations.context import Context  # noqa: PLC0415
        from lightship.operations.roles import part_services  # noqa: PLC0415

        loaded = self.source.load()
        service = with_secrets(loaded.service(self.source.service, self.source.stage), self.secret)
        servers = tuple(Server(name, name, roles=self.roles.get(name)) for name in self.hosts)
        return Context(loaded, service, emit, connect, servers, part_services(service, servers))


def with_secrets(service: Service, names: Collection[str]) -> Service:
    """The service, with those secrets among its own whose values a playbook gives."""
    from lightship.config.schema import SecretSource  # noqa: PLC0415

    more = {name: SecretSource(env=name) for name in names if name not in service.secrets}
    if not more:
        return service
    env = {name: value for name, value in service.env.items() if name not in more}
    return service.model_copy(update={"secrets": {**service.secrets, **more}, "env": env})


def private_folder(path: Path) -> Path:
    """A new directory of this user alone."""
    try:
        path.mkdir(mode=0o700, parents=True)
        path.chmod(0o700)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be made: {error}", hint="see Ansible's setting local_tmp") from error
    return path
