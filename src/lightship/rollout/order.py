"""What one server of a rollout is to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightship.model import Plan
from lightship.rollout.session import Session
from lightship_agent.records import dataclass, replace

__all__ = ["Order"]


@dataclass(frozen=True, slots=True)
class Order:
    """What one server is to do: its plan, and the arguments for its agent.

    ``back`` are the arguments of the ``prepare`` that leads back to what ran before, once the server has committed;
    ``None`` when nothing ran. ``finishes`` is how long an agent that is left alone after the flip may need.
    """

    session: Session
    plan: Plan
    prepare: Mapping[str, Any]
    keep: int = 5
    back: Mapping[str, Any] | None = None
    finishes: float = 120.0

    @property
    def needs_image(self) -> bool:
        """Whether a container is made here of an image that has to be ready: what is gone back to has its own."""
        container = self.prepare.get("container")
        return self.plan.replaces_container and container is not None and not container.get("stored")

    def with_image(self, reference: str, image_id: str) -> Order:
        """The same with the image that the container is to be made of."""
        container = {**(self.prepare.get("container") or {}), "image": reference, "image_id": image_id}
        return replace(self, prepare={**self.prepare, "container": container})

    @property
    def migrates(self) -> bool:
        """Whether this is the server on which the migrations run."""
        return self.prepare.get("migrate") is not None
