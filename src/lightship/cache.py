"""The user's cache: what can be made anew at any time. Nobody else may write there, for some of it is run as root."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from lightship.errors import LightshipError

__all__ = ["cache_directory", "must_be_ours"]


def cache_directory() -> Path:
    """Where it lies: ``$XDG_CACHE_HOME/lightship``, or ``~/.cache/lightship``."""
    base = os.environ.get("XDG_CACHE_HOME")
    root = Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache"
    return root / "lightship"


def must_be_ours(directory: Path) -> None:
    """Refuse a directory that somebody else can write to."""
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise LightshipError(
            f"{directory} is not a directory that only you can write to",
            hint=f"run: chmod 700 {directory}, or set XDG_CACHE_HOME to a directory of your own",
        )
