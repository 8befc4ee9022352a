"""Hears of everything that happens to some directories and the files in them, by inotify."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["Watch"]

# IN_ALL_EVENTS but IN_CLOSE_*: to be opened, read, written, changed, renamed, made or removed.
_MASK = 0x0001 | 0x0002 | 0x0004 | 0x0020 | 0x0040 | 0x0080 | 0x0100 | 0x0200 | 0x0400 | 0x0800
_HEAD = struct.Struct("iIII")
_libc = ctypes.CDLL(None, use_errno=True)


class Watch:
    """A context; afterwards ``events`` are what happened meanwhile, as (directory, name, mask)."""

    def __init__(self, *folders: Path) -> None:
        self._folders = folders
        self._names: dict[int, str] = {}
        self._fd = -1
        self.events: list[tuple[str, str, int]] = []

    def __enter__(self) -> Self:
        self._fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        for folder in self._folders:
            number = _libc.inotify_add_watch(self._fd, os.fsencode(folder), _MASK)
            if number < 0:
                raise OSError(ctypes.get_errno(), f"inotify_add_watch {folder}")
            self._names[number] = str(folder)
        return self

    def look(self) -> list[tuple[str, str, int]]:
        """What has happened so far."""
        while True:
            try:
                data = os.read(self._fd, 1 << 16)
            except BlockingIOError:
                return self.events
            while data:
                number, mask, _, length = _HEAD.unpack_from(data)
                name = data[_HEAD.size : _HEAD.size + length].rstrip(b"\0").decode("utf-8", "replace")
                self.events.append((self._names.get(number, "?"), name, mask))
                data = data[_HEAD.size + length :]

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.look()
        os.close(self._fd)
