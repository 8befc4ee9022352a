"""What became of a rollout, on all its servers together."""

from __future__ import annotations

from dataclasses import dataclass

from lightship.errors import DegradedError, LightshipError
from lightship.model import Kind, Outcome, Plan, ServerResult, Step

__all__ = ["INTERRUPTED", "RolloutResult", "overall"]

#: The exit status of a command that was interrupted (128 + SIGINT).
INTERRUPTED = 130

_STATUS: dict[Outcome, int] = {"done": 0, "nothing": 0, "refused": 3, "reverted": 4, "degraded": 5, "aborted": 130}
#: From harmless to grave.
_ORDER: tuple[Outcome, ...] = ("nothing", "done", "aborted", "refused", "reverted", "degraded")


def overall(outcomes: list[Outcome]) -> Outcome:
    """One word for many servers: the gravest. Servers that differ after a change are a degraded fleet."""
    if not outcomes:
        return "nothing"
    gravest = max(outcomes, key=_ORDER.index)
    changed = "done" in outcomes
    return "degraded" if changed and gravest in ("refused", "reverted", "aborted") else gravest


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

    @property
    def exit_status(self) -> int:
        """What the command ends with."""
        if self.interrupted:
            return INTERRUPTED
        if self.error is not None and not isinstance(self.error, DegradedError) and self.outcome == "refused":
            return self.error.exit_status
        return _STATUS[self.outcome]

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps of the gravest plan."""
        return max((plan for _, plan in self.plans), key=lambda plan: len(plan.steps)).steps if self.plans else ()
