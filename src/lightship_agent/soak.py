"""The soak: a while in which a release that serves is watched before it counts as stable."""

import time
from typing import Any

from lightship_agent import slots
from lightship_agent.errors import AgentFailure

__all__ = ["soak"]

LOOK = 0.1


def soak(tools: Any, instance: int, container: str, slot: str, commit: str, seconds: float) -> None:
    """Watch the workers and the container for that long; raises ``AgentFailure`` (``soak-failed``) when one dies."""
    deadline = time.monotonic() + seconds
    first = tools.instances.engine.container(container)
    started = _respawns(tools.paths, instance, slot)
    while time.monotonic() < deadline:
        time.sleep(min(LOOK, max(0.0, deadline - time.monotonic())))
        found = tools.instances.engine.container(container)
        if found is None or not found.running or (first and found.restarts > first.restarts):
            memory = " (out of memory)" if found and found.oom_killed else ""
            raise AgentFailure("soak-failed", f"the container {container} ended during the soak{memory}")
        now = _respawns(tools.paths, instance, slot)
        if now > started:
            raise AgentFailure("soak-failed", f"{now - started} workers of release {commit[:7]} died during the soak")
    if not slots.read_slot(tools.paths, instance, slot).proven(commit, None, ("serving",)):
        raise AgentFailure("soak-failed", f"not every worker serves release {commit[:7]} after the soak")


def _respawns(paths: Any, instance: int, slot: str) -> int:
    """How often the master had to start a worker again (uWSGI counts the first start too)."""
    stats = slots.read_stats(paths, instance, slot) or []
    counts = [entry.get("respawn_count") for entry in stats]
    return sum(max(0, count - 1) for count in counts if isinstance(count, int))
