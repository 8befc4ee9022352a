"""Static files of earlier releases: they stay served for a while, and are then removed, by the container itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from lightship_agent import TYPE_CHECKING
from lightship_agent.container import Container, exec_command
from lightship_agent.failpoints import fail_point, register
from lightship_agent.paths import CONTAINER_CODE
from lightship_agent.records import dataclass
from lightship_agent.system import Run

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from typing import Any

    Step = Callable[[str], AbstractContextManager[dict[str, Any]]]

__all__ = ["Assets", "sweep"]

register(assets__sweep="static files that no release of late had are about to be removed")

SECONDS = 120.0


@dataclass(frozen=True)
class Assets:
    """Where static files lie below the shared volume, and for how many seconds earlier ones stay."""

    directory: str
    seconds: float

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Assets:
        """From the journal."""
        return cls(str(found["directory"]), float(found["seconds"]))


def sweep(step: Step, container: Container, assets: Assets, run: Run) -> None:
    """Remove what is past its time. The container does it, where it may write; that it fails harms nobody."""
    fail_point("assets.sweep")
    command = [
        container.python,
        "-I",
        "-S",
        f"{CONTAINER_CODE}/boot/assets.py",
        assets.directory,
        f"{assets.seconds:g}",
    ]
    with step("assets") as detail:
        done = run(exec_command(container.name, "/", command, user=container.user), timeout=SECONDS)
        try:
            said = json.loads(done.out)
            detail.update(removed=int(said["removed"]), problem=str(said["problem"])[:300])
        except (ValueError, KeyError, TypeError):
            detail.update(problem=done.err.strip()[-300:] or "it said nothing")
