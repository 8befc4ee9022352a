"""What a rollout says while it works. Whoever shows or stores it gets these, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from lightship.model import Kind, Outcome, Plan
from lightship_agent.records import dataclass, field

__all__ = [
    "BatchStarted",
    "Emit",
    "Ended",
    "Event",
    "LogLine",
    "Note",
    "Phase",
    "PhaseDone",
    "PhaseStarted",
    "PlanMade",
    "StepDone",
    "StepFailed",
    "StepStarted",
    "Took",
]

Phase = Literal["prepare", "activate", "verify", "commit", "revert"]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened; ``server`` is empty when it concerns all."""

    server: str


@dataclass(frozen=True, slots=True)
class Note(Event):
    """Something to tell, in words."""

    text: str


@dataclass(frozen=True, slots=True)
class PlanMade(Event):
    """The plan for a server is known."""

    plan: Plan


@dataclass(frozen=True, slots=True)
class BatchStarted(Event):
    """Servers that are changed together are about to be; ``canary`` says that they are the first ones, on trial."""

    number: int
    count: int
    servers: tuple[str, ...]
    canary: bool = False


@dataclass(frozen=True, slots=True)
class PhaseStarted(Event):
    """A server enters a phase."""

    phase: Phase


@dataclass(frozen=True, slots=True)
class PhaseDone(Event):
    """A server has left a phase. One that ``failed`` says why in the rollout's result."""

    phase: Phase
    seconds: float
    failed: bool = False


@dataclass(frozen=True, slots=True)
class StepStarted(Event):
    """A server began a step."""

    step: str


@dataclass(frozen=True, slots=True)
class StepDone(Event):
    """A server finished a step."""

    step: str
    seconds: float
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StepFailed(Event):
    """A step failed on a server."""

    step: str
    seconds: float
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LogLine(Event):
    """Output of something that a step ran: a build, a check, a migration, a command."""

    stream: str
    text: str


@dataclass(frozen=True, slots=True)
class Took(Event):
    """Something that only a timeline tells of is over, and took this long."""

    what: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Ended(Event):
    """The rollout is over: what it was, and what became of it on all servers and on each."""

    kind: Kind
    ref: str
    commit: str
    previous: str | None
    outcome: Outcome
    outcomes: Mapping[str, Outcome]


Emit = Callable[[Event], None]
