"""Named places where a test makes the agent die, stop or fail.

They do nothing unless the environment holds LIGHTSHIP_TESTING=1, and LIGHTSHIP_FAILPOINTS names them:
``release.rename=kill,current.flip=error*1``. Actions: ``kill`` (SIGKILL to this process), ``stop`` (SIGSTOP),
``error`` (raises AgentFailure), and ``error*2`` (the first two times in this process).
"""

from __future__ import annotations

import os
import signal

from lightship_agent.errors import AgentFailure

__all__ = ["FAIL_POINTS", "fail_point", "register"]

FAIL_POINTS: dict[str, str] = {}
"""Every fail point that an imported module has, with what happens right after it."""

_times: dict[str, int] = {}


def register(**points: str) -> None:
    """Add fail points: ``register(fetch__start="...")`` adds ``fetch.start``."""
    FAIL_POINTS.update({name.replace("__", "."): text for name, text in points.items()})


def fail_point(name: str) -> None:
    """Die, stop or fail here if the test said so."""
    if os.environ.get("LIGHTSHIP_TESTING") != "1":
        return
    if name not in FAIL_POINTS:
        raise LookupError(f"the fail point {name} is not registered")
    for entry in os.environ.get("LIGHTSHIP_FAILPOINTS", "").split(","):
        point, _, action = entry.strip().partition("=")
        if point == name:
            _act(name, action)


def _act(name: str, action: str) -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif action.startswith("error"):
        limit = action.partition("*")[2]
        _times[name] = _times.get(name, 0) + 1
        if not limit or _times[name] <= int(limit):
            raise AgentFailure("fail-point", f"the fail point {name} was hit")
    else:
        raise LookupError(f"the fail point {name} has no action {action!r}")
