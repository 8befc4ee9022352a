"""What became of a rollout, on all its servers together."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from lightship.errors import DegradedError, LightshipError
from lightship.model import Kind, Outcome, Plan, ServerResult, Step, short
from lightship.result import Timing
from lightship_agent.records import dataclass

__all__ = ["INTERRUPTED", "RolloutResult", "fleet_error", "overall"]

_NAMED = 5
#: The exit status of a command that was interrupted (128 + SIGINT).
INTERRUPTED = 130

_STATUS: dict[Outcome, int] = {
    "done": 0,
    "nothing": 0,
    "refused": 3,
    "skipped": 3,
    "reverted": 4,
    "degraded": 5,
    "aborted": INTERRUPTED,
}
#: From harmless to grave.
_ORDER: tuple[Outcome, ...] = ("nothing", "done", "aborted", "refused", "reverted", "degraded")


def overall(outcomes: Sequence[Outcome], running: Collection[str | None] = ()) -> Outcome:
    """One word for many servers: the gravest. Servers that differ after a change are a degraded fleet.

    ``running`` is what the servers run now. Of one that was skipped that is not known, so it differs.
    """
    reached = [one for one in outcomes if one != "skipped"]
    if not reached:
        return "skipped" if outcomes else "nothing"
    gravest = max(reached, key=_ORDER.index)
    changed = "done" in reached
    if changed and gravest in ("refused", "reverted", "aborted"):
        return "degraded"
    if gravest == "reverted" and len(set(running)) > 1:
        return "degraded"
    if len(reached) < len(outcomes) and gravest in ("done", "nothing", "reverted"):
        return "degraded"
    return gravest


def fleet_error(commit: str, servers: Sequence[ServerResult], outcome: Outcome) -> LightshipError | None:
    """What to tell of servers that ended in different ways: who runs what, and what went wrong first."""
    failed = [one for one in servers if one.error is not None]
    first = next((one for one in failed if one.outcome == outcome), failed[0] if failed else None)
    if first is None or first.error is None:
        return None
    differ = outcome == "degraded" and len(servers) > 1
    if not differ:
        return first.error.on(first.server) if len(servers) > 1 else first.error
    others = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    return DegradedError(
        f"the servers differ: {_who_runs_what(servers)}; {_named(first)}{others}",
        hint=first.error.hint or f"when that is put right, `lightship deploy --commit {commit}` brings all level",
        code="servers-differ" if first.error.code not in ("degraded", "lost", "revert-failed") else first.error.code,
        detail={**first.error.detail, "servers": {one.server: one.running for one in servers}},
    )


def _named(one: ServerResult) -> str:
    return one.error.on(one.server).message if one.error is not None else f"{one.server}: {one.outcome}"


def _who_runs_what(servers: Sequence[ServerResult]) -> str:
    runs: dict[str, list[str]] = {}
    for one in servers:
        what = "was not reached" if one.outcome == "skipped" else "not known" if _unknown(one) else short(one.running)
        runs.setdefault(what, []).append(one.server)
    return ", ".join(
        f"{what} on {len(names)} servers" if len(names) > _NAMED else f"{what} on {', '.join(names)}"
        for what, names in sorted(runs.items(), key=lambda item: -len(item[1]))
    )


def _unknown(one: ServerResult) -> bool:
    return one.running is None and one.outcome == "degraded"


@dataclass(frozen=True, slots=True)
class RolloutResult:
    """The end of a rollout: what was tried, what each server runs now, and the first error."""

    service: str
    ref: str
    kind: Kind
    commit: str
    subject: str
    previous: str | None
    outcome: Outcome
    why: tuple[str, ...]
    servers: tuple[ServerResult, ...]
    plans: tuple[tuple[str, Plan], ...] = ()
    error: LightshipError | None = None
    interrupted: bool = False
    seconds: float = 0.0
    timing: Timing | None = None
    """Where the time went, as far as somebody took note of it."""

    @property
    def exit_status(self) -> int:
        """What the command ends with."""
        if self.interrupted and self.outcome != "degraded":
            return INTERRUPTED
        if self.error is not None and not isinstance(self.error, DegradedError) and self.outcome == "refused":
            return self.error.exit_status
        return _STATUS[self.outcome]

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps of the gravest plan."""
        return max((plan for _, plan in self.plans), key=lambda plan: len(plan.steps)).steps if self.plans else ()
