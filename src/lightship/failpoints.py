"""Named places where a test makes the controller die, stop or fail: before and after each operation of an agent, and
around what the controller itself does on this machine.

They do nothing unless the environment holds LIGHTSHIP_TESTING=1, and LIGHTSHIP_FAILPOINTS names them, in the same words
as the agent's own (``lightship_agent.failpoints``): ``ask.activate=kill,answered.verify=error``; ``ask.hello=kill@2``
waits for the second time, and ``ask.hello=stop*1`` happens once. Both sides pass over the names that are not theirs.
"""

from __future__ import annotations

import os
import signal

from lightship.errors import TransportError
from lightship_agent.protocol import OPERATIONS

__all__ = ["FAIL_POINTS", "OWN", "answered", "ask", "fail_point"]

OWN = ("source.create", "source.fetch", "source.fetched", "source.pack", "source.remove")
"""The mirror on the controller: it is about to get its name; a fetch into it is about to run, and ended well; a pack is
about to be made; one that nobody has used for long has lost its name, and is about to lose its files."""

FAIL_POINTS = (*(f"{moment}.{op}" for op in OPERATIONS for moment in ("ask", "answered")), *OWN)
"""All of them; ``ask.<operation>`` is right before it is sent, ``answered.<operation>`` right after its answer came."""


_times: dict[str, int] = {}


def ask(op: str) -> None:
    """An operation is about to be sent."""
    fail_point(f"ask.{op}")


def answered(op: str) -> None:
    """An operation was answered."""
    fail_point(f"answered.{op}")


def fail_point(name: str) -> None:
    """Die, stop or fail here if the test said so."""
    if os.environ.get("LIGHTSHIP_TESTING") != "1":
        return
    if name not in FAIL_POINTS:
        raise LookupError(f"there is no fail point {name}")
    _times[name] = _times.get(name, 0) + 1
    for entry in os.environ.get("LIGHTSHIP_FAILPOINTS", "").split(","):
        point, _, words = entry.strip().partition("=")
        action, _, number = words.partition("@")
        action, _, limit = action.partition("*")
        due = _times[name] - int(number or 1)
        if point != name or due < 0 or (limit and due >= int(limit)):
            continue
        if action in ("kill", "stop"):
            os.kill(os.getpid(), signal.SIGKILL if action == "kill" else signal.SIGSTOP)
        elif action == "error":
            raise TransportError(f"the fail point {name} was hit", code="fail-point")
        else:
            raise LookupError(f"the fail point {name} has no action {action!r}")
