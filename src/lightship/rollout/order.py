"""What one server of a rollout is to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lightship.model import Plan
from lightship.rollout.session import Session

__all__ = ["Order"]


@dataclass(frozen=True, slots=True)
class Order:
    """What one server is to do: its plan, and the arguments for its agent. ``image`` makes the image, if any.

    ``back`` are the arguments of the ``prepare`` that leads back to what ran before, once the server has committed;
    ``None`` when nothing ran. ``finishes`` is how long an agent that is left alone after the flip may need.
    """

    session: Session
    plan: Plan
    prepare: Mapping[str, Any]
    image_op: str = ""
    image: Mapping[str, Any] = field(default_factory=dict)
    keep: int = 5
    back: Mapping[str, Any] | None = None
    finishes: float = 120.0

    @property
    def migrates(self) -> bool:
        """Whether this is the server on which the migrations run."""
        return self.prepare.get("migrate") is not None
