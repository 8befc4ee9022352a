"""One host as a task sees it: the way to it, and the conversation with the agent that is held there."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from lightship.errors import LightshipError
from lightship.model import Facts
from lightship.rollout import Hello, Session
from lightship.rollout.events import Emit
from lightship.transport.conversation import Conversation
from lightship.transport.held import HeldTransport, Run, new_token
from lightship.transport.zipapp import agent_file
from lightship_agent.records import dataclass, field

__all__ = ["HeldSession", "Place", "agent"]

_Asked = tuple[str, Mapping[str, Any]]


@functools.cache
def agent() -> bytes:
    """The agent's file, which each task would read anew."""
    return agent_file().read_bytes()


@dataclass(slots=True)
class Place:
    """A host of the play. ``tell`` gets what is worth a line in the task's output."""

    name: str
    run: Run
    python: str = "python3"
    tell: Callable[[str], None] = field(default=lambda _: None)

    def transport(self, silence: float) -> HeldTransport:
        """The way to a new agent."""
        return HeldTransport(self.name, self.run, agent(), new_token(), self.python, silence)

    def again(self, token: str) -> HeldTransport:
        """The way to the one that is held."""
        return HeldTransport(self.name, self.run, b"", token, self.python, started=True)


class HeldSession(Session):
    """A session whose agent goes on after it.

    ``ahead`` names for an operation what is going to be asked next, whatever its answer: it goes with it, which saves a
    command on the server.
    """

    def __init__(
        self,
        transport: HeldTransport,
        hello: Hello,
        emit: Emit,
        ahead: Mapping[str, Sequence[_Asked]] | None = None,
    ) -> None:
        super().__init__(transport, hello, emit)
        self.held = transport
        self._ahead = ahead or {}
        self._begun: dict[str, tuple[Mapping[str, Any], asyncio.Task[Any]]] = {}

    async def open(self, **changes: Any) -> Self:
        """Start the agent and say hello. One that refuses is not left behind."""
        try:
            return await super().open(**changes)
        except BaseException:
            await self._dismiss()
            raise

    async def _dismiss(self) -> None:
        """End an agent that was started in vain; the lock it never had."""
        await self._settle()
        if self.held.started:
            with contextlib.suppress(LightshipError):
                conversation = await Conversation.open(self.held)
                await conversation.bye()

    async def attach(self, *, look: bool = False) -> Self:
        """Go on with the agent that is held; ``look`` at the server, as the hello of a new one would have."""
        self._conversation = await Conversation.open(self.held)
        if look:
            self.facts = Facts.from_json(await self.call("status"))
        return self

    async def reopen(self, wait: float = 120.0) -> Self:
        """After a lost connection: a new agent, which waits for the old one to finish."""
        await self.close()
        self.held = HeldTransport(self.server, self.held.run, agent(), new_token(), self.held.python, self.held.silence)
        self._transport = self.held
        return await self.open(lock=True, wait=wait, take_over=False)

    async def call(
        self,
        op: str,
        args: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,  # noqa: ARG002 - the way there has its own, and blocks meanwhile
        on_data: Callable[[bytes], None] | None = None,
    ) -> Any:
        """Ask the agent, and with it what comes next."""
        given, waiting = self._begun.pop(op, (None, None))
        if waiting is not None and given == (args or {}):
            return await waiting
        asked = asyncio.ensure_future(super().call(op, args, on_data=on_data))
        for name, more in self._ahead.get(op, ()):
            self._begun[name] = (more, asyncio.ensure_future(super().call(name, more)))
        return await asked

    async def leave(self) -> None:
        """Leave the agent as it is, for the next task."""
        await self._settle()
        await self.close()

    async def end(self) -> None:
        """All is said: the agent ends, and undoes or finishes what is open."""
        if not self.broken:
            with contextlib.suppress(LightshipError):
                await self.call("bye")
        await self.leave()

    async def _settle(self) -> None:
        for _, task in self._begun.values():
            with contextlib.suppress(LightshipError):
                await task
        self._begun.clear()
