"""Instances: the numbered containers of a service, made ready beside each other and put in each other's place."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import lightship_agent
from lightship_agent import TYPE_CHECKING
from lightship_agent.container import Container, ContainerSettings, Engine, create_command
from lightship_agent.errors import AgentFailure, Refused
from lightship_agent.failpoints import fail_point, register
from lightship_agent.paths import ServicePaths
from lightship_agent.records import asdict, dataclass, replace
from lightship_agent.roles import render_conf, role_orders
from lightship_agent.system import atomic_write, make_directory, read_trusted

if TYPE_CHECKING:
    from typing import Any

__all__ = ["Instances", "env_file", "env_files", "install_runtime", "make_directories", "render_env", "settings_from"]

register(
    runtime__install="a file of the runtime is about to be put in place",
    env__write="an instance's variables are about to be written",
    env__written="an instance's variables have been written",
    roles__conf="what Supervisor is to run for an instance's roles is about to be written",
    instance__create="a container is about to be created",
    instance__created="a container has been created",
    instance__close="the gate of the old container is about to be closed",
    instance__open="the gate of a container is about to be opened beside the one that serves",
    instance__policy="whether the engine starts a container by itself is about to be changed",
    instance__stop="the old container is about to be stopped",
    instance__stopped="the old container has been stopped",
    instance__start="the new container is about to be started",
    instance__started="the new container has been started",
    instance__remove="a container is about to be removed",
    instance__removed="a container has been removed",
)

RUNTIME_FILES = ("entry.py", "launcher.py", "keeper.py", "roles.py", "command.py", "assets.py")
_MAX_ENV = 1024 * 1024


def make_directories(paths: ServicePaths) -> None:
    """The service's directories, with the owners and modes that they must have."""
    paths.root.mkdir(parents=True, exist_ok=True)
    make_directory(paths.home, 0o755)
    make_directory(paths.state, 0o700)
    for path in (paths.code, paths.boot, paths.releases, paths.instances, paths.runs, paths.shared):
        make_directory(path, 0o755)


def install_runtime(paths: ServicePaths) -> None:
    """Put the runtime's files where the container reads them; those that are the same already are left alone."""
    for name in RUNTIME_FILES:
        wanted = _runtime_file(name)
        if read_trusted(paths.boot / name, _MAX_ENV) != wanted:
            fail_point("runtime.install")
            atomic_write(paths.boot / name, wanted, 0o644)
    if not paths.reload.exists():
        # There before uWSGI begins to watch it: `touch` and `chain` images stat it from their start on.
        atomic_write(paths.reload, b"", 0o644)


def _runtime_file(name: str) -> bytes:
    """A file of the runtime, from the zip application or from the source tree."""
    loader = lightship_agent.__loader__
    folder = os.path.dirname(str(lightship_agent.__file__))
    return loader.get_data(os.path.join(folder, "boot", name))  # type: ignore[union-attr,no-any-return]


def env_file(paths: ServicePaths, instance: int) -> Path:
    """The variables that an instance was created with."""
    return paths.state / f"env.{instance}"


def env_files(paths: ServicePaths) -> Iterator[bytes]:
    """The variables that the service and each of its containers were given."""
    for path in (paths.env, *sorted(paths.state.glob("env.*"))):
        data = read_trusted(path, _MAX_ENV)
        if data is not None:
            yield data


def render_env(env: Mapping[str, str]) -> bytes:
    """The content of an ``--env-file``."""
    return "".join(f"{name}={value}\n" for name, value in sorted(env.items())).encode("utf-8")


def settings_from(found: Mapping[str, Any]) -> ContainerSettings | None:
    """The settings that a release remembers, or None when it remembers none."""
    try:
        return ContainerSettings(**found)
    except TypeError:
        return None


