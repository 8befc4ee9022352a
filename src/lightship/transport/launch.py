"""Launching the agent as a process of this machine, at once or ahead of the conversation with it.

It gets a session of its own: Ctrl-C at the terminal reaches the controller only, which decides what it means. It is a
plain ``Popen`` and not asyncio's own subprocess, which would kill the agent when the loop is closed; an agent past the
flip is to finish by itself.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from lightship.errors import LightshipError

__all__ = ["agent_environment", "ahead", "launch"]

#: What git sets for its hooks; with it, a deploy from a hook would work on the hook's repository.
_GIT_LOCATION = (
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_NAMESPACE",
    "GIT_PREFIX",
    "GIT_QUARANTINE_PATH",
)
_ahead: dict[tuple[str, str], subprocess.Popen[bytes]] = {}


def agent_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for the agent: this one, without what would point git at another repository."""
    return {name: value for name, value in environment.items() if name not in _GIT_LOCATION}


def ahead() -> None:
    """Start an agent before anybody asked for one; the first conversation takes it. If it cannot start, it does not."""
    from lightship.transport.zipapp import agent_file  # noqa: PLC0415

    with contextlib.suppress(OSError, LightshipError):
        agent = agent_file()
        _ahead[str(agent), sys.executable] = _popen(agent, sys.executable)


def launch(agent: Path, python: str) -> subprocess.Popen[bytes]:
    """The process of an agent; raises ``OSError``."""
    found = _ahead.pop((str(agent), python), None)
    return found if found is not None and found.poll() is None else _popen(agent, python)


def _popen(agent: Path, python: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [python, "-I", "-S", str(agent)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        cwd="/",
        start_new_session=True,
        env=agent_environment(os.environ),
    )
