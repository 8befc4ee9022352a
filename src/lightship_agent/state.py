"""What the agent remembers of a service from one rollout to the next: one small file, replaced whole."""

from __future__ import annotations

import json

from lightship_agent.errors import AgentFailure
from lightship_agent.failpoints import fail_point, register
from lightship_agent.paths import ServicePaths
from lightship_agent.records import asdict, dataclass, replace
from lightship_agent.system import atomic_write, read_trusted

__all__ = ["ServiceState", "load_state", "save_state"]

register(
    state__save="the service's pointers are about to be written",
    state__saved="the service's pointers have been written",
)


@dataclass(frozen=True)
class ServiceState:
    """The service's pointers.

    ``stable`` is what a revert returns to, ``previous`` what a rollback goes to, ``instance`` the container that
    serves (0 when there is none yet), ``generation`` the last one that a slot was booted with.
    """

    stable: str | None = None
    previous: str | None = None
    instance: int = 0
    generation: int = 0

    def next_generation(self) -> ServiceState:
        """The state in which the next boot has a generation of its own."""
        return replace(self, generation=self.generation + 1)


def load_state(paths: ServicePaths) -> ServiceState:
    """The state as it was saved; a fresh one when the service is new here."""
    data = read_trusted(paths.state / "state.json", 64 * 1024)
    if data is None:
        return ServiceState()
    try:
        found = json.loads(data)
        return ServiceState(
            found.get("stable"), found.get("previous"), int(found["instance"]), int(found["generation"])
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise AgentFailure(
            "state-damaged",
            f"{paths.state / 'state.json'} cannot be read: {error}",
            hint="restore it from a backup, or move it away: the next deploy then starts the service anew",
        ) from None


def save_state(paths: ServicePaths, state: ServiceState) -> None:
    """Write the state, on the disk when this returns."""
    fail_point("state.save")
    atomic_write(paths.state / "state.json", json.dumps(asdict(state)).encode("utf-8"), 0o600)
    fail_point("state.saved")
