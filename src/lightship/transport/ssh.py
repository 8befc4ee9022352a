"""The agent on another machine: one SSH connection and one process for each server.

A connection is made by AsyncSSH with what OpenSSH's own configuration says (``ssh_config``), to a host whose key is
known (``host_keys``). The agent is started by ``bootstrap``; a server that has it already costs no transfer and no
round trip more. When the connection ends, the agent's input ends, and it undoes or finishes by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import asyncssh

from lightship.errors import TransportError
from lightship.model import Server
from lightship.transport import bootstrap, host_keys, ssh_errors
from lightship.transport.base import MAX_LINE, Channel
from lightship.transport.ssh_auth import Ask, Keys, Passphrases, ask_on_terminal
from lightship.transport.ssh_config import Hop, Settings, jumps, settings_for
from lightship_agent.protocol import ALIVE
from lightship_agent.records import dataclass

__all__ = ["Network", "SshChannel", "SshTransport"]

_CONNECT_SECONDS = 20.0
_AGENT_SECONDS = 60.0
_ALIVE_SECONDS, _ALIVE_COUNT = 5.0, 4
# sshd turns connections away at random when more than ten at once have not logged in yet (MaxStartups).
_AT_ONCE = 8
_TRIES = 4
_HANG_UP_SECONDS = 2.0
_KEPT_STDERR = 64 * 1024
_MOST_NOISE = 256 * 1024


class _Client(asyncssh.SSHClient):
    """Answers AsyncSSH's questions: which keys to try, and whether the host is the one that is meant. (It asks the
    latter only for keys that are not known.)"""

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self.refused_key: asyncssh.SSHKey | None = None

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:  # noqa: ARG002
        """No: what is asked for here is not known."""
        self.refused_key = key
        return False

    def validate_host_ca_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:  # noqa: ARG002
        """No, for the same reason."""
        return False

    async def public_key_auth_requested(self) -> Any:
        """The keys to try next."""
        return await self.keys.next() or None


@dataclass(frozen=True, slots=True)
class _Way:
    """How a connection is to be made: settings, and the connection it goes through."""

    server: str
    settings: Settings
    tunnel: asyncssh.SSHClientConnection | None


class Network:
    """What the connections of one command share: known hosts, passphrases, jump hosts, and patience with each sshd."""

    def __init__(self, ask: Ask = ask_on_terminal) -> None:
        self._known = host_keys.KnownHosts()
        self._passphrases = Passphrases(ask)
        self._doors: dict[tuple[str, int], asyncio.Semaphore] = {}
        self._behind: Counter[asyncssh.SSHClientConnection] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._jumps: dict[tuple[str, Hop], asyncio.Task[asyncssh.SSHClientConnection]] = {}
        self._settings: dict[Hop, asyncio.Task[Settings]] = {}

    async def connect(self, server: str, hop: Hop) -> asyncssh.SSHClientConnection:
        """A connection to a server, over its jump hosts. Raises ``TransportError``."""
        return await self._connect(server, hop, ())

    async def _connect(self, server: str, hop: Hop, passed: tuple[str, ...]) -> asyncssh.SSHClientConnection:
        if hop.host in passed:
            raise TransportError(f"{server}: ProxyJump leads in a circle: {' -> '.join(passed)}", code="ssh-config")
        settings = await self._settings_for(hop, server)
        tunnel = None
        if settings.proxy_jump and not settings.proxy_command:
            for jump in jumps(settings.proxy_jump):
                tunnel = await self._jump(server, jump, (*passed, hop.host), tunnel)
        if tunnel is None:
            return await self._patiently(_Way(server, settings, None))
        self._behind[tunnel] += 1
        try:
            connection = await self._patiently(_Way(server, settings, tunnel))
        except BaseException:
            self._left(tunnel)
            raise
        task = asyncio.create_task(self._leave(tunnel, connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return connection

    async def _settings_for(self, hop: Hop, server: str) -> Settings:
        """OpenSSH is asked once for each way, however many servers lie behind it, and however often it is gone."""
        task = self._settings.get(hop)
        if task is None or (task.done() and (task.cancelled() or task.exception())):
            task = self._settings[hop] = asyncio.create_task(settings_for(hop, server))
        return await asyncio.shield(task)

    async def _leave(self, tunnel: asyncssh.SSHClientConnection, connection: asyncssh.SSHClientConnection) -> None:
        try:
            await connection.wait_closed()
        finally:
            self._left(tunnel)

    def _left(self, tunnel: asyncssh.SSHClientConnection) -> None:
        """The last one behind a jump host ends the connection with it."""
        self._behind[tunnel] -= 1
        if not self._behind[tunnel]:
            tunnel.abort()

    async def _jump(
        self, server: str, hop: Hop, passed: tuple[str, ...], before: asyncssh.SSHClientConnection | None
    ) -> asyncssh.SSHClientConnection:
        """The connection to a jump host: one for all servers behind it."""
        name = ("" if before is None else str(id(before)), hop)
        task = self._jumps.get(name)
        if task is not None and task.done() and (task.cancelled() or task.exception() or task.result().is_closed()):
            task = None
        if task is None:
            task = asyncio.create_task(self._connect_jump(server, hop, passed, before))
            self._jumps[name] = task
        return await asyncio.shield(task)

    async def _connect_jump(
        self, server: str, hop: Hop, passed: tuple[str, ...], before: asyncssh.SSHClientConnection | None
    ) -> asyncssh.SSHClientConnection:
        named = f"{server}: jump host {hop.host}"
        if before is None:
            return await self._connect(named, hop, passed)
        return await self._patiently(_Way(named, await self._settings_for(hop, named), before))

    async def _patiently(self, way: _Way) -> asyncssh.SSHClientConnection:
        """A few at a time, and again when sshd has shut the door before a word was said."""
        door = self._doors.setdefault((way.settings.host, way.settings.port), asyncio.Semaphore(_AT_ONCE))
        async with door:
            for again in range(_TRIES):
                try:
                    return await self._once(way)
                except TransportError as error:
                    if error.code != "ssh-turned-away" or again == _TRIES - 1:
                        raise
                await asyncio.sleep(0.2 * 2**again)
        raise AssertionError

    async def _once(self, way: _Way) -> asyncssh.SSHClientConnection:
        settings = way.settings
        trusted = self._known.trusted(settings)
        limit = settings.connect_timeout or _CONNECT_SECONDS
        async with contextlib.AsyncExitStack() as stack:
            keys = Keys(settings, self._passphrases, lambda asking: _reschedule(clock, None if asking else limit))
            stack.callback(keys.close)
            client = _Client(keys)
            clock = asyncio.timeout(limit)
            try:
                async with clock:
                    return await asyncssh.connect(**_options(way, trusted, client))
            except TimeoutError as error:
                if not clock.expired():
                    raise ssh_errors.connecting(way.server, settings, error) from None
                raise ssh_errors.timed_out(way.server, settings, limit) from None
            except asyncssh.HostKeyNotVerifiable as error:
                raise host_keys.refused(way.server, settings, trusted, client.refused_key, error.reason) from None
            except asyncssh.PermissionDenied as error:
                raise ssh_errors.not_let_in(way.server, settings, keys, error) from None
            except (OSError, ValueError, asyncssh.Error) as error:
                raise ssh_errors.connecting(way.server, settings, error) from None


async def hang_up(connection: asyncssh.SSHClientConnection) -> None:
    """End a connection at once, and with it the program that it may run through."""
    connection.abort()
    with contextlib.suppress(TimeoutError, OSError, asyncssh.Error):
        async with asyncio.timeout(_HANG_UP_SECONDS):
            await connection.wait_closed()


def _reschedule(clock: asyncio.Timeout, seconds: float | None) -> None:
    """Nobody has to type a passphrase within the time that a connection may take."""
    clock.reschedule(None if seconds is None else asyncio.get_running_loop().time() + seconds)


def _options(way: _Way, trusted: host_keys.Trusted, client: _Client) -> dict[str, Any]:
    settings = way.settings
    options: dict[str, Any] = {
        "host": settings.host,
        "port": settings.port,
        "tunnel": way.tunnel,
        "family": settings.family,
        "config": None,  # all of it is here, as OpenSSH read it
        "client_factory": lambda: client,
        "username": settings.user,
        "known_hosts": (list(trusted.keys), list(trusted.authorities), list(trusted.revoked)),
        "host_key_alias": _principal(settings),
        "server_host_key_algs": trusted.algorithms(),
        "x509_trusted_certs": None,
        "client_keys": None,  # the client hands them out
        "agent_path": None,
        "preferred_auth": ["publickey"],
        "gss_kex": False,
        "gss_auth": False,
        "login_timeout": 0,
        "connect_timeout": None,
        "keepalive_interval": settings.alive_interval or _ALIVE_SECONDS,
        "keepalive_count_max": settings.alive_count or _ALIVE_COUNT,
    }
    if settings.proxy_command:
        # As ssh does it: the user's own line, by a shell that becomes the command.
        options["proxy_command"] = ["/bin/sh", "-c", f"exec {settings.proxy_command}"]
    if settings.bind_address:
        options["local_addr"] = (settings.bind_address, 0)
    return options


def _principal(settings: Settings) -> str | None:
    """The name that a host's certificate has to be for, when it is not the host's."""
    plain = settings.known_as.rpartition("]:")[0][1:] if settings.known_as.startswith("[") else settings.known_as
    return None if plain == settings.host else plain


class SshTransport:
    """Starts the agent on a server by SSH, by sudo where the user is not root.

    With ``wait`` it is one that waits (``lightship_agent.waiting``), and telling it that somebody is here is left to
    whoever holds the channel.
    """

    def __init__(self, server: Server, agent: Path, network: Network, *, wait: bool = False) -> None:
        self._server = server
        self._agent = agent
        self._network = network
        self._wait = wait

    @property
    def server(self) -> str:
        """The server's name, as the configuration has it."""
        return self._server.name

    async def open(self) -> SshChannel:
        """Connect and start the agent."""
        server = self._server
        hop = Hop(server.host, server.user, server.port, server.key_file)
        connection = await self._network.connect(server.name, hop)
        try:
            async with asyncio.timeout(_AGENT_SECONDS):
                return await self._start(connection)
        except TimeoutError:
            await hang_up(connection)
            raise TransportError(
                f"{server.name}: logged in, but the agent did not start within {_AGENT_SECONDS:g} s",
                hint="does the login shell there ask for something? See: ssh SERVER python3 --version",
                code="agent-start",
            ) from None
        except BaseException:
            await hang_up(connection)
            raise

    async def _start(self, connection: asyncssh.SSHClientConnection) -> SshChannel:
        user = str(connection.get_extra_info("username"))
        sudo = user != "root" if self._server.sudo is None else self._server.sudo
        try:
            return await self._try(connection, sudo=sudo)
        except TransportError as error:
            # Unasked, sudo is only tried: a user of another name may be root all the same.
            if self._server.sudo is not None or error.code not in ssh_errors.NO_SUDO:
                raise
            try:
                return await self._try(connection, sudo=False)
            except TransportError as second:
                raise (error if second.code == "not-root" else second) from None

    async def _try(self, connection: asyncssh.SSHClientConnection, *, sudo: bool) -> SshChannel:
        data, digest = _agent(self._agent)
        command = bootstrap.command(digest, len(data), sudo=sudo, wait=self._wait)
        channel = await SshChannel.start(self.server, connection, command)
        await channel.write(bootstrap.SOURCE.encode())
        answer = await self._first(channel, sudo=sudo)
        if answer.get("uid") != 0:
            # What the container's processes own on the server, their sockets and files, only root can use and remove.
            await channel.close(0)
            raise ssh_errors.not_root(self.server, channel.user)
        if answer[bootstrap.MARK] == "need":
            await channel.write(data)
            answer = await self._first(channel, sudo=sudo)
        if not self._wait:
            channel.stay()
        return channel

    async def _first(self, channel: SshChannel, *, sudo: bool) -> dict[str, Any]:
        """The bootstrap's line; what a login shell prints before it is passed over."""
        noise = b""
        try:
            while (line := await channel.receive()) is not None:
                if line.startswith(b'{"') and (answer := _answer(line)) is not None:
                    if answer[bootstrap.MARK] == "error":
                        await channel.ended()
                        raise ssh_errors.bootstrap_failed(self.server, answer)
                    return answer
                noise += line + b"\n"
                if len(noise) > _MOST_NOISE:
                    break
        except TransportError as error:
            if error.code != "connection-lost":
                raise
        status = await channel.ended()
        said = (noise, channel.all_words())
        raise ssh_errors.not_started(self.server, channel.user, status, said, sudo=sudo)


