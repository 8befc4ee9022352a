"""Commands on a server before there can be an agent: constant ones, and a small program that is sent over.

A ``Shell`` is one connection. What it runs is an argument list of constants of this project; what differs from call to
call goes over the command's input.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lightship.errors import RefusedError, TransportError
from lightship.model import Server
from lightship_agent.records import dataclass

if TYPE_CHECKING:
    import asyncssh

    from lightship.transport.ssh import Network

__all__ = ["LocalShell", "Ran", "Shell", "Shells", "program", "run_program"]

_LOADER = (
    'import os,sys;s=b"";exec("while len(s)<{0}:s+=os.read(0,{0}-len(s)) or sys.exit(4)");'
    'exec(compile(s,"lightship-setup","exec"))'
)
_MARK = "lightship-setup"
_MOST_OUTPUT = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Ran:
    """A command that has ended."""

    status: int | None
    out: bytes
    errors: str

    @property
    def last(self) -> str:
        """The last line of its output."""
        lines = self.out.decode("utf-8", "replace").split()
        return lines[-1] if lines else ""


class Shell(Protocol):
    """A way to run commands on one server."""

    @property
    def server(self) -> Server:
        """The server."""

    @property
    def user(self) -> str:
        """Who is logged in there."""

    @property
    def python(self) -> str:
        """The Python that the agent would run by."""

    async def run(self, argv: list[str], data: bytes = b"", *, seconds: float = 60) -> Ran:
        """Run a command. Raises ``TransportError`` when it cannot be run or takes too long."""

    async def close(self) -> None:
        """End the connection."""


class LocalShell:
    """This machine."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.user = "root" if os.geteuid() == 0 else str(os.geteuid())
        self.python = sys.executable

    async def run(self, argv: list[str], data: bytes = b"", *, seconds: float = 60) -> Ran:
        """Run a command."""
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                cwd="/",
                start_new_session=True,
            )
        except FileNotFoundError:
            return Ran(127, b"", f"{argv[0]}: not found")
        try:
            async with asyncio.timeout(seconds):
                out, errors = await process.communicate(data)
        except TimeoutError:
            raise _too_long(self.server.name, seconds) from None
        return Ran(process.returncode, out, errors.decode("utf-8", "replace").strip())

    async def close(self) -> None:
        """Nothing is to be ended."""


class SshShell:
    """One SSH connection."""

    def __init__(self, server: Server, connection: asyncssh.SSHClientConnection) -> None:
        self.server = server
        self.user = str(connection.get_extra_info("username"))
        self.python = "python3"
        self._connection = connection

    async def run(self, argv: list[str], data: bytes = b"", *, seconds: float = 60) -> Ran:
        """Run a command. The login shell gets it quoted; no part of it comes from outside."""
        import asyncssh  # noqa: PLC0415

        try:
            async with asyncio.timeout(seconds):
                done = await self._connection.run(f"exec {shlex.join(argv)}", input=data, encoding=None, check=False)
        except TimeoutError:
            raise _too_long(self.server.name, seconds) from None
        except (OSError, asyncssh.Error) as error:
            raise TransportError(
                f"{self.server.name}: the connection was lost: {error}", code="connection-lost"
            ) from None
        out, errors = done.stdout or b"", done.stderr or b""
        out = out if isinstance(out, bytes) else str(out).encode()
        errors = errors if isinstance(errors, bytes) else str(errors).encode()
        return Ran(done.exit_status, out[-_MOST_OUTPUT:], errors[-_MOST_OUTPUT:].decode("utf-8", "replace").strip())

    async def close(self) -> None:
        """End the connection."""
        from lightship.transport.ssh import hang_up  # noqa: PLC0415

        await hang_up(self._connection)


def _too_long(server: str, seconds: float) -> TransportError:
    return TransportError(
        f"{server}: a command did not end within {seconds:g} s", hint="look there what it waits for", code="too-long"
    )


class Shells:
    """Connects to servers. Known hosts are read once, so after a key was recorded another one is needed."""

    def __init__(self) -> None:
        self._network: Network | None = None

    async def open(self, server: Server) -> Shell:
        """A connection to a server."""
        if server.local:
            return LocalShell(server)
        ssh = await asyncio.to_thread(importlib.import_module, "lightship.transport.ssh")
        from lightship.transport.ssh_config import Hop  # noqa: PLC0415

        if self._network is None:
            self._network = ssh.Network()
        hop = Hop(server.host, server.user, server.port, server.key_file)
        return SshShell(server, await self._network.connect(server.name, hop))


def program() -> bytes:
    """The program's source."""
    spec = importlib.util.find_spec("lightship_agent")
    if spec is None or not spec.submodule_search_locations:
        raise RefusedError("the package lightship_agent is not installed")
    return (Path(next(iter(spec.submodule_search_locations))) / "setup.py").read_bytes()


async def run_program(
    shell: Shell, prefix: list[str], request: dict[str, Any], *, seconds: float = 120
) -> dict[str, Any]:
    """Send the program over and have it do one request; its answer. Raises ``RefusedError`` when it says no."""
    source = program()
    argv = [*prefix, shell.python, "-I", "-S", "-c", _LOADER.format(len(source))]
    done = await shell.run(argv, source + json.dumps(request).encode() + b"\n", seconds=seconds)
    name = shell.server.name
    for line in reversed(done.out.splitlines()):
        answer = _answer(line)
        if answer is None:
            continue
        if answer[_MARK] == "error":
            raise RefusedError(
                f"{name}: {str(answer.get('text'))[:500]}",
                hint="put right what its output says, then run lightship setup again: what is done is not done twice",
                code="setup-step",
                detail={"output": str(answer.get("output"))},
            )
        return answer
    raise TransportError(
        f"{name}: the program of setup did not answer (exit status {done.status}): {done.errors[-300:]}",
        hint="does a plain command run there? See: ssh SERVER python3 --version",
        code="setup-program",
        detail={"stderr": done.errors[-2000:]},
    )


def _answer(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and found.get(_MARK) in ("done", "error") else None
