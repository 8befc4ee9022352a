"""The agent measures with the monotonic clock: the wall clock, which may be stepped, is only written down."""

from __future__ import annotations

import ast
from pathlib import Path

import lightship_agent

# Where the time of day is asked, and what for.
RECORDED = {
    "boot/assets.py:sweep",  # how many days ago a file was of a release
    "actions.py:perform",  # when the work for a rollout began, for the history
    "boot/entry.py:is_closed",  # bounded by the monotonic clock as well
    "actions.py:_maintenance",  # since when visitors are turned away, to be shown
    "boot/entry.py:write",  # when an announcement was made
    "boot/launcher.py:announce_role",
    "boot/roles.py:announce",
    "boot/roles.py:say",
    "checks.py:_keep",  # the name of a kept log
    "journal.py:begin",
    "journal.py:doing",
    "journal.py:done",
    "journal.py:end",  # how long a rollout took, for the history
    "lock.py:_announce",  # since when the lock is held
    "release.py:_make_fresh",  # the time of files, which later ones are to be past
    "release.py:_move",
    "release.py:make",  # when a release was made, never before an older one
    "reload.py:touch",  # never before the last touch
    "rollout.py:activate",
    "setup.py:look",  # told, to be held against the clock here
    "rollout.py:prepare",  # part of a rollout's name
}


def test_no_decision_rests_on_the_time_of_day() -> None:
    folder = Path(lightship_agent.__file__).parent
    found = set()
    for path in folder.rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef) and any(
                isinstance(node, ast.Attribute)
                and node.attr in ("time", "time_ns", "now", "utcnow")
                and isinstance(node.value, ast.Name)
                and node.value.id in ("time", "datetime")
                for node in ast.walk(function)
            ):
                found.add(f"{path.relative_to(folder)}:{function.name}")
    assert found <= RECORDED, found - RECORDED
