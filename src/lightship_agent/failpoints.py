"""Named places where a test makes the agent die, stop or fail.

They do nothing unless the environment holds LIGHTSHIP_TESTING=1, and LIGHTSHIP_FAILPOINTS names them:
``release.rename=kill,current.flip=error*1``. Actions:

- ``kill``: SIGKILL to the agent. Where a child of it does the work (``system.detached``) it is still the agent that is
  killed, and the child goes on, as in earnest; ``kill*1``: one agent is, those that come after it pass (they are told
  apart from it by LIGHTSHIP_FAILPOINTS_LOG, which must be set);
- ``kill-child``: SIGKILL to that child; nothing happens in the agent itself;
- ``stop``: SIGSTOP to this process;
- ``error``: raises AgentFailure; ``error*2``: the first two times in this process.

An action with ``@3`` behind it waits for the third time that this process comes by. LIGHTSHIP_FAILPOINTS_LOG names a
file that every point writes its name to, so that a test can see which points an operation has.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

from lightship_agent.errors import AgentFailure

__all__ = ["FAIL_POINTS", "fail_point", "in_child", "register"]

FAIL_POINTS: dict[str, str] = {}
"""Every fail point that an imported module has, with what happens right after it."""

_times: dict[str, int] = {}
_agent: list[int] = []


def register(**points: str) -> None:
    """Add fail points: ``register(fetch__start="...")`` adds ``fetch.start``."""
    FAIL_POINTS.update({name.replace("__", "."): text for name, text in points.items()})


@contextlib.contextmanager
def in_child(agent: int) -> Iterator[None]:
    """What is in the block runs in a child of the agent, whose process this is."""
    _agent.append(agent)
    try:
        yield
    finally:
        _agent.pop()


def fail_point(name: str) -> None:
    """Die, stop or fail here if the test said so."""
    if os.environ.get("LIGHTSHIP_TESTING") != "1":
        return
    if name not in FAIL_POINTS:
        raise LookupError(f"the fail point {name} is not registered")
    _write_down(name)
    _times[name] = _times.get(name, 0) + 1
    for entry in os.environ.get("LIGHTSHIP_FAILPOINTS", "").split(","):
        point, _, words = entry.strip().partition("=")
        action, _, number = words.partition("@")
        if point == name and _times[name] >= int(number or 1):
            _act(name, _for_all(name, action, int(number or 1)), _times[name] - int(number or 1) + 1)


def _for_all(name: str, action: str, number: int) -> str:
    """The action, or none when a limit that is for all processes together (``kill*1``) is reached."""
    kind, _, limit = action.partition("*")
    if kind != "kill" or not limit:
        return action
    with open(os.environ["LIGHTSHIP_FAILPOINTS_LOG"], encoding="utf-8") as log:
        passed = log.read().split().count(name)
    return kind if passed - number < int(limit) else ""


def _write_down(name: str) -> None:
    path = os.environ.get("LIGHTSHIP_FAILPOINTS_LOG")
    if path:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, f"{name}\n".encode())
        finally:
            os.close(descriptor)


def _act(name: str, action: str, times: int) -> None:
    if not action:
        return
    if action == "kill":
        # Once: the child goes on past this point, and no other process is to be hit for it.
        if not _agent:
            os.kill(os.getpid(), signal.SIGKILL)
        elif os.getppid() == _agent[-1]:
            os.kill(_agent[-1], signal.SIGKILL)
    elif action == "kill-child":
        if _agent:
            os.kill(os.getpid(), signal.SIGKILL)
    elif action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif action.startswith("error"):
        limit = action.partition("*")[2]
        if not limit or times <= int(limit):
            raise AgentFailure("fail-point", f"the fail point {name} was hit")
    else:
        raise LookupError(f"the fail point {name} has no action {action!r}")
