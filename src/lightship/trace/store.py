"""The traces that are kept on this machine: the last ones of each service, a file each, for nobody else's eyes.

The servers keep them as well (``bye`` of the protocol). Here are also those of deploys that no server heard the end of:
because none could be reached, or since its agent was killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from lightship.cache import is_ours, user_directory
from lightship.trace.spans import Trace

__all__ = ["KEPT", "MOST_SERVICES", "Store", "state_directory"]

#: So many traces of a service are kept.
KEPT = 50
#: Of so many services.
MOST_SERVICES = 200
_LARGEST = 8 * 1024 * 1024
_NAME = re.compile(r"[0-9]{13}-[0-9a-f]{32}\.json", re.ASCII)


def state_directory() -> Path:
    """Where they lie: ``$XDG_STATE_HOME/lightship``, or ``~/.local/state/lightship``."""
    return user_directory("XDG_STATE_HOME", ".local/state")


class Store:
    """The traces of one service. ``place`` tells apart services of one name: the configuration and the stage."""

    def __init__(self, service: str, *place: str) -> None:
        digest = hashlib.sha256("\0".join((service, *place)).encode("utf-8", "surrogateescape")).hexdigest()
        self._service, self._digest = service, digest[:12]

    @classmethod
    def of(cls, service: str, configuration: Path, stage: str | None) -> Self:
        """The store of a service in a configuration, and in a stage of it."""
        return cls(service, str(configuration), stage or "")

    @property
    def directory(self) -> Path:
        """Where they lie. Raises ``RuntimeError`` when this user has no home."""
        return state_directory() / "traces" / f"{self._service}-{self._digest}"

    def keep(self, trace: Trace) -> bool:
        """Write a trace down, and remove those past retention. Whether it could be: a deploy is never worse for it."""
        try:
            directory = self.directory
            if not directory.is_dir():
                _make(directory)
            if not is_ours(directory):
                return False
            _write(directory, f"{int(trace.began * 1000):013d}-{trace.id}.json", trace)
            for name in _names(directory)[KEPT:]:
                with contextlib.suppress(FileNotFoundError):
                    (directory / name).unlink()
        except (OSError, RuntimeError):
            return False
        return True

    def traces(self) -> Iterator[Trace]:
        """Those that are there, newest first; what cannot be read is passed over."""
        try:
            directory = self.directory
            names = _names(directory) if is_ours(directory) else []
        except (OSError, RuntimeError):
            return
        for name in names:
            found = _read(directory / name)
            if found is not None:
                yield found


def _make(directory: Path) -> None:
    """Make a service's directory; of too many services those go that were not deployed for longest."""
    directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    others = sorted(directory.parent.iterdir(), key=lambda one: one.lstat().st_mtime, reverse=True)
    for old in others[MOST_SERVICES - 1 :]:
        for name in _names(old):
            (old / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # something else is in it
            old.rmdir()
    directory.mkdir(mode=0o700, exist_ok=True)


def _names(directory: Path) -> list[str]:
    return sorted((one.name for one in directory.iterdir() if _NAME.fullmatch(one.name)), reverse=True)


def _write(directory: Path, name: str, trace: Trace) -> None:
    """In one piece or not at all. It need not outlive a power cut, so nobody waits for the disk."""
    data = json.dumps(trace.as_dict(), separators=(",", ":"), allow_nan=False).encode("ascii")
    temporary = directory / f".{name}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        temporary.rename(directory / name)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _read(path: Path) -> Trace | None:
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
        return Trace.from_json(json.loads(data)) if len(data) <= _LARGEST else None
    except (OSError, ValueError, RecursionError):
        return None
