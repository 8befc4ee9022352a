"""One server in a rollout: the conversation with its agent, and what has happened there so far."""

from __future__ import annotations

import asyncio
import base64
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

from lightship.errors import TransportError
from lightship.model import Facts, RoleProcess, StepTiming, Worker
from lightship.rollout.events import Emit, LogLine, Note, StepDone, StepFailed, StepStarted, Took
from lightship.transport.base import Transport
from lightship.transport.conversation import PROTOCOL, Conversation

__all__ = ["Hello", "Session"]

_WARNING_LINES = 20
_LARGEST_PART = 8 * 1024 * 1024
#: A step that took longer says nothing.
_LONGEST = 1e9


class Hello:
    """The words that open each conversation of a command."""

    def __init__(
        self,
        *,
        service: str,
        root: str,
        container: str,
        who: str,
        why: str,
        lock: bool,
        wait: float = 0.0,
        take_over: bool = False,
    ) -> None:
        self._words: dict[str, Any] = {
            "protocol": PROTOCOL,
            "service": service,
            "root": root,
            "container": container,
            "who": who,
            "why": why,
            "lock": lock,
            "wait": wait,
            "take_over": take_over,
        }

    def words(self, **changes: Any) -> dict[str, Any]:
        """The arguments of ``hello``, with some of them changed."""
        return {**self._words, **changes}


def _waiting(server: str, holder: Mapping[str, Any]) -> Note:
    """Who holds the lock that is waited for, and what for."""
    words = [f"waiting for {str(holder.get('who') or 'somebody')[:200]}"]
    if holder.get("why"):
        words.append(f"({str(holder['why'])[:200]})")
    if holder.get("left_alone"):
        words.append("to end by itself: its connection is gone")
    return Note(server, " ".join(words))


def _unpacked(server: str, data: object) -> bytes:
    """The bytes of a part, and never more than one has, whatever it is said to unfold to."""
    try:
        stream = zlib.decompressobj()
        found = stream.decompress(base64.b64decode(str(data), validate=True), _LARGEST_PART)
    except (ValueError, zlib.error):
        found = b""
    if not found or not stream.eof:
        raise TransportError(f"{server} sent something else than a part of an image", code="protocol")
    return found


