"""What every operation needs: the service, a way to its servers, and the words that open a conversation."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightship.config.secrets import Hidden, redact
from lightship.errors import LightshipError, UsageError
from lightship.model import Server
from lightship.operations.roles import part_services
from lightship.rollout.events import Emit, Event, LogLine, Note, StepDone, StepFailed, Took
from lightship.rollout.session import Hello
from lightship.transport.base import Transport
from lightship_agent.records import dataclass, field, replace

if TYPE_CHECKING:
    from lightship.config.load import Config
    from lightship.config.schema import Service
    from lightship.transport.base import Channel

__all__ = ["Connect", "Connector", "Context", "Parting", "Redactor", "connect_local", "hello_to", "load_context"]

#: Gives the transport to a server by its name in the configuration.
Connect = Callable[[str], Transport]
#: Says what a server is to keep of a command, by the server's name.
Parting = Callable[[str], Mapping[str, Any] | None]


@dataclass(frozen=True, slots=True)
class Context:
    """A service, its configuration, and the ways in and out."""

    config: Config
    service: Service
    emit: Emit
    connect: Connect
    servers: tuple[Server, ...]
    parts: Mapping[str, Service] = field(default_factory=dict)
    """The service as each server runs it: with the roles that it plays."""
    parting: Callable[[], Parting] = lambda: lambda server: None  # noqa: ARG005
    """At the end of a command's conversations: what each server is to keep of it, if anything."""

    def service_on(self, server: str) -> Service:
        """The service as a server runs it."""
        return self.parts.get(server, self.service)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its servers, in their order."""
        return tuple(one.name for one in self.servers)

    @property
    def who(self) -> str:
        """Whoever runs this command, and where."""
        return _who()

    def server(self, name: str) -> Server:
        """The server of that name."""
        return next(one for one in self.servers if one.name == name)

    def hello(self, *, why: str, lock: bool, wait: float = 0.0, take_over: bool = False) -> Hello:
        """The words that open each conversation of a command."""
        return hello_to(
            self.service.name, self.service.root, why=why, lock=lock, wait=wait, take_over=take_over, who=self.who
        )


def hello_to(
    service: str, root: str, *, why: str, lock: bool, wait: float = 0.0, take_over: bool = False, who: str = ""
) -> Hello:
    """The words that open a conversation about a service."""
    return Hello(
        service=service,
        root=root,
        container=service,
        who=who or _who(),
        why=why,
        lock=lock,
        wait=wait,
        take_over=take_over,
    )


def load_context(
    service: str | None,
    config: Path | None,
    emit: Emit,
    connect: Connect | None = None,
    *,
    stage: str | None = None,
    only: Sequence[str] = (),
) -> Context:
    """Read the configuration, find the service (in a stage) and its servers: all, or ``only`` those of these names.

    Raises ``ConfigurationError`` or ``UsageError``.
    """
    from lightship.config.load import load  # noqa: PLC0415 - Pydantic and YAML only when a file is read

    loaded = load(config)
    found = loaded.service(service, stage)
    servers = _servers(found, loaded.directory)
    parts = part_services(found, servers)
    if only:
        servers = _chosen(servers, only)
    way = connect or Connector(servers, emit, keep=0 if os.environ.get("CI") else found.keep_connected)
    return Context(loaded, found, emit, way, servers, parts)


def _servers(service: Service, directory: Path) -> tuple[Server, ...]:
    if service.inventory is None:
        return service.machines
    from lightship.config.inventory import read  # noqa: PLC0415

    return read(service.inventory, service.hosts, directory)


def _chosen(servers: Sequence[Server], only: Sequence[str]) -> tuple[Server, ...]:
    """Those of these names, in the order of the configuration."""
    import difflib  # noqa: PLC0415

    names = [one.name for one in servers]
    for name in only:
        if name not in names:
            close = difflib.get_close_matches(name[:100], names, n=1)
            raise UsageError(
                f"there is no server {name[:100]!r}",
                hint=f"did you mean {close[0]}?" if close else f"one of: {', '.join(names[:20])}",
                code="server",
            )
    return tuple(one for one in servers if one.name in only)


class Connector:
    """Gives the transport to a server by its name. Connections of one command share what can be shared.

    With ``keep`` they are those of the pool where it has them, and are to stay there for so many seconds.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        emit: Emit = lambda event: None,  # noqa: ARG005
        *,
        keep: float = 0.0,
    ) -> None:
        self._servers = {one.name: one for one in servers}
        self._emit = emit
        self._keep = keep
        self._reached: set[str] = set()
        self._loading: asyncio.Task[Callable[[Server], Transport]] | None = None

    def __call__(self, name: str) -> Transport:
        """The transport to a server."""
        server = self._servers[name]
        return connect_local(server) if server.local else _BySsh(server, self._open)

    def keep(self) -> None:
        """When all is said: ask that the connections stay that this command had. Nobody waits for it."""
        if self._keep and self._reached:
            from lightship.pool import client  # noqa: PLC0415
            from lightship.transport.zipapp import agent_file  # noqa: PLC0415

            with contextlib.suppress(LightshipError):
                client.keep([self._servers[name] for name in sorted(self._reached)], agent_file(), self._keep)

    async def _open(self, server: Server) -> Channel:
        channel = await self._borrowed(server) if self._keep else None
        if channel is None:
            began = time.perf_counter()
            transport = await self._by_ssh(server)
            self._emit(Took(server.name, "ssh", time.perf_counter() - began))
            channel = await transport.open()
        self._reached.add(server.name)
        return channel

    async def _borrowed(self, server: Server) -> Channel | None:
        from lightship.pool import client  # noqa: PLC0415
        from lightship.transport.zipapp import agent_file  # noqa: PLC0415

        return await client.borrow(server, agent_file(), self._keep)

    async def _by_ssh(self, server: Server) -> Transport:
        if self._loading is None:
            # AsyncSSH takes 0.3 s to import: in a thread, so that the git host is asked meanwhile.
            self._loading = asyncio.create_task(asyncio.to_thread(_load_ssh))
        return (await asyncio.shield(self._loading))(server)


