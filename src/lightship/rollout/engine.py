"""Applies plans to servers, in phases.

    image -> prepare all -> barrier -> the canary, then batch by batch: activate, verify -> commit all | revert

The image of new containers is made once, and is on every server before anything else begins. Nothing of what serves
changes before the barrier: when one server cannot prepare, all are told to abort. After it a
server that fails goes back by itself. Once more have failed than the budget allows, or the canary has, no further
server is activated, and those that were changed go back, so that all run one release again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any

from lightship.errors import LightshipError, TransportError
from lightship.model import ServerResult
from lightship.rollout.events import BatchStarted, Emit, Note
from lightship.rollout.order import Order
from lightship.rollout.server import ServerRun
from lightship.rollout.strategy import Strategy

__all__ = ["PREPARING", "RECONNECT", "UNREACHABLE", "Images", "Rollout", "is_unreachable"]

#: Has the image ready on servers: for each its order, with the image in it, or why it is not there.
Images = Callable[[Sequence[Order]], Awaitable[Mapping[str, Order | LightshipError]]]
#: So many servers prepare at once: each may ask the git host and the registry for something.
PREPARING = 200
#: For so many seconds a server is tried again whose connection was lost after the flip.
RECONNECT = 60.0
#: The codes of errors that say nothing against a server but that it could not be reached.
UNREACHABLE = frozenset(
    {
        "connection-lost",
        "fail-point",
        "ssh-failed",
        "ssh-refused",
        "ssh-timeout",
        "ssh-turned-away",
        "ssh-unknown-name",
        "ssh-unreachable",
        "timeout",
        "transport",
    }
)


def is_unreachable(error: BaseException | None) -> bool:
    """Whether the server could not be reached; one that was and said no (or is not itself) is another matter."""
    return isinstance(error, TransportError) and error.code in UNREACHABLE


class Rollout:
    """One attempt to bring a release to servers. ``run`` never raises for what happens on a server."""

    def __init__(
        self,
        orders: Sequence[Order],
        emit: Emit,
        strategy: Strategy | None = None,
        *,
        skip_unreachable: bool = False,
        reconnect: float = RECONNECT,
        images: Images | None = None,
    ) -> None:
        self._all = [ServerRun(order, emit, reconnect) for order in orders]
        self._emit = emit
        self._strategy = strategy or Strategy()
        self._skip = skip_unreachable
        self._images = images
        self._cancelled = False
        self._over = False
        self._failures = 0
        self._budget = 0

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked to stop while it ran."""
        return self._cancelled

    async def run(self) -> tuple[ServerResult, ...]:
        """All phases on all servers. Asked to stop, it aborts before the flip and completes or reverts after it."""
        todo = [one for one in self._all if not one.order.plan.nothing_to_do]
        for one in self._all:
            if one.order.plan.nothing_to_do:
                one.rest()
        if todo:
            try:
                await self._prepare_all(todo)
            except asyncio.CancelledError:
                self._stop()
            left = [one for one in todo if one.outcome != "skipped"]
            if self._over or self._cancelled:
                await self._unstoppable(self._each(left, lambda one: one.abort(at_work=self._cancelled)))
            else:
                await self._unstoppable(self._go_live(left))
        return tuple(one.result() for one in self._all)

    # --- before the barrier ------------------------------------------------------------

    async def _prepare_all(self, todo: Sequence[ServerRun]) -> None:
        """Prepare: first where the migrations run, since what is booted elsewhere may need what they bring."""
        await self._make_images([one for one in todo if one.order.needs_image])
        todo = [one for one in todo if one.error is None]
        first = [one for one in todo if one.order.migrates]
        for one in first:
            await self._prepare(one)
        places = asyncio.Semaphore(PREPARING)

        async def prepare(one: ServerRun) -> None:
            async with places:
                await self._prepare(one)

        async with asyncio.TaskGroup() as group:
            for one in todo:
                if one not in first:
                    group.create_task(prepare(one))

    async def _prepare(self, one: ServerRun) -> None:
        if self._over:
            return
        await one.prepare()
        self._judge(one)

    async def _make_images(self, servers: Sequence[ServerRun]) -> None:
        if self._images is None or not servers:
            return
        found = await self._images([one.order for one in servers])
        for one in servers:
            one.take_image(found.get(one.server))
            self._judge(one)

    def _judge(self, one: ServerRun) -> None:
        """After what is done before the barrier: a server that failed is left out, or ends the rollout."""
        if one.error is None:
            return
        if self._skip and is_unreachable(one.error) and not one.order.migrates:
            one.skip()
        else:
            # Of migrations it must be known how they ended, before anybody begins them once more.
            self._over = True

    # --- after it ------------------------------------------------------------------------

    async def _go_live(self, servers: Sequence[ServerRun]) -> None:
        strategy = self._strategy
        self._budget = strategy.budget(len(servers))
        canaries = strategy.canaries(len(servers))
        batches = strategy.batches(servers)
        for number, batch in enumerate(batches, 1):
            if self._over or self._cancelled:
                break
            canary = number == 1 and canaries > 0
            self._emit(BatchStarted("", number, len(batches), tuple(one.server for one in batch), canary))
            await self._each(batch, lambda one, canary=canary: self._live(one, canary))  # type: ignore[misc]
        if not self._over and all(one.activated for one in servers):
            await self._each(servers, self._commit)
        else:
            self._over = True
        if self._over:
            await self._bring_together(servers)
        reverted = self._over and strategy.on_failure == "revert"
        await self._each(servers, lambda one: one.look_once_more(reverted=reverted))

    async def _live(self, one: ServerRun, canary: bool) -> None:
        if not self._over:
            await one.go_live()
            self._count(one, canary=canary)

    async def _commit(self, one: ServerRun) -> None:
        if one.error is None:
            await one.commit()
            self._count(one)

    def _count(self, one: ServerRun, *, canary: bool = False) -> None:
        if one.error is not None:
            self._failures += 1
            self._over = self._over or canary or self._failures > self._budget

    async def _bring_together(self, servers: Sequence[ServerRun]) -> None:
        """The rollout has stopped: those that it changed go back or stay, those that it did not are released."""

        async def one_of_them(one: ServerRun) -> None:
            if self._strategy.on_failure == "stop" and one.activated:
                await one.commit()
            else:
                await one.go_back()

        await self._each(servers, one_of_them)

    # --- being asked to stop -------------------------------------------------------------

    async def _each(self, servers: Sequence[ServerRun], work: Callable[[ServerRun], Coroutine[Any, Any, None]]) -> None:
        await asyncio.gather(*(work(one) for one in servers))

    async def _unstoppable(self, work: Coroutine[Any, Any, Any]) -> None:
        """Finish the work even when asked to stop; asked a second time, leave it to the agents."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if not self._cancelled:
                self._emit(Note("", "interrupted: finishing first what has begun; once more to leave it to the server"))
            self._stop()
            await self._once_more(task)

    def _stop(self) -> None:
        """Take note of the wish to stop; from here on it is met by how the phases end."""
        self._cancelled = True
        task = asyncio.current_task()
        if task is not None:
            task.uncancel()

    async def _once_more(self, task: asyncio.Future[Any]) -> None:
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, LightshipError):
                await task
            raise