@dataclass(frozen=True)
class Instances:
    """The containers of one service on this server. ``guard`` refuses when the lock was taken over."""

    paths: ServicePaths
    engine: Engine
    prefix: str
    guard: Callable[[], None]

    def name(self, number: int) -> str:
        """The container's name."""
        return f"{self.prefix}-{number}"

    def check_name(self, number: int) -> str:
        """The name of the container that tries an image before the old one is touched."""
        return f"{self.prefix}-{number}-check"

    def find(self, number: int) -> Container | None:
        """The container of that number, or None."""
        return self.engine.container(self.name(number)) if number else None

    def highest(self) -> int:
        """The highest number that was ever used here, so that no number is used twice."""
        numbers = [int(path.name) for path in self.paths.runs.iterdir() if re.fullmatch(r"[0-9]{1,9}", path.name)]
        return max(numbers, default=0)

    def write_env(self, number: int, env: Mapping[str, str]) -> None:
        """Write an instance's variables, for root alone."""
        self.guard()
        fail_point("env.write")
        atomic_write(env_file(self.paths, number), render_env(env), 0o600)
        fail_point("env.written")

    def create(self, number: int, settings: ContainerSettings, *, check: str = "") -> str:
        """Create (not start) the container of an instance; what a killed rollout left under its name goes first."""
        name = self.check_name(number) if check else self.name(number)
        self.remove(name)
        make_directory(self.paths.run(number), 0o755)
        fail_point("instance.create")
        settings = replace(settings, image=self.reference(settings))
        command = create_command(self.paths, name, number, settings, env_file(self.paths, number), check=check)
        self.engine.command(command, f"create the container {name}")
        fail_point("instance.created")
        self._write_conf(number, name, settings)
        return name

    def _write_conf(self, number: int, name: str, settings: ContainerSettings) -> None:
        """Write what Supervisor includes, for the image's own interpreter; there before the container is started."""
        python = require(self.engine.container(name), name).python
        fail_point("roles.conf")
        text = render_conf(number, role_orders(settings.roles), python)
        atomic_write(self.paths.instance_conf(number), text.encode(), 0o644)

    def reference(self, settings: ContainerSettings) -> str:
        """What to call an image: by its name, or by its id when the name is gone or stands for another one by now.

        Raises ``Refused`` (``image-missing``) when it is not here: the engine would ask a registry for it.
        """
        wanted, named = settings.image_id, self.engine.image_id(settings.image)
        if named is not None and wanted in ("", named):
            return settings.image
        if wanted and self.engine.image_id(wanted) is not None:
            return wanted
        raise Refused(
            "image-missing",
            f"the image {settings.image} is not on this server any more",
            hint="`lightship deploy --kind container` makes it ready again",
        )

    def close_gate(self, number: int) -> None:
        """Let the workers of an instance take no new request; those they have they finish."""
        self.guard()
        fail_point("instance.close")
        atomic_write(self.paths.closed(number), b"", 0o644)

    def open_gate(self, number: int) -> None:
        """Let the workers of an instance serve again what ``current`` names."""
        self.guard()
        self.paths.closed(number).unlink(missing_ok=True)

    def open_beside(self, number: int, release: str) -> None:
        """Let the workers of an instance serve that release while another instance serves another one.

        With a proxy before them it is the proxy that says whose requests they get.
        """
        if read_trusted(self.paths.opened(number), 1000) == release.encode("ascii"):
            return
        self.guard()
        fail_point("instance.open")
        atomic_write(self.paths.opened(number), release.encode("ascii"), 0o644)

    def no_longer_beside(self, number: int) -> None:
        """Have the workers of an instance serve what ``current`` names, and nothing else, again."""
        self.guard()
        self.paths.opened(number).unlink(missing_ok=True)

    def keep_up(self, container: Container) -> None:
        """Have the engine start this container whenever it does not run, also after its own restart.

        Not ``unless-stopped``: an engine that was killed, and is not set to live-restore, stops what it finds running
        when it starts, takes that for somebody's wish, and leaves it stopped (moby: ``killWithSignal`` sets
        ``HasBeenManuallyStopped`` on the way of ``restore``; seen with 20.10.24).
        """
        self._restart(container, "always")

    def let_down(self, container: Container) -> None:
        """Have the engine leave this container as it is; it is about to be stopped, and another has its ports."""
        self._restart(container, "no")

    def _restart(self, container: Container, policy: str) -> None:
        if container.restart_policy == policy:
            return
        self.guard()
        fail_point("instance.policy")
        self.engine.set_restart(container.name, policy)

    def stop(self, name: str, patience: float) -> None:
        """Stop a container; its requests in flight get ``patience`` seconds."""
        self.guard()
        fail_point("instance.stop")
        self.engine.stop(name, patience)
        fail_point("instance.stopped")

    def start(self, name: str) -> None:
        """Start a container."""
        self.guard()
        fail_point("instance.start")
        self.engine.start(name)
        fail_point("instance.started")

    def remove(self, name: str) -> None:
        """Remove a container; one that is not there is fine."""
        self.guard()
        fail_point("instance.remove")
        self.engine.remove(name)
        fail_point("instance.removed")

    def forget(self, number: int) -> None:
        """Remove what an instance was told and given."""
        self.guard()
        self.paths.instance_file(number).unlink(missing_ok=True)
        self.paths.instance_conf(number).unlink(missing_ok=True)
        env_file(self.paths, number).unlink(missing_ok=True)
        self.paths.closed(number).unlink(missing_ok=True)
        self.paths.opened(number).unlink(missing_ok=True)

    def others(self, keep: int) -> list[Container]:
        """The service's containers but for one instance."""
        return [found for found in self.engine.containers_of(self.paths) if found.name != self.name(keep)]


def describe(settings: ContainerSettings) -> dict[str, Any]:
    """The settings as a release remembers them."""
    return json.loads(json.dumps(asdict(settings)))  # type: ignore[no-any-return]


def require(container: Container | None, name: str) -> Container:
    """The container, or an ``AgentFailure`` that says it is gone."""
    if container is None:
        raise AgentFailure(
            "container-missing", f"there is no container {name}", hint="`lightship deploy --kind full` makes one"
        )
    return container
