"""Which tests begin first in a run by several processes: what takes longest, so that all of them end together.

A process takes the next file when it is done with one. A long one that begins last is what the others wait for.
"""

from __future__ import annotations

__all__ = ["LONGEST", "place", "scope"]

#: By how long they take, on the engine of a machine with two cores; all others come after them.
LONGEST = (
    "tests/engine/test_torture.py",
    "tests/fleet",
    "tests/engine/test_faults_releases.py",
    "tests/engine/test_registry.py",
    "tests/engine/test_wagtail.py",
    "tests/engine/test_deploy.py",
    "tests/engine/test_torture_ways.py",
    "tests/engine/test_faults_container.py",
    "tests/engine/test_proxy.py",
    "tests/engine/test_torture_proxy.py",
    "tests/engine/test_faults_git.py",
    "tests/engine/test_roles.py",
    "tests/engine/test_pool.py",
    "tests/engine/test_faults_disk.py",
    "tests/engine/test_reload_ways.py",
    "tests/engine/test_image.py",
    "tests/engine/test_hundred_commits.py",
)
#: What takes seconds: it fills the end.
_SHORT = ("tests/contract/", "tests/local/", "tests/unit/")


def scope(name: str) -> str:
    """What one process does, of a test by its name: its file, or all that needs the servers, which are started once."""
    file = name.partition("::")[0]
    return "tests/fleet" if file.startswith("tests/fleet/") else file


def place(name: str) -> int:
    """How early a test begins."""
    mine = scope(name)
    if mine in LONGEST:
        return LONGEST.index(mine)
    return len(LONGEST) + mine.startswith(_SHORT)
