"""One kept connection: a server, logged in to, with an agent that waits at the end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

from lightship.errors import LightshipError, TransportError
from lightship.pool.wire import MARK, Wanted, answer_of, encode
from lightship.transport.ssh import Network, SshChannel, SshTransport
from lightship_agent import protocol

__all__ = ["Line"]

#: An agent that was not heard of for so long when a conversation is opened is taken for gone.
_OPEN_SECONDS = 2.0
_START_SECONDS = 60.0
#: A conversation of which all is said ends by itself within this; one that does not was left.
_GRACE = 0.5
_PATIENCE = 30.0
_WAITS = f'{{"{protocol.MARK}"'.encode()


class Line:
    """Is lent to one conversation at a time."""

    def __init__(self, wanted: Wanted, channel: SshChannel, until: float) -> None:
        self.wanted = wanted
        self.until = until
        self.since = time.time()
        self.used = 0
        self.gone = False
        self._channel = channel
        self._taker: asyncio.StreamWriter | None = None
        self._opened: asyncio.Future[None] | None = None
        self._ended: asyncio.Future[dict[str, Any]] | None = None
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def connect(cls, wanted: Wanted, network: Network, until: float) -> Line:
        """Log in, and start an agent that waits. Raises ``LightshipError``."""
        from pathlib import Path  # noqa: PLC0415

        channel = await SshTransport(wanted.login, Path(wanted.agent), network, wait=True).open()
        try:
            async with asyncio.timeout(_START_SECONDS):
                first = await channel.receive()
        except TimeoutError:
            first = None
        if first is None or not first.startswith(_WAITS):
            words = channel.last_words()
            await channel.close(0)
            raise TransportError(f"{wanted.server}: the agent does not wait: {words[:300]}", code="agent-start")
        return cls(wanted, channel, until)

    @property
    def user(self) -> str:
        """Who is logged in."""
        return self._channel.user

    @property
    def lent(self) -> bool:
        """Whether a conversation has it."""
        return self._ended is not None

    async def lend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Hold one conversation; False when the agent is not there any more, and then nothing was said to anybody."""
        self._ended = asyncio.get_running_loop().create_future()
        try:
            if not await self._open():
                return False
            self.used += 1
            self._taker = writer
            writer.write(encode({"kept": True}))
            feeding = asyncio.create_task(self._feed(reader))
            how = await self._ended
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
            writer.write(encode({MARK: "ended", **how, "words": self._channel.last_words()[:1000]}))
            return True
        finally:
            self._taker = self._ended = None

    async def alive(self) -> None:
        """Tell the agent that waits that somebody is here."""
        if not self.lent and not self.gone:
            with contextlib.suppress(LightshipError):
                await self._channel.send(protocol.ALIVE)

    async def close(self, patience: float = 1.0) -> None:
        """Hang up. An agent in the middle of a conversation undoes or finishes by itself."""
        self.gone = True
        status = await self._channel.close(patience)
        await asyncio.gather(self._reader, return_exceptions=True)
        self._end({"status": status})

    async def _open(self) -> bool:
        self._opened = asyncio.get_running_loop().create_future()
        self._channel.forget_words()
        try:
            async with asyncio.timeout(_OPEN_SECONDS):
                await self._channel.send(protocol.OPEN)
                await self._opened
        except (TimeoutError, LightshipError):
            await self.close(0)
            return False
        finally:
            self._opened = None
        return not self.gone

    async def _feed(self, reader: asyncio.StreamReader) -> None:
        """Pass on what the command says. When it has said all, or is gone, the agent's input ends as well."""
        with contextlib.suppress(LightshipError, OSError):
            while part := await reader.read(65536):
                await self._channel.write(part)
            await asyncio.sleep(_GRACE)
            self.gone = True
            self._end({"status": await self._channel.close(_PATIENCE)})

    async def _read(self) -> None:
        lost = None
        try:
            while (line := await self._channel.receive()) is not None and self._took(line):
                with contextlib.suppress(OSError):  # the command is gone, and the agent is about to hear of it
                    if self._taker is not None:
                        await self._taker.drain()
        except LightshipError as error:
            lost = error.message
        self.gone = True
        self._end({"status": None, "lost": lost} if lost else {"status": await self._channel.ended(0.5)})
        if self._opened is not None and not self._opened.done():
            self._opened.set_exception(TransportError("the agent is gone"))
        await self._channel.close(0)

    def _took(self, line: bytes) -> bool:
        """Pass a line on to whom it is for; False when it is for nobody."""
        if line.startswith(_WAITS):
            said = answer_of(line)
            if said.get(protocol.MARK) == "opened" and self._opened is not None and not self._opened.done():
                self._opened.set_result(None)
                return True
            self._end({"status": said.get("status")})
            return said.get(protocol.MARK) == "waiting"
        if self._taker is not None:
            self._taker.write(line + b"\n")
        return self.lent

    def _end(self, how: dict[str, Any]) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(how)
