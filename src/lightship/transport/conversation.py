"""A conversation with one agent: requests, answers and events as JSON lines, wherever the agent runs.

One task reads; each request waits for its own answer. Whatever breaks the rules of the protocol ends the conversation
with a ``TransportError``; an error that the agent reports becomes the exception of ``lightship.errors.error_for``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from lightship import failpoints
from lightship.errors import LightshipError, TransportError, error_for
from lightship.transport.base import MAX_LINE, Channel, Transport
from lightship_agent.protocol import VERSION

__all__ = ["PROTOCOL", "Conversation", "EventHandler"]

#: The version of the protocol that ``hello`` offers.
PROTOCOL = VERSION

_DEEPEST = 40

#: Gets each event that the agent sends while a request is under way.
EventHandler = Callable[[Mapping[str, Any]], None]


def _too_deep(message: object) -> bool:
    """Whether values lie deeper in one another than in any answer; what works on them later goes down by calls."""
    level = [message]
    for _ in range(_DEEPEST):
        level = [
            inner
            for value in level
            if isinstance(value, (dict, list))
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return False
    return True


class Conversation:
    """Talks with one agent. Use as ``async with await Conversation.open(transport) as conversation``."""

    def __init__(self, server: str, channel: Channel) -> None:
        self.server = server
        self._channel = channel
        self._next_id = 0
        self._waiting: dict[int, tuple[asyncio.Future[dict[str, Any]], EventHandler | None]] = {}
        self._given_up: set[int] = set()
        self._broken: LightshipError | None = None
        self._closing = False
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def open(cls, transport: Transport) -> Self:
        """Start an agent and the conversation with it."""
        return cls(transport.server, await transport.open())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def broken(self) -> bool:
        """Whether nothing more can be asked."""
        return self._broken is not None

    async def call(
        self,
        op: str,
        args: Mapping[str, Any] | None = None,
        *,
        on_event: EventHandler | None = None,
        timeout: float | None = None,
    ) -> dict[str, Any]:
        """Ask for one operation and wait for its result.

        ``timeout`` is for operations that are to be quick; after it the conversation is over, since an answer that
        comes late would belong to nothing.
        """
        if self._broken is not None:
            raise self._broken
        failpoints.ask(op)
        self._next_id += 1
        number = self._next_id
        line = json.dumps({"id": number, "op": op, "args": dict(args or {})}, separators=(",", ":")).encode()
        if len(line) > MAX_LINE:
            raise TransportError(f"the request {op!r} is longer than {MAX_LINE // 1024**2} MiB", code="protocol")
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = (future, on_event)
        try:
            try:
                await self._channel.send(line)
            except TransportError as failed:
                self._break(self._with_last_words(failed.message))
            async with asyncio.timeout(timeout):
                answer = await future
            failpoints.answered(op)
            return answer
        except TimeoutError:
            error = TransportError(f"{self.server} did not answer {op!r} within {timeout:g} s", code="timeout")
            self._break(error)
            raise error from None
        finally:
            self._waiting.pop(number, None)
            if not future.done() or future.cancelled():
                self._given_up.add(number)
            elif not future.cancelled():
                future.exception()

    async def close(self, patience: float = 30.0) -> int | None:
        """End the conversation. Before the flip the agent undoes what it began, after it the agent finishes."""
        if self._closing:
            return None
        self._closing = True
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        status = await self._channel.close(patience)
        self._break(TransportError(f"the conversation with {self.server} was ended"))
        return status

    async def bye(self, args: Mapping[str, Any] | None = None) -> None:
        """End a conversation in which all is said; the agent has nothing to undo."""
        if not self.broken:
            with contextlib.suppress(LightshipError):
                await self.call("bye", args, timeout=10)
        await self.close(5)

    async def _read(self) -> None:
        try:
            while (line := await self._channel.receive()) is not None:
                self._take(line)
        except LightshipError as error:
            self._break(error)
        except Exception as error:
            # Whatever it was that could not be understood or told on: who waits for an answer must not wait for ever.
            self._break(TransportError(f"{self.server}: {type(error).__name__}: {error}"[:500], code="protocol"))
        else:
            self._break(self._with_last_words("the agent ended in the middle of the conversation"))

    def _take(self, line: bytes) -> None:
        message = self._parse(line)
        number = message.get("id")
        if not isinstance(number, int) or isinstance(number, bool):
            raise self._protocol_error(f"a message without a number: {line[:200]!r}")
        if number in self._given_up:
            return
        if number not in self._waiting:
            raise self._protocol_error(f"an answer to nothing that was asked (number {number})")
        future, on_event = self._waiting[number]
        if future.cancelled():  # given up a moment ago, and not taken note of yet
            return
        if future.done():
            raise self._protocol_error(f"a second answer to number {number}")
        if "event" in message:
            if on_event is not None:
                on_event(message)
        elif isinstance(message.get("result"), dict):
            future.set_result(message["result"])
        elif isinstance(message.get("error"), dict):
            future.set_exception(error_for(message["error"]))
        else:
            raise self._protocol_error(f"a message that is no event, result or error: {line[:200]!r}")

    def _parse(self, line: bytes) -> dict[str, Any]:
        if len(line) > MAX_LINE:
            raise self._protocol_error(f"a line of more than {MAX_LINE // 1024**2} MiB")
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise self._protocol_error(f"a line that is not JSON: {line[:200]!r}") from error
        if not isinstance(message, dict):
            raise self._protocol_error(f"a line that is not an object: {line[:200]!r}")
        if _too_deep(message):
            raise self._protocol_error(f"a line that is nested too deep: {line[:200]!r}")
        return message

    def _protocol_error(self, what: str) -> TransportError:
        return TransportError(f"the agent on {self.server} sent {what}", code="protocol")

    def _with_last_words(self, what: str) -> TransportError:
        words = self._channel.last_words()
        text = f"{self.server}: {what}"
        return TransportError(f"{text}; its last words: {words[:500]}" if words else text, detail={"stderr": words})

    def _break(self, error: LightshipError) -> None:
        if self._broken is None:
            self._broken = error
        for future, _ in self._waiting.values():
            if not future.done():
                future.set_exception(self._broken)
