"""The user's cache: what can be made anew at any time. Nobody else may write there, for some of it is run as root.

And how a directory of the user's is found and looked at, which goes for other ones as well.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from lightship.errors import LightshipError

__all__ = ["cache_directory", "is_ours", "must_be_ours", "user_directory"]


def cache_directory() -> Path:
    """Where it lies: ``$XDG_CACHE_HOME/lightship``, or ``~/.cache/lightship``."""
    return user_directory("XDG_CACHE_HOME", ".cache")


def user_directory(variable: str, usual: str) -> Path:
    """lightship's directory in that of a variable (an absolute path), or in the usual one below the user's home."""
    base = os.environ.get(variable)
    root = Path(base) if base and Path(base).is_absolute() else Path.home() / usual
    return root / "lightship"


def is_ours(directory: Path) -> bool:
    """Whether it is a directory that nobody else can write to."""
    status = directory.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022


def must_be_ours(directory: Path) -> None:
    """Refuse a directory that somebody else can write to."""
    if not is_ours(directory):
        raise LightshipError(
            f"{directory} is not a directory that only you can write to",
            hint=f"run: chmod 700 {directory}, or set XDG_CACHE_HOME to a directory of your own",
        )
