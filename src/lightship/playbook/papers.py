"""What the tasks of one rollout know of each other's hosts: a file for each, in a directory of this user alone.

There is no secret in them. They are gone with the run of ``ansible-playbook``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lightship.errors import LightshipError, error_for
from lightship.model import Change, Kind, Outcome, Plan
from lightship_agent.records import asdict, dataclass, field, replace

__all__ = ["Paper", "Papers", "State"]

#: ``planned``: the agent is held, nothing more. ``nothing``: there is nothing to do. ``back``: it went back, or was
#: undone. ``over``: all is said, whatever became of it.
State = Literal["planned", "nothing", "prepared", "live", "back", "over", "failed", "unreachable"]
_OUTCOMES = {
    "UsageError": "usage",
    "ConfigurationError": "usage",
    "RefusedError": "refused",
    "TransportError": "refused",
    "RevertedError": "reverted",
    "DegradedError": "degraded",
    "LockedError": "locked",
}


@dataclass(frozen=True, slots=True)
class Paper:
    """One host of a rollout."""

    host: str
    state: State
    token: str = ""
    kind: Kind = "nothing"
    commit: str = ""
    before: str | None = None
    running: str | None = None
    outcome: Outcome = "aborted"
    activated: bool = False
    verified: bool = False
    migrates: bool = False
    keep: int = 5
    finishes: float = 120.0
    canary: bool = False
    back: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None
    image: Mapping[str, Any] | None = None
    """Where a container is made: what the server has under the image's name, and then the image that it is to be."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Of a rollback: the releases that are there, and the one before this."""

    @property
    def plan(self) -> Plan:
        """As much of the plan as there is to know of it later."""
        return Plan(self.kind, self.commit, (), (), Change(self.commit, live=self.before))

    @property
    def failure(self) -> LightshipError | None:
        """What went wrong, if something did."""
        return None if self.error is None else error_for(self.error)

    def failed(self, error: LightshipError | None, **more: Any) -> Paper:
        """The same with what went wrong, in words."""
        if error is None:
            return replace(self, error=None, **more)
        told = {**error.as_dict(), "outcome": _OUTCOMES.get(type(error).__name__, "failed")}
        return replace(self, error=json.loads(json.dumps(told, default=str)), **more)


class Papers:
    """All of a rollout's."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def _path(self, host: str) -> Path:
        # A host may be called anything.
        return self._folder / f"{host.encode().hex()}.json"

    def read(self, host: str) -> Paper | None:
        """What is known of a host; ``None`` when its turn has not come."""
        try:
            return Paper(**json.loads(self._path(host).read_text()))
        except FileNotFoundError:
            return None

    def write(self, paper: Paper) -> Paper:
        """Tell the others; nobody reads half of it."""
        path = self._path(paper.host)
        making = path.with_suffix(f".{os.getpid()}")
        making.write_text(json.dumps(asdict(paper)))
        making.replace(path)
        return paper

    def spool(self) -> Path:
        """Where an image lies on its way from one server to others."""
        return self._folder / "spooled.image"
