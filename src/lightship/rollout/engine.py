"""Applies plans to servers, in phases that all servers enter together.

    prepare (build or pull, then prepare) -> barrier -> activate -> verify -> commit | revert

Nothing of what serves changes before the barrier: when one server cannot prepare, all are told to abort. After it,
when one server fails, those that were changed are reverted, so that they run one release again. A connection that is
lost after ``activate`` is opened anew and the server asked what it runs: its agent has finished by itself meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightship.errors import (
    AgentError,
    DegradedError,
    LightshipError,
    RefusedError,
    RevertedError,
    TransportError,
)
from lightship.model import Outcome, Plan, ServerResult, Worker, short
from lightship.rollout.events import Emit, Note, Phase, PhaseStarted
from lightship.rollout.session import Session

__all__ = ["Order", "Rollout", "as_refusal"]


@dataclass(frozen=True, slots=True)
class Order:
    """What one server is to do: its plan, and the arguments for its agent. ``image`` makes the image, if any."""

    session: Session
    plan: Plan
    prepare: Mapping[str, Any]
    image_op: str = ""
    image: Mapping[str, Any] = field(default_factory=dict)
    keep: int = 5


@dataclass(slots=True)
class _Progress:
    """How far a server has come."""

    order: Order
    activated: bool = False
    outcome: Outcome = "aborted"
    error: LightshipError | None = None
    running: str | None = None
    started: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0


def as_refusal(error: LightshipError) -> LightshipError:
    """A failure of no class of its own, from before anything was changed: that is a refusal."""
    if type(error) is not AgentError:
        return error
    return RefusedError(error.message, hint=error.hint, code=error.code, detail=error.detail)


class Rollout:
    """One attempt to bring a release to servers. ``run`` never raises for what happens on a server."""

    def __init__(self, orders: Sequence[Order], emit: Emit) -> None:
        self._all = [_Progress(order, running=order.session.facts.current) for order in orders]
        self._emit = emit
        self._cancelled = False

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked to stop while it ran."""
        return self._cancelled

    async def run(self) -> tuple[ServerResult, ...]:
        """All phases on all servers. Asked to stop, it aborts before the flip and completes after it."""
        todo = [one for one in self._all if not one.order.plan.nothing_to_do]
        for one in self._all:
            if one not in todo:
                one.outcome = "nothing"
        if todo:
            try:
                prepared = await self._prepare_all(todo)
            except asyncio.CancelledError:
                self._stop()
                prepared = False
            if prepared:
                await self._unstoppable(self._go_live(todo))
            else:
                await self._unstoppable(self._each(todo, self._abort))
        return tuple(self._result(one) for one in self._all)

    async def _prepare_all(self, todo: Sequence[_Progress]) -> bool:
        self._phase("prepare")
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._guard(one, self._prepare)) for one in todo]
        return all(task.result() for task in tasks)

    async def _go_live(self, todo: Sequence[_Progress]) -> None:
        for phase, work in (("activate", self._activate), ("verify", self._verify), ("commit", self._commit)):
            self._phase(phase)
            if not all(await self._each(todo, lambda one, work=work: self._guard(one, work))):  # type: ignore[misc]
                self._phase("revert")
                await self._each(todo, self._revert)
                return

    async def _each(
        self, todo: Sequence[_Progress], work: Callable[[_Progress], Coroutine[Any, Any, bool | None]]
    ) -> list[bool | None]:
        return list(await asyncio.gather(*(work(one) for one in todo)))

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
            with contextlib.suppress(asyncio.CancelledError):
                await task
            raise

    async def _guard(self, one: _Progress, work: Callable[[_Progress], Awaitable[None]]) -> bool:
        """Do the work; keep its error. A lost connection after the flip is looked into, not guessed about."""
        if one.error is not None or one.outcome == "done":
            return one.error is None
        try:
            await work(one)
        except LightshipError as error:
            if one.activated and (isinstance(error, TransportError) or one.order.session.broken):
                await self._ask_again(one, error)
            else:
                one.error = error if one.activated else as_refusal(error)
        return one.error is None

    async def _prepare(self, one: _Progress) -> None:
        order = one.order
        if order.image_op:
            await order.session.timed(order.image_op, order.image_op, order.image)
        await order.session.timed("prepare", "prepare", order.prepare)

    async def _activate(self, one: _Progress) -> None:
        one.activated = True
        await one.order.session.timed("flip", "activate")
        one.running = one.order.plan.commit

    async def _verify(self, one: _Progress) -> None:
        answer = await one.order.session.timed("verify", "verify")
        workers = answer.get("workers")
        one.order.session.workers = tuple(
            Worker.from_json(worker, f"verify.workers[{index}]")
            for index, worker in enumerate(workers if isinstance(workers, list) else [])
        )
        self._must_all_run(one)

    def _must_all_run(self, one: _Progress) -> None:
        """Success is what was seen: every serving worker on the new release, and at least one of them."""
        commit = one.order.plan.commit
        serving = [worker for worker in one.order.session.workers if worker.state == "serving"]
        wrong = [worker for worker in serving if worker.release != commit]
        if not serving or wrong:
            runs = ", ".join(sorted({short(worker.release) for worker in wrong})) or "nothing"
            raise RevertedError(
                f"{one.order.session.server}: not every worker runs {short(commit)}; some run {runs}",
                code="workers-differ",
            )

    async def _commit(self, one: _Progress) -> None:
        await one.order.session.timed("commit", "commit", {"keep": one.order.keep})
        one.outcome = "done"
        one.seconds = time.perf_counter() - one.started

    async def _abort(self, one: _Progress) -> None:
        """Undo what was prepared. The agent does the same by itself when the conversation ends."""
        one.outcome = "aborted" if one.error is None else "refused"
        session = one.order.session
        if self._cancelled:
            await session.close(120)
        elif not session.broken:
            with contextlib.suppress(LightshipError):
                await session.call("abort", timeout=120)
        one.seconds = time.perf_counter() - one.started

    async def _revert(self, one: _Progress) -> None:
        """Back to what ran before, unless the agent went back by itself."""
        session = one.order.session
        if one.outcome == "done":
            return
        one.seconds = time.perf_counter() - one.started
        if one.outcome == "refused":  # its agent died right before the flip, and the next one undid the rest
            return
        if isinstance(one.error, DegradedError):
            one.outcome = "degraded"
            return
        if not one.activated:
            await self._abort(one)
            return
        if isinstance(one.error, RevertedError) and one.error.code != "workers-differ":
            one.outcome, one.running = "reverted", session.facts.current
            return
        try:
            answer = await session.timed("revert", "revert")
        except LightshipError as error:
            await self._revert_failed(one, error)
            return
        one.outcome = "reverted"
        current = answer.get("current")
        one.running = current if isinstance(current, str) else session.facts.current

    async def _revert_failed(self, one: _Progress, error: LightshipError) -> None:
        session = one.order.session
        if isinstance(error, TransportError) and session.broken:
            await self._ask_again(one, error)
            if one.outcome in ("reverted", "done"):
                return
        if isinstance(error, RefusedError) and not isinstance(error, TransportError) and one.error is not None:
            # The agent has nothing to go back from: it never flipped.
            one.outcome, one.error = "refused", as_refusal(one.error)
            return
        one.outcome = "degraded"
        cause = f"{one.error.message}; " if one.error is not None else ""
        one.error = DegradedError(
            f"{session.server}: {cause}going back failed too: {error.message}",
            hint=error.hint or "see what it runs: lightship status",
            code="revert-failed",
            detail=error.detail,
        )

    async def _ask_again(self, one: _Progress, error: LightshipError) -> None:
        """The connection was lost after the flip: report what the server really did."""
        session, commit = one.order.session, one.order.plan.commit
        before = session.facts.current
        self._emit(Note(session.server, f"{error.message}; asking again what it runs"))
        try:
            await session.reopen()
        except LightshipError as again:
            one.outcome = "degraded"
            one.error = DegradedError(
                f"{session.server}: the connection was lost after the flip and cannot be had again: {again.message}",
                hint="the server finishes by itself; see what it runs: lightship status",
                code="lost",
            )
            return
        facts = session.facts
        one.running = facts.current
        session.workers = facts.serving
        if facts.current == commit and facts.stable == commit and set(facts.loaded) == {commit}:
            one.outcome, one.error = "done", None
        elif facts.current == before and (session.recovered or {}).get("outcome") == "aborted":
            one.outcome = "refused"
            one.error = RefusedError(
                f"{session.server}: {error.message}; it had not gone live, and was undone",
                hint="deploy again",
                code="lost",
            )
        elif facts.current == before and before is not None:
            one.outcome = "reverted"
            one.error = RevertedError(f"{session.server} went back to {short(before)} by itself: {error.message}")
        else:
            one.outcome = "degraded"
            one.error = DegradedError(
                f"{session.server} runs {short(facts.current)}, which is not known to be good: {error.message}",
                hint="see: lightship status; go back with: lightship rollback",
                code="lost",
            )

    def _phase(self, phase: Phase | str) -> None:
        self._emit(PhaseStarted("", phase))  # type: ignore[arg-type]

    def _result(self, one: _Progress) -> ServerResult:
        session, plan = one.order.session, one.order.plan
        return ServerResult(
            server=session.server,
            outcome=one.outcome,
            kind=plan.kind,
            commit=plan.commit,
            previous=plan.change.live,
            running=one.running,
            steps=tuple(session.timings),
            workers=session.workers,
            warnings=tuple(session.warnings),
            seconds=one.seconds,
            error=one.error,
        )
