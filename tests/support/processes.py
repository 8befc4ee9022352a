"""Looks at the arguments of all processes of this machine, over and over, for words that are not to be there."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self

__all__ = ["ArgumentWatch"]

# A process's arguments change when it becomes another program, which it does at its start if at all.
_LOOKS = 100


class ArgumentWatch:
    """A context in which every process's arguments are read as often as one thread can.

    ``found`` are the lines that held one of the words. ``also_seen`` says which words of ``also`` were met: what the
    test knows to run meanwhile, so that a watch that sees nothing is told from one that has nothing to see.
    """

    def __init__(self, *words: str, also: Sequence[str] = ()) -> None:
        self._words = [word.encode() for word in words]
        self._also = [word.encode() for word in also]
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.found: list[str] = []
        self.also_seen: set[str] = set()
        self.rounds = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        looks: dict[str, int] = {str(os.getpid()): _LOOKS}
        while not self._end.wait(0.001):
            there = {name for name in os.listdir("/proc") if name.isdigit()}  # noqa: PTH208 - hundreds of times a second
            for gone in looks.keys() - there:
                del looks[gone]
            for name in there:
                looks[name] = looks.get(name, 0) + 1
                if looks[name] <= _LOOKS:
                    self._look(name)
            self.rounds += 1

    def _look(self, pid: str) -> None:
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:  # noqa: PTH123
                line = file.read()
        except OSError:
            return
        for word in self._words:
            if word in line:
                self.found.append(line.replace(b"\0", b" ").decode("utf-8", "replace")[:500])
        self.also_seen.update(word.decode() for word in self._also if word in line)