class Session:
    """The conversation with one server's agent, kept with its facts and the time each step took."""

    def __init__(self, transport: Transport, hello: Hello, emit: Emit) -> None:
        self.server = transport.server
        self.facts = Facts(hostname="")
        self.recovered: Mapping[str, Any] | None = None
        self.timings: list[StepTiming] = []
        self.workers: tuple[Worker, ...] = ()
        self.processes: tuple[RoleProcess, ...] = ()
        self.warnings: list[str] = []
        self._transport = transport
        self._hello = hello
        self._emit = emit
        self._conversation: Conversation | None = None
        self._waits = False
        self._locked_out: float | None = None

    async def open(self, **changes: Any) -> Self:
        """Start the agent and say hello; afterwards ``facts`` is what was found."""
        clock = asyncio.get_running_loop().time
        began = clock()
        self._conversation = await Conversation.open(self._transport)
        try:
            self._emit(Took(self.server, "connection", clock() - began))
            words = self._hello.words(**changes)
            self._waits, self._locked_out, began = bool(words["wait"]), None, clock()
            answer = await self.call("hello", words, timeout=60.0 + float(words["wait"]))
            if self._locked_out is not None:
                self._emit(Took(self.server, "lock", clock() - self._locked_out))
            self._emit(Took(self.server, "hello", clock() - began))
            self.facts = Facts.from_json(answer.get("facts"))
            recovered = answer.get("recovered")
            self.recovered = recovered if isinstance(recovered, dict) else None
        except BaseException:
            await self.close()
            raise
        return self

    async def reopen(self, wait: float = 120.0) -> Self:
        """After a lost connection: ask again what the server runs. The old agent may need a while to finish."""
        await self.close()
        return await self.open(lock=True, wait=wait, take_over=False)

    async def call(
        self,
        op: str,
        args: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
        on_data: Callable[[bytes], None] | None = None,
    ) -> Any:
        """Ask the agent; its events become the rollout's. ``on_data`` gets the parts of what it gives away."""
        if self._conversation is None:
            raise TransportError(f"there is no conversation with {self.server}")

        def on_event(message: Mapping[str, Any]) -> None:
            if on_data is not None and message.get("event") == "data":
                on_data(_unpacked(self.server, message.get("data")))
            else:
                self._on_event(message)

        return await self._conversation.call(op, args, on_event=on_event, timeout=timeout)

    def told(self, step: str, seconds: float) -> None:
        """A step that this side did."""
        self.timings.append(StepTiming(step, seconds))
        self._emit(StepDone(self.server, step, seconds))

    @property
    def broken(self) -> bool:
        """Whether the connection is lost."""
        return self._conversation is None or self._conversation.broken

    async def timed(self, step: str, op: str, args: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Ask for an operation that is a step by itself when the agent names no steps within it."""
        before = len(self.timings)
        clock = asyncio.get_running_loop().time
        started = clock()
        result: dict[str, Any] = await self.call(op, args)
        if len(self.timings) == before:
            self.told(step, clock() - started)
        return result

    @contextmanager
    def step(self, name: str) -> Iterator[dict[str, Any]]:
        """A step that is done from here; what stands in the mapping afterwards is its detail."""
        detail: dict[str, Any] = {}
        clock = asyncio.get_running_loop().time
        started = clock()
        self._emit(StepStarted(self.server, name))
        try:
            yield detail
        except BaseException:
            self._emit(StepFailed(self.server, name, clock() - started, detail))
            raise
        seconds = clock() - started
        self.timings.append(StepTiming(name, seconds, detail.get("bytes")))
        self._emit(StepDone(self.server, name, seconds, detail))

    async def bye(self, trace: Mapping[str, Any] | None = None) -> None:
        """End a conversation in which all is said; ``trace`` is what the server is to keep of it."""
        if self._conversation is not None:
            await self._conversation.bye(None if trace is None else {"trace": trace})

    async def close(self, patience: float = 30.0) -> None:
        """End the conversation as it stands: before the flip the agent undoes, after it the agent finishes."""
        if self._conversation is not None:
            await self._conversation.close(patience)

    def _warn(self, step: str, detail: Mapping[str, Any]) -> None:
        """What did not go as wished and stops nothing: told, with the end of what a check said."""
        if step == "warm" and detail.get("problem"):
            self.warnings.append(f"the release before is not kept warm: {str(detail['problem'])[:200]}")
            self._emit(Note(self.server, f"warning: {self.warnings[-1]}"))
        if not step.startswith("check ") or detail.get("status") in (None, "passed"):
            return
        output = [line for line in str(detail.get("output", "")).splitlines() if line.strip()][-_WARNING_LINES:]
        self.warnings.append("\n".join([f"{step}: {detail['status']}", *output]))
        for line in (f"warning: {step} {detail['status']}", *(f"  {line}" for line in output)):
            self._emit(Note(self.server, line))

    def _on_event(self, message: Mapping[str, Any]) -> None:
        if message.get("event") == "log":
            self._emit(LogLine(self.server, str(message.get("stream", "stdout")), str(message.get("text", ""))))
            return
        if message.get("event") != "step":
            return
        step, state = str(message.get("step", "step")), message.get("state")
        given = message.get("seconds")
        # JSON has numbers of any size, and Python's also takes NaN.
        seconds = float(given) if isinstance(given, (int, float)) and 0 <= given < _LONGEST else 0.0
        detail = message.get("detail")
        detail = detail if isinstance(detail, Mapping) else {}
        if state == "start":
            if step != "lock":
                self._emit(StepStarted(self.server, step))
                return
            self._locked_out = asyncio.get_running_loop().time()
            if self._waits or detail.get("left_alone"):
                self._emit(_waiting(self.server, detail))
        elif state == "done":
            self.timings.append(StepTiming(step, seconds))
            self._emit(StepDone(self.server, step, seconds, detail))
            self._warn(step, detail)
        elif state == "failed":
            self.timings.append(StepTiming(step, seconds))
            self._emit(StepFailed(self.server, step, seconds, detail))
