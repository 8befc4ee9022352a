"""Mirrors that no command has used for long are removed from the user's cache. One that is wanted again is made anew.

The time of a mirror's lock file says when it was used, to the day. Whoever uses a mirror writes that down first, with
the lock shared; whoever removes one holds the lock alone and looks at the time again, and waits for nobody.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

from lightship.cache import is_ours
from lightship.failpoints import fail_point

__all__ = ["DAY", "find_unused", "is_older", "making", "remove", "remove_unused"]

DAY = 86400.0
_UNUSED = 90 * DAY
_LOCK = r"[0-9a-f]{32}\.lock"


def making(mirror: Path) -> Path:
    """Where a mirror lies that is not whole: one that is being made or removed."""
    return mirror.with_name(f".{mirror.name}.making")


def remove(folder: Path) -> None:
    """Remove a mirror, or what is left of one, if it is there."""
    import shutil  # noqa: PLC0415 - hardly ever

    if folder.exists():
        shutil.rmtree(folder)


def is_older(status: os.stat_result, seconds: float) -> bool:
    """Whether a file was last written longer ago than that."""
    return time.time() - status.st_mtime > seconds


def find_unused(folder: Path) -> list[Path]:
    """The mirrors in this folder that nobody has used for 90 days, by their locks. Only what is ours counts."""
    found = []
    with contextlib.suppress(OSError):
        for lock in folder.iterdir() if is_ours(folder) else ():
            mirror = lock.with_suffix(".git")
            if re.fullmatch(_LOCK, lock.name) and (_is_one(mirror) or _is_one(making(mirror))):
                with contextlib.suppress(OSError):
                    found += [lock] if is_older(lock.lstat(), _UNUSED) else []
    return found


def remove_unused(locks: Sequence[Path]) -> None:
    """Remove those mirrors, unless somebody uses them after all. What cannot be removed stays for the next time."""
    for lock in locks:
        with contextlib.suppress(OSError):
            _remove_if_unused(lock)


def _remove_if_unused(lock: Path) -> None:
    handle = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_older(os.fstat(handle), _UNUSED):  # still, now that nobody can begin to use it
            _remove(lock.with_suffix(".git"))
    finally:
        os.close(handle)


def _remove(mirror: Path) -> None:
    going = making(mirror)
    if _is_one(going):
        remove(going)
    if _is_one(mirror):
        mirror.rename(going)  # so that nothing half removed is ever taken for a mirror
        fail_point("source.remove")
        remove(going)


def _is_one(folder: Path) -> bool:
    """Whether it is a directory of ours, and what git makes; one that is being removed may have lost all of it."""
    try:
        return is_ours(folder) and (folder.name.startswith(".") or (folder / "HEAD").is_file())
    except OSError:
        return False
