"""One server on its way through a rollout: its phases, and the way back from each of them.

A failure after the flip is dealt with here and at once, so that the server runs one known release whatever becomes of
the others: the agent goes back by itself, or is told to. A connection that is lost after the flip is opened anew, and
the server asked what it runs: its agent has finished by itself meanwhile.

Until the whole rollout has passed, a server is verified and not committed: its old workers are parked, and the way back
is one rename. A server that has committed, because its agent was left alone, goes back as by a rollback.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Self

from lightship.errors import (
    AgentError,
    DegradedError,
    LightshipError,
    RefusedError,
    RevertedError,
    TransportError,
)
from lightship.model import Facts, Outcome, RoleProcess, ServerResult, Worker, short
from lightship.rollout.events import Emit, Note, Phase, PhaseDone, PhaseStarted
from lightship.rollout.order import Order

__all__ = ["LOST", "ServerRun", "as_refusal"]

#: The code of the error of a server that could not be asked what it runs.
LOST = "lost"
_DIFFER = "workers-differ"
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0
_ABORT_SECONDS = 120.0
_LOOK_SECONDS = 30.0
_Work = Callable[[], Awaitable[None]]


def as_refusal(error: LightshipError) -> LightshipError:
    """A failure of no class of its own, from before anything was changed: that is a refusal."""
    if type(error) is not AgentError:
        return error
    return RefusedError(error.message, hint=error.hint, code=error.code, detail=error.detail)


class ServerRun:
    """How far a server has come. No method raises for what happens on the server: see ``outcome`` and ``error``."""

    def __init__(self, order: Order, emit: Emit, reconnect: float) -> None:
        self.order = order
        self.outcome: Outcome = "aborted"
        self.error: LightshipError | None = None
        self.running = order.session.facts.current
        self.activated = False
        self.verified = False
        self._before = order.session.facts.current
        self._emit = emit
        self._reconnect = reconnect
        self._started = asyncio.get_running_loop().time()
        self._seconds = 0.0

    def resume(
        self, *, before: str | None, outcome: Outcome, activated: bool, verified: bool, error: LightshipError | None
    ) -> Self:
        """Go on where another process has come to with this server. ``before`` is what ran when it began."""
        self._before, self.running = before, self.order.plan.commit if activated else before
        self.outcome, self.activated, self.verified, self.error = outcome, activated, verified, error
        return self

    @property
    def server(self) -> str:
        """The server's name."""
        return self.order.session.server

    @property
    def lost(self) -> bool:
        """Whether it is not known what the server runs."""
        return self.outcome == "degraded" and self.error is not None and self.error.code == LOST

    # --- forward ---------------------------------------------------------------------

    def take_image(self, found: Order | LightshipError | None) -> None:
        """What became of the image here; ``None`` when that was not even tried."""
        if isinstance(found, Order):
            self.order = found
        elif found is not None:
            self.error = as_refusal(found)

    async def prepare(self) -> None:
        """Everything that is done before the flip."""
        await self._phase("prepare", self._prepare)

    async def go_live(self) -> None:
        """Activate and verify; a server that fails has gone back when this returns."""
        await self._phase("activate", self._activate)
        if self.error is None and self.outcome != "done":
            await self._phase("verify", self._verify)
        self.verified = self.error is None
        if self.error is not None:
            await self.go_back()

    async def commit(self) -> None:
        """Write the release down as stable; nothing to do when the agent did so by itself."""
        if self.error is None and self.outcome != "done":
            await self._phase("commit", self._commit)
            if self.error is not None:
                await self.go_back()

    async def abort(self, *, at_work: bool = False) -> None:
        """Undo what was prepared. The agent does the same by itself when the conversation ends.

        An agent that is ``at_work`` hears no request; the end of its input it does.
        """
        self.outcome = "aborted" if self.error is None else "refused"
        session = self.order.session
        if at_work:
            await session.close(_ABORT_SECONDS)
        elif not session.broken:
            with contextlib.suppress(LightshipError):
                await session.call("abort", timeout=_ABORT_SECONDS)
        self._end()

    def skip(self) -> None:
        """Leave the server out: it could not be reached, and nothing was changed there."""
        self.outcome = "skipped"
        self._end()

    def rest(self) -> None:
        """There is nothing to do here."""
        self.outcome = "nothing"

    async def _prepare(self) -> None:
        await self.order.session.timed("prepare", "prepare", self.order.prepare)

    async def _activate(self) -> None:
        self.activated = True
        await self.order.session.timed("flip", "activate")
        self.running = self.order.plan.commit

    async def _verify(self) -> None:
        await self._see_all_run(self.order.plan.commit)

    async def _see_all_run(self, commit: str) -> None:
        """Success is what was seen: every serving worker on the release, and at least one of them."""
        session = self.order.session
        answer = await session.timed("verify", "verify")
        workers = answer.get("workers")
        session.workers = tuple(
            Worker.from_json(worker, f"verify.workers[{index}]")
            for index, worker in enumerate(workers if isinstance(workers, list) else [])
        )
        roles = answer.get("roles")
        session.processes = tuple(
            RoleProcess.from_json(process, f"verify.roles[{index}]")
            for index, process in enumerate(roles if isinstance(roles, list) else [])
        )
        serving = [worker for worker in session.workers if worker.state == "serving"]
        loaded = [*(worker.release for worker in serving), *(process.release for process in session.processes)]
        wrong = {release for release in loaded if release != commit}
        # A server without the web role has proven its roles, and there must be some.
        proven = serving if answer.get("web", True) else session.processes
        if not proven or wrong:
            runs = ", ".join(sorted(map(short, wrong))) or "nothing"
            raise RevertedError(
                f"{self.server}: not every worker runs {short(commit)}; some run {runs}",
                code=_DIFFER,
            )

    async def _commit(self) -> None:
        await self.order.session.timed("commit", "commit", {"keep": self.order.keep})
        self.outcome = "done"
        self._end()

    async def _phase(self, phase: Phase, work: _Work) -> None:
        """Do the work; keep its error. A lost connection after the flip is looked into, not guessed about."""
        began = self._now()
        self._emit(PhaseStarted(self.server, phase))
        try:
            await work()
        except LightshipError as error:
            if self.activated and (isinstance(error, TransportError) or self.order.session.broken):
                await self._look_again(error)
            else:
                self.error = error if self.activated else as_refusal(error)
        self._emit(PhaseDone(self.server, phase, self._now() - began, failed=self.error is not None))

    # --- back ------------------------------------------------------------------------

    async def go_back(self) -> None:
        """Back to what ran before, from wherever the server is, unless its agent went back by itself."""
        if self.outcome == "done":
            await self._take_back()
        elif self.outcome == "aborted":
            if self.activated:
                await self._revert()
            else:
                await self.abort()
        self._end()

    async def _revert(self) -> None:
        """From the flip and before the commit: one word to the agent, if it has not done it already."""
        if isinstance(self.error, DegradedError):
            self.outcome = "degraded"
            await self._see()
            return
        if isinstance(self.error, RevertedError) and self.error.code != _DIFFER:
            self.outcome, self.running = "reverted", self._before
            return
        began = self._now()
        self._emit(PhaseStarted(self.server, "revert"))
        try:
            answer = await self.order.session.timed("revert", "revert")
        except LightshipError as error:
            await self._revert_failed(error)
        else:
            self.outcome = "reverted"
            current = answer.get("current")
            self.running = current if isinstance(current, str) else self._before
        failed = self.outcome not in ("reverted", "refused")
        self._emit(PhaseDone(self.server, "revert", self._now() - began, failed=failed))

    async def _revert_failed(self, error: LightshipError) -> None:
        session, cause = self.order.session, self.error
        if isinstance(error, TransportError) or session.broken:
            await self._look_again(error)
            if self.outcome == "done":
                # Left alone, its agent has committed meanwhile.
                await self._take_back()
            if self.outcome == "reverted":
                self.error = cause
            return
        if isinstance(error, RefusedError) and cause is not None:
            # The agent has nothing to go back from: it never flipped.
            self.outcome, self.error, self.running = "refused", as_refusal(cause), self._before
            return
        self.outcome = "degraded"
        await self._see()
        why = f"{cause.message}; " if cause is not None else ""
        self.error = DegradedError(
            f"{self.server}: {why}going back failed too: {error.message}",
            hint=error.hint or "see what it runs: lightship status",
            code="revert-failed",
            detail=error.detail,
        )

    async def _take_back(self) -> None:
        """From a committed release: what ran before is prepared, activated, verified and committed like any other."""
        session, before, back = self.order.session, self._before, self.order.back
        if before is None or back is None or before == self.order.plan.commit:
            return
        began = self._now()
        self._emit(PhaseStarted(self.server, "revert"))
        try:
            if session.broken:
                await session.reopen(self.order.finishes)
            await session.timed("prepare", "prepare", back)
            await session.timed("flip", "activate")
            await self._see_all_run(before)
            await session.timed("commit", "commit", {"keep": self.order.keep})
            self.outcome, self.running = "reverted", before
        except LightshipError as error:
            await self._take_back_failed(error)
        self._emit(PhaseDone(self.server, "revert", self._now() - began, failed=self.outcome != "reverted"))

    async def _take_back_failed(self, error: LightshipError) -> None:
        """It runs one of the two releases; which one is asked and not guessed."""
        session, new, before = self.order.session, self.order.plan.commit, self._before
        with contextlib.suppress(LightshipError):
            await session.reopen(self.order.finishes)
        if session.broken:
            self._is_lost(error)
            return
        facts = session.facts
        self.running, session.workers, session.processes = facts.current, facts.serving, facts.processes
        if facts.current == before and set(facts.loaded) == {before}:
            self.outcome = "reverted"
            return
        well = facts.current == new and set(facts.loaded) == {new}
        self.outcome = "done" if well else "degraded"
        self.error = DegradedError(
            f"{self.server} runs {short(facts.current)}; it could not be taken back to {short(before)}: "
            f"{error.message}",
            hint=error.hint or "see: lightship status; go back with: lightship rollback",
            code="revert-failed",
            detail=error.detail,
        )

    # --- what a server says that was lost --------------------------------------------

    async def look_once_more(self, *, reverted: bool) -> None:
        """At the end of a rollout: a server that was lost is asked again, and follows the others back."""
        if not self.lost or self.error is None:
            return
        self._reconnect = 0.0
        await self._look_again(self.error)
        if self.outcome == "done" and reverted:
            await self._take_back()
        self._end()

    async def _look_again(self, error: LightshipError) -> None:
        """The connection was lost after the flip: report what the server really did."""
        session, commit, before = self.order.session, self.order.plan.commit, self._before
        self._emit(Note(self.server, f"{error.message}; asking again what it runs"))
        if not await self._reach_again():
            return
        facts = session.facts
        self.running, session.workers, session.processes = facts.current, facts.serving, facts.processes
        if facts.current == commit and facts.stable == commit and set(facts.loaded) == {commit}:
            self.outcome, self.error = "done", None
            self._end()
        elif facts.current == before and self._never_went_live():
            self.outcome = "refused"
            self.error = RefusedError(
                f"{self.server}: {error.message}; it had not gone live, and was undone",
                hint="deploy again",
                code=LOST,
            )
        elif facts.current == before and before is not None:
            self.outcome = "reverted"
            self.error = RevertedError(f"{self.server} went back to {short(before)} by itself: {error.message}")
        else:
            self.outcome = "degraded"
            self.error = DegradedError(
                f"{self.server} runs {short(facts.current)}, which is not known to be good: {error.message}",
                hint="see: lightship status; go back with: lightship rollback",
                code="unproven",
            )

    async def _see(self) -> None:
        """What the server runs after a way back that failed; not known, if it cannot even say that."""
        self.running = None
        with contextlib.suppress(LightshipError):
            facts = Facts.from_json(await self.order.session.call("status", timeout=_LOOK_SECONDS))
            self.running = facts.current
            self.order.session.workers, self.order.session.processes = facts.serving, facts.processes

    def _never_went_live(self) -> bool:
        """Whether the server says that this rollout was undone before its flip."""
        session = self.order.session
        if (session.recovered or {}).get("outcome") == "aborted":
            return True
        last = session.facts.history[0] if session.facts.history else None
        return last is not None and last.commit == self.order.plan.commit and last.outcome in ("aborted", "refused")

    async def _reach_again(self) -> bool:
        """Connect again, over and over for a while: a network that was cut may come back."""
        until, pause = self._now() + self._reconnect, _FIRST_PAUSE
        while True:
            try:
                await self.order.session.reopen(self.order.finishes)
            except LightshipError as again:
                if not isinstance(again, TransportError) or self._now() + pause > until:
                    self._is_lost(again)
                    return False
            else:
                return True
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _is_lost(self, error: LightshipError) -> None:
        if self.lost:
            return
        self.outcome, self.running = "degraded", None
        self.error = DegradedError(
            f"{self.server}: the connection was lost after the flip and cannot be had again: {error.message}",
            hint="the server finishes by itself; see what it runs: lightship status",
            code=LOST,
        )

    # --- the result ------------------------------------------------------------------

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _end(self) -> None:
        self._seconds = self._now() - self._started

    def result(self) -> ServerResult:
        """What became of it here."""
        session, plan = self.order.session, self.order.plan
        return ServerResult(
            server=session.server,
            outcome=self.outcome,
            kind=plan.kind,
            commit=plan.commit,
            previous=plan.change.live,
            running=self.running,
            steps=tuple(session.timings),
            workers=session.workers,
            processes=session.processes,
            warnings=tuple(session.warnings),
            seconds=self._seconds,
            error=self.error,
        )
