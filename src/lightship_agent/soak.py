"""The soak: a while in which a release that serves is watched before it counts as stable.

It fails when a worker or the container ends, when the container's memory limit killed something, or when the release
answers with server errors (5xx) at a higher rate than the release before it did.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from lightship_agent import slots
from lightship_agent.container import Container, Engine
from lightship_agent.errors import AgentFailure
from lightship_agent.paths import ServicePaths
from lightship_agent.records import dataclass

__all__ = ["Level", "Watch", "level", "worse"]

LOOK = 0.1
# A few errors more than before are chance: this many at least, and this much more of all responses.
LEAST_ERRORS = 3
RATE_MARGIN = 0.01


@dataclass(frozen=True)
class Level:
    """How many responses a release gave, and how many of them were server errors."""

    responses: int = 0
    errors: int = 0

    @property
    def rate(self) -> float:
        """The share of server errors."""
        return self.errors / self.responses if self.responses else 0.0

    def since(self, before: Level) -> Level:
        """What came after an earlier level; counts start anew in a worker that was started again."""
        return Level(max(0, self.responses - before.responses), max(0, self.errors - before.errors))


def worse(new: Level, old: Level) -> bool:
    """Whether the new release fails more often than the old one did, beyond chance."""
    return new.errors >= LEAST_ERRORS and new.rate > old.rate + RATE_MARGIN


def level(paths: ServicePaths, instance: int, slot: str) -> Level:
    """The counts that a slot's workers wrote down."""
    counts = slots.read_counts(paths, instance, slot)
    return Level(sum(count[0] for count in counts), sum(count[1] for count in counts))


@dataclass(frozen=True)
class Watch:
    """Watches one slot of one container."""

    paths: ServicePaths
    engine: Engine
    container: str
    instance: int
    slot: str
    commit: str
    old: Level

    def run(self, seconds: float, sleep: Callable[[float], None] = time.sleep) -> Level:
        """Watch for that long; raises ``AgentFailure`` (``soak-failed``) as soon as something is wrong."""
        first = self.engine.container(self.container)
        before = level(self.paths, self.instance, self.slot)
        started = self._respawns()
        deadline = time.monotonic() + seconds
        while True:
            left = deadline - time.monotonic()
            sleep(min(LOOK, max(0.0, left)))
            seen = level(self.paths, self.instance, self.slot).since(before)
            self._look(first, started, seen)
            if left <= 0:
                break
        if not slots.read_slot(self.paths, self.instance, self.slot).proven(self.commit, None, ("serving",)):
            raise self._failed("not every worker serves after the soak")
        return seen

    def _look(self, first: Container | None, started: int, seen: Level) -> None:
        found = self.engine.container(self.container)
        if found is None or not found.running or (first and found.restarts > first.restarts):
            memory = ", out of memory" if found and found.oom_killed else ""
            raise self._failed(f"the container {self.container} ended{memory}")
        if found.oom_killed and first and not first.oom_killed:
            raise self._failed("the container's memory limit killed a process")
        died = self._respawns() - started
        if died > 0:
            raise self._failed(f"{died} of its workers died")
        if worse(seen, self.old):
            raise self._failed(
                f"{seen.errors} of {seen.responses} responses were server errors ({self.old.rate:.1%} before it)"
            )

    def _failed(self, what: str) -> AgentFailure:
        return AgentFailure("soak-failed", f"release {self.commit[:7]} did not survive its soak: {what}")

    def _respawns(self) -> int:
        """How often the master had to start a worker again (uWSGI counts the first start too)."""
        stats = slots.read_stats(self.paths, self.instance, self.slot) or []
        return sum(max(0, entry.respawns - 1) for entry in stats)
