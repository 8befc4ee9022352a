"""The pool as a command sees it: borrow a connection, ask that some be kept, see them, close them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightship.errors import LightshipError, TransportError
from lightship.model import Server
from lightship.pool.wire import ENDED, Wanted, answer_of, encode, place
from lightship.transport.base import MAX_LINE, Channel
from lightship_agent.protocol import ALIVE
from lightship_agent.records import asdict

__all__ = ["KeptChannel", "ask", "borrow", "keep"]

_ALIVE_SECONDS = 5.0
_ANSWER_SECONDS = 5.0
_CLOSE_SECONDS = 1.0


def ask(words: Mapping[str, Any]) -> dict[str, Any] | None:
    """Ask the pool something; ``None`` when there is none. Raises ``LightshipError`` where none can be."""
    path = str(place())
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_ANSWER_SECONDS)
            connection.connect(path)
            connection.sendall(encode(words))
            with connection.makefile("rb") as answers:
                return answer_of(answers.readline(MAX_LINE))
    except OSError:
        return None


def keep(servers: Sequence[Server], agent: Path, seconds: float) -> None:
    """Ask that the connections to servers be kept, of a pool that is started when there is none. Waits for nothing.

    Raises ``LightshipError`` where none can be.
    """
    words = {
        "op": "keep",
        "seconds": seconds,
        "connections": [asdict(Wanted.of(one, agent)) for one in servers],
    }
    if ask(words) is not None:
        return
    with contextlib.suppress(OSError), place().with_suffix(".log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "lightship.pool"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=log,
            cwd="/",
            start_new_session=True,
        )
        if process.stdin is not None:
            process.stdin.write(encode(words))
            process.stdin.close()
        process.returncode = 0  # not waited for on purpose


async def borrow(server: Server, agent: Path, seconds: float) -> KeptChannel | None:
    """A conversation over a kept connection, which is kept for ``seconds`` more; ``None`` when there is none."""
    try:
        reader, writer = await asyncio.open_unix_connection(str(place()), limit=MAX_LINE + 1024)
    except (OSError, LightshipError):
        return None
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            writer.write(encode({"op": "open", "connection": asdict(Wanted.of(server, agent)), "seconds": seconds}))
            answer = answer_of(await reader.readline())
    except (OSError, ValueError, TimeoutError):
        answer = {}
    if answer.get("kept") is True:
        return KeptChannel(server.name, reader, writer)
    await _close(writer)
    return None


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(_CLOSE_SECONDS):
            await writer.wait_closed()


class KeptChannel(Channel):
    """Lines to and from an agent that waits at the end of a kept connection."""

    def __init__(self, server: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._server = server
        self._reader = reader
        self._writer = writer
        self._ended: dict[str, Any] | None = None
        self._alive = asyncio.create_task(self._say_alive())

    async def _say_alive(self) -> None:
        """Tell the agent every few seconds that somebody is here, so that it notices when nobody is."""
        while not self._writer.is_closing():
            self._writer.write(ALIVE + b"\n")
            await asyncio.sleep(_ALIVE_SECONDS)

    async def send(self, line: bytes) -> None:
        """Send one line."""
        try:
            if self._ended is None:
                self._writer.write(line + b"\n")
                await self._writer.drain()
                return
        except OSError:
            self._ended = {"lost": "the pool of connections is gone"}
        raise self._lost("the agent does not listen any more")

    async def receive(self) -> bytes | None:
        """The next line, or ``None`` at the end of what the agent said."""
        if self._ended is not None:
            return None
        try:
            line = await self._reader.readline()
        except ValueError as error:
            raise TransportError(
                f"the agent sent a line of more than {MAX_LINE // 1024**2} MiB", code="protocol"
            ) from error
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            self._ended = {"lost": "the pool of connections is gone"}
        elif line.startswith(ENDED):
            self._ended = answer_of(line)
        else:
            return line[:-1]
        if self._ended.get("lost"):
            raise self._lost("the connection was lost")
        return None

    def _lost(self, what: str) -> TransportError:
        reason = (self._ended or {}).get("lost")
        return TransportError(f"{self._server}: {what}{f': {reason}' if reason else ''}", code="connection-lost")

    async def close(self, patience: float) -> int | None:
        """End the agent's input and wait for it; one that needs longer is left to finish by itself."""
        self._alive.cancel()
        with contextlib.suppress(OSError, RuntimeError, TimeoutError, TransportError):
            async with asyncio.timeout(patience):
                if self._writer.can_write_eof():
                    self._writer.write_eof()
                while await self.receive() is not None:
                    pass
        await _close(self._writer)
        status = (self._ended or {}).get("status")
        return status if isinstance(status, int) else None

    def last_words(self) -> str:
        """The last line of the agent's standard error."""
        return str((self._ended or {}).get("words") or "")
