"""In which order servers are changed, and how many of them may fail. Pure.

The first servers are the canary; they are watched for a soak of their own. The others follow in batches. A failed
canary ends the rollout; of the others as many may fail as the budget allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

from lightship_agent.records import dataclass

__all__ = ["Amount", "OnFailure", "Strategy"]

OnFailure = Literal["revert", "stop"]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Amount:
    """A number of servers, or a percentage of them."""

    value: int
    percent: bool = False

    @classmethod
    def parse(cls, text: int | str) -> Amount:
        """From a number, or from a text as ``25%``, both checked before."""
        words = str(text)
        return cls(int(words.removesuffix("%")), words.endswith("%"))

    def of(self, total: int) -> int:
        """So many of ``total`` servers; of a percentage the whole servers only."""
        return min(total, self.value * total // 100 if self.percent else self.value)


@dataclass(frozen=True, slots=True)
class Strategy:
    """How a rollout goes over its servers. As it stands: all at once, and no failure is borne."""

    canary: int = 0
    batch: Amount = Amount(100, percent=True)
    max_failures: Amount = Amount(0)
    on_failure: OnFailure = "revert"

    def canaries(self, total: int) -> int:
        """So many servers come first. A server that is the only one is no canary, since nobody comes after it."""
        return min(self.canary, total) if total > 1 else 0

    def batches(self, servers: Sequence[_T]) -> list[Sequence[_T]]:
        """The servers as they are changed together: the canary, if there is one, then batches."""
        first = self.canaries(len(servers))
        size = max(1, self.batch.of(len(servers)))
        found = [servers[:first]] if first else []
        return found + [servers[start : start + size] for start in range(first, len(servers), size)]

    def budget(self, total: int) -> int:
        """So many servers may fail; one more stops the rollout."""
        return self.max_failures.of(total)
