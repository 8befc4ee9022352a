"""What images are called. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightship_agent.records import dataclass

__all__ = ["Wanted", "built_name"]

_TAG_DIGITS = 16


def built_name(service: str, fingerprint: str, registry: str | None = None) -> str:
    """The name of a built image: the same inputs give the same name, so nothing is built twice."""
    return f"{registry or 'lightship'}/{service}:{fingerprint[:_TAG_DIGITS] or 'latest'}"


@dataclass(frozen=True, slots=True)
class Wanted:
    """The image that servers are to have: its name, and what it is built from; ``None`` for one built elsewhere.

    ``pushed`` says that a built one goes to its registry, and comes from there to the other servers.
    """

    name: str
    build: Mapping[str, Any] | None = None
    pushed: bool = False

    @property
    def pinned(self) -> bool:
        """Whether the name itself says which image it is, and no other."""
        return "@sha256:" in self.name