@functools.lru_cache(maxsize=1)
def _agent(path: Path) -> tuple[bytes, str]:
    """The agent's file and its digest, read once for all servers: a file of that name never changes."""
    data = path.read_bytes()
    return data, bootstrap.digest_of(data)


def _answer(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and found.get(bootstrap.MARK) in ("have", "need", "error") else None


class _Session(asyncssh.SSHClientSession[bytes]):
    """Gathers what comes over the connection."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.errors = bytearray()
        self.arrived = asyncio.Event()
        self.writable = asyncio.Event()
        self.writable.set()
        self.ended = asyncio.Event()
        self.lost: Exception | None = None
        self.closed = False
        self.finished = False
        self.paused = False
        self._channel: asyncssh.SSHClientChannel[bytes] | None = None

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        self._channel = chan

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        if datatype == asyncssh.EXTENDED_DATA_STDERR:
            self.errors += data
            del self.errors[:-_KEPT_STDERR]
            return
        self.data += data
        self.arrived.set()
        if len(self.data) > MAX_LINE and self._channel is not None and not self.paused:
            self.paused = True
            self._channel.pause_reading()

    def taken(self) -> None:
        """There is room again."""
        if self.paused and self._channel is not None and len(self.data) <= MAX_LINE:
            self.paused = False
            self._channel.resume_reading()

    def eof_received(self) -> bool:
        self.finished = True
        self.arrived.set()
        return True

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = exc
        self.closed = True
        for event in (self.arrived, self.writable, self.ended):
            event.set()


class SshChannel(Channel):
    """Lines to and from an agent, over a connection that is its alone."""

    def __init__(
        self,
        server: str,
        connection: asyncssh.SSHClientConnection,
        channel: asyncssh.SSHClientChannel[bytes],
        session: _Session,
    ) -> None:
        self._server = server
        self._connection = connection
        self._channel = channel
        self._session = session
        self._alive: asyncio.Task[None] | None = None

    def stay(self) -> None:
        """From now on tell the agent every few seconds that somebody is here, so that it notices when nobody is."""
        self._alive = asyncio.create_task(self._say_alive())

    async def _say_alive(self) -> None:
        with contextlib.suppress(OSError, asyncssh.Error):
            while not self._session.closed:
                self._channel.write(ALIVE + b"\n")
                await asyncio.sleep(_ALIVE_SECONDS)

    @classmethod
    async def start(cls, server: str, connection: asyncssh.SSHClientConnection, command: str) -> SshChannel:
        """Run a command on a connection."""
        try:
            session = _Session()
            channel, _ = await connection.create_session(
                lambda: session, command, encoding=None, request_pty=False, env=None, send_env=None
            )
        except (OSError, asyncssh.Error) as error:
            raise TransportError(
                f"{server}: no command can be run over the connection: {error}", code="ssh-session"
            ) from None
        return cls(server, connection, channel, session)

    @property
    def user(self) -> str:
        """The user who is logged in."""
        return str(self._connection.get_extra_info("username"))

    async def send(self, line: bytes) -> None:
        """Send one line."""
        await self.write(line + b"\n")

    async def write(self, data: bytes) -> None:
        """Send bytes as they are."""
        if not self._session.closed:
            with contextlib.suppress(OSError):
                self._channel.write(data)
                await self._session.writable.wait()
        if self._session.closed:
            raise self._lost("the agent does not listen any more")

    async def receive(self) -> bytes | None:
        """The next line, or ``None`` at the end of what the agent said."""
        session, searched = self._session, 0
        while (end := session.data.find(b"\n", searched)) < 0:
            searched = len(session.data)
            if searched > MAX_LINE:
                raise TransportError(f"the agent sent a line of more than {MAX_LINE // 1024**2} MiB", code="protocol")
            if session.closed and session.lost is not None:
                raise self._lost("the connection was lost")
            if session.finished or session.closed:
                await self.ended(0.5)
                return None
            session.arrived.clear()
            await session.arrived.wait()
        line = bytes(session.data[:end])
        del session.data[: end + 1]
        session.taken()
        if len(line) > MAX_LINE:
            raise TransportError(f"the agent sent a line of more than {MAX_LINE // 1024**2} MiB", code="protocol")
        return line

    def _lost(self, what: str) -> TransportError:
        reason = f": {self._session.lost}" if self._session.lost is not None else ""
        return TransportError(f"{self._server}: {what}{reason}", code="connection-lost")

    async def ended(self, seconds: float = 5.0) -> int | None:
        """Wait for the process to end; its exit status when it has one."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._session.ended.wait()
        return self._channel.get_exit_status()

    async def close(self, patience: float) -> int | None:
        """End the agent's input and wait for it; one that needs longer is left to finish by itself."""
        if self._alive is not None:
            self._alive.cancel()
        with contextlib.suppress(OSError):
            if not self._session.closed:
                self._channel.write_eof()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience
        while not self._session.closed and (left := deadline - loop.time()) > 0:
            self._session.data.clear()  # nobody reads it any more, and a full window would hold the agent up
            self._session.taken()
            await self.ended(min(0.2, left))
        status = self._channel.get_exit_status()
        await hang_up(self._connection)
        return status

    def all_words(self) -> str:
        """All that came on standard error."""
        return bytes(self._session.errors).decode("utf-8", "replace").strip()

    def forget_words(self) -> None:
        """What comes on standard error from now on belongs to another conversation."""
        self._session.errors.clear()

    def last_words(self) -> str:
        """The last line of the agent's standard error."""
        lines = self.all_words().splitlines()
        return lines[-1] if lines else ""