def _load_ssh() -> Callable[[Server], Transport]:
    from lightship.transport.ssh import Network, SshTransport  # noqa: PLC0415
    from lightship.transport.zipapp import agent_file  # noqa: PLC0415

    network, agent = Network(), agent_file()
    return lambda server: SshTransport(server, agent, network)


@dataclass(frozen=True, slots=True)
class _BySsh:
    """A server that is reached by SSH, before that is so much as imported."""

    description: Server
    connect: Callable[[Server], Awaitable[Channel]]

    @property
    def server(self) -> str:
        """The server's name."""
        return self.description.name

    async def open(self) -> Channel:
        """Connect and start the agent."""
        return await self.connect(self.description)


def connect_local(server: Server) -> Transport:
    """The transport to this machine."""
    from lightship.transport.local import LocalTransport  # noqa: PLC0415
    from lightship.transport.zipapp import agent_file  # noqa: PLC0415

    return LocalTransport(agent_file(), server=server.name)


def _who() -> str:
    user = os.environ.get("SUDO_USER", "")
    if not user:
        try:
            user = getpass.getuser()
        except (KeyError, OSError):
            user = str(os.geteuid())
    return f"{user}@{socket.gethostname()}"[:200]


class Redactor:
    """Takes a command's secrets out of everything it tells."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._secrets: tuple[Hidden, ...] = ()

    def learn(self, secrets: Iterable[Hidden]) -> None:
        """From now on these are not to be seen."""
        self._secrets = (*self._secrets, *secrets)

    def __call__(self, event: Event) -> None:
        """Pass the event on without them."""
        if self._secrets:
            match event:
                case LogLine(text=text) | Note(text=text):
                    event = replace(event, text=redact(text, self._secrets))
                case StepDone(detail=detail) | StepFailed(detail=detail):
                    event = replace(event, detail=self.clean(detail))
        self._emit(event)

    def clean(self, value: Any) -> Any:
        """A value of JSON without them."""
        if isinstance(value, str):
            return redact(value, self._secrets)
        if isinstance(value, dict):
            return {key: self.clean(one) for key, one in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.clean(one) for one in value]
        return value

    def clean_error(self, error: LightshipError | None) -> LightshipError | None:
        """An error without them."""
        if error is not None and self._secrets:
            error.message = self.clean(error.message)
            error.hint = self.clean(error.hint)
            error.detail = self.clean(error.detail)
            error.args = (error.message,)
        return error
