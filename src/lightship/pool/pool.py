"""The pool: which connections there are, who asks for one, and when they end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import time
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightship.errors import LightshipError
from lightship.pool.line import Line
from lightship.pool.wire import MOST, Wanted, answer_of, encode
from lightship.transport.ssh import Network

__all__ = ["LONGEST", "Pool"]

#: Seconds that a connection may be kept for without being used.
LONGEST = 86400.0
_ALIVE_SECONDS = 10.0
_TICK = 1.0


async def _nobody(question: str) -> str | None:  # noqa: ARG001
    """Nobody sits here who could be asked for a passphrase."""
    return None


class Pool:
    """Keeps connections, each under the way that it goes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.stat().st_ino
        self._lines: dict[tuple[object, ...], Line] = {}
        self._coming: dict[tuple[object, ...], asyncio.Task[None]] = {}
        self._problems: dict[str, str] = {}
        self._guests = 0
        self._until = 0.0
        self._ending = False
        self._over = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def end(self) -> None:
        """Nothing is kept any more. What is in use may end first; told twice, it is over at once."""
        if self._ending:
            self._over.set()
        self._ending = True
        self._close_all()

    async def run(self, first: Mapping[str, Any]) -> None:
        """Keep what the first request asks for, and go on until nothing is left to keep."""
        try:
            self._perform(first)
            heard = time.monotonic()
            while not self._over.is_set() and self._is_wanted() and self._is_there():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_TICK):
                        await self._over.wait()
                self._let_go()
                if time.monotonic() - heard >= _ALIVE_SECONDS:
                    heard = time.monotonic()
                    await asyncio.gather(*(line.alive() for line in self._lines.values()))
        finally:
            if self._is_there():
                self._path.unlink()
            for task in (*self._coming.values(), *self._tasks):
                task.cancel()
            await asyncio.gather(*(line.close() for line in self._lines.values()))

    def _is_wanted(self) -> bool:
        """Whether there is something to keep, or to tell why it could not be kept."""
        told = self._problems and time.monotonic() < self._until
        return bool(self._lines or self._coming or self._guests or told)

    def _is_there(self) -> bool:
        """Whether the socket is still the one that commands find."""
        try:
            return self._path.stat().st_ino == self._file
        except OSError:
            return False

    def _let_go(self) -> None:
        """What is lost is forgotten; what was not used for its time is ended."""
        for way, line in list(self._lines.items()):
            if line.gone or (not line.lent and line.until <= time.monotonic()):
                self._drop(way)

    def _drop(self, way: tuple[object, ...]) -> None:
        line = self._lines.pop(way)
        if not line.gone:
            self._start(line.close())

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- requests ---------------------------------------------------------------

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one command."""
        self._guests += 1
        try:
            if not _is_ours(writer.get_extra_info("socket")):
                return
            asked = answer_of(await reader.readline())
            if asked.get("op") == "open":
                await self._open(asked, reader, writer)
            else:
                writer.write(encode(self._perform(asked)))
            await writer.drain()
        except (OSError, ValueError):
            pass  # it has gone, or is none of ours
        finally:
            self._guests -= 1
            writer.close()

    def _perform(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        match asked.get("op"):
            case "keep":
                return self._keep(_wanted(asked.get("connections")), _seconds(asked))
            case "list":
                connections = [self._told(line) for line in self._lines.values()]
                return {"connections": connections, "problems": self._problems, "process": os.getpid()}
            case "close":
                count = len(self._lines)
                self._close_all()
                return {"closed": count, "in_use": len(self._lines)}
        return {"error": "not understood"}

    def _close_all(self) -> None:
        """Hang up; a connection that a command uses goes when that has ended."""
        self._problems.clear()
        for task in self._coming.values():
            task.cancel()
        for way, line in list(self._lines.items()):
            line.until = 0.0
            if not line.lent:
                self._drop(way)

    def _told(self, line: Line) -> dict[str, Any]:
        wanted = line.wanted
        return {
            "server": wanted.server,
            "host": wanted.host,
            "user": line.user,
            "since": line.since,
            "seconds_left": max(0.0, line.until - time.monotonic()),
            "conversations": line.used,
            "in_use": line.lent,
        }

    async def _open(self, asked: Mapping[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (wanted,) = _wanted([asked.get("connection")])
        line = self._lines.get(wanted.way)
        if line is not None and not line.gone and not line.lent and line.wanted.agent == wanted.agent:
            line.until = time.monotonic() + _seconds(asked)
            if await line.lend(reader, writer):
                return
        writer.write(encode({"kept": False}))

    def _keep(self, wanted: Sequence[Wanted], seconds: float) -> dict[str, Any]:
        """Renew what is there, and connect to the others meanwhile."""
        network = Network(_nobody)  # of its own, that reads the configuration as it is now
        until = self._until = time.monotonic() + seconds
        kept = 0
        for one in wanted:
            line = self._lines.get(one.way)
            if line is not None and (line.gone or (line.wanted.agent != one.agent and not line.lent)):
                self._drop(one.way)
                line = None
            if line is not None:
                line.until = until
                kept += 1
            elif not self._ending and one.way not in self._coming and len(self._lines) + len(self._coming) < MOST:
                task = self._start(self._connect(one, network, until))
                self._coming[one.way] = task
        return {"kept": kept, "coming": len(self._coming)}

    async def _connect(self, wanted: Wanted, network: Network, until: float) -> None:
        self._problems.pop(wanted.server, None)
        try:
            self._lines[wanted.way] = await Line.connect(wanted, network, until)
        except (LightshipError, OSError) as error:
            self._problems[wanted.server] = str(error)[:500]
        finally:
            self._coming.pop(wanted.way, None)


def _is_ours(connection: socket.socket) -> bool:
    """Whether the other side is of this user, where the system says so; the directory lets nobody else in anyway."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return True
    _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, option, struct.calcsize("3i")))
    return bool(user == os.geteuid())


def _wanted(found: object) -> list[Wanted]:
    """What is asked for. It comes from this user's own lightship of this version; else it is a ``ValueError``."""
    try:
        return [Wanted(**one) for one in found]  # type: ignore[attr-defined]
    except TypeError as error:
        raise ValueError(str(error)) from None


def _seconds(asked: Mapping[str, Any]) -> float:
    found = asked.get("seconds")
    if not isinstance(found, (int, float)) or not 0 <= found <= LONGEST:
        raise ValueError(found)
    return float(found)
