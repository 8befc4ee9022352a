"""Looks at a ``current`` link a thousand times a second, from a process of its own.

Every sample must find the link, and behind it a complete release. A release that is seen for the first time is
compared with its full list of files where one is given; later samples look for a few of its files.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.child import Child, report

KEPT_TIMES = 200


@dataclass(frozen=True)
class Observation:
    """What was seen of the link. Times are of the machine's monotonic clock."""

    samples: int
    missing: tuple[float, ...]
    missing_count: int
    incomplete: tuple[tuple[float, str, str], ...]
    targets: tuple[tuple[float, str], ...]
    longest_pause: float
    seconds: float

    @property
    def distinct(self) -> list[str]:
        """The releases that the link named, in order, each once."""
        return list(dict.fromkeys(target for _, target in self.targets))


class Observer:
    """Watches while the block runs; ``seen`` has what it saw."""

    def __init__(
        self,
        link: Path,
        *,
        require: Sequence[str] = (),
        trees: Mapping[str, Sequence[str]] | None = None,
        rate: float = 1000,
        seconds: float = 600,
    ) -> None:
        told = json.dumps(
            {"require": list(require), "trees": {name: list(tree) for name, tree in (trees or {}).items()}}
        )
        arguments = ["--link", str(link), "--rate", str(rate), "--seconds", str(seconds), "--what", told]
        self._child = Child("support.observer", arguments)
        self._seen: Observation | None = None

    def __enter__(self) -> Observer:
        self._child.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self.stop()
        else:
            self._child.kill()

    def stop(self) -> Observation:
        """Look no more, and say what was seen."""
        if self._seen is None:
            last = self._child.stop()[-1]
            self._seen = Observation(
                samples=last["samples"],
                missing=tuple(last["missing"]),
                missing_count=last["missing_count"],
                incomplete=tuple((when, target, what) for when, target, what in last["incomplete"]),
                targets=tuple((when, target) for when, target in last["targets"]),
                longest_pause=last["longest_pause"],
                seconds=last["seconds"],
            )
        return self._seen

    @property
    def seen(self) -> Observation:
        """What was seen."""
        return self.stop()


# --- the program in the child process ---------------------------------------------------------------------------------


class Watch:
    """The samples, and what was wrong with them."""

    def __init__(self, link: str, require: Sequence[str], trees: Mapping[str, Sequence[str]]) -> None:
        self.link = link
        self.parent = os.path.dirname(link)  # noqa: PTH120 - a thousand times a second
        self.require = tuple(require)
        self.trees = trees
        self.samples = 0
        self.missing: list[float] = []
        self.missing_count = 0
        self.incomplete: list[tuple[float, str, str]] = []
        self.targets: list[tuple[float, str]] = []
        self.last = ""

    def sample(self) -> None:
        """Look once."""
        now = time.monotonic()
        self.samples += 1
        try:
            target = os.readlink(self.link)  # noqa: PTH115
        except OSError:
            self.missing_count += 1
            if len(self.missing) < KEPT_TIMES:
                self.missing.append(now)
            return
        name = target.rpartition("/")[2]
        # Looked at through the name that was read, not through the link: it may have moved on in between.
        folder = f"{self.parent}/{target}"
        if target != self.last:
            self.last = target
            self.targets.append((now, name))
            self.compare(now, name, folder)
            return
        for needed in ("", *self.require):
            if not os.path.lexists(f"{folder}/{needed}"):
                self.wrong(now, name, f"missing {needed or 'folder'}")

    def compare(self, now: float, name: str, folder: str) -> None:
        """Hold a release that was not seen before against its list of files."""
        expected = self.trees.get(name)
        if expected is None:
            if not os.path.isdir(folder):  # noqa: PTH112
                self.wrong(now, name, "missing folder")
            return
        for needed in expected:
            if not os.path.lexists(f"{folder}/{needed}"):
                self.wrong(now, name, f"missing {needed}")

    def wrong(self, now: float, name: str, what: str) -> None:
        """Keep the first ones; a thousand more of the same tell nothing new."""
        if len(self.incomplete) < KEPT_TIMES:
            self.incomplete.append((now, name, what))


def main(arguments: Sequence[str] | None = None) -> int:
    """Watch until the input ends or the time is over, then report once."""
    parser = argparse.ArgumentParser(description="Watch a link.")
    parser.add_argument("--link", required=True)
    parser.add_argument("--rate", type=float, default=1000)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--what", default="{}")
    options = parser.parse_args(arguments)
    what: dict[str, Any] = json.loads(options.what)
    watch = Watch(options.link, what.get("require", ()), what.get("trees", {}))
    with contextlib.suppress(OSError):
        os.nice(-10)
    period = 1 / options.rate
    begin = previous = time.monotonic()
    due, longest = begin, 0.0
    watch.sample()
    report({"started": begin})
    while previous - begin < options.seconds:
        due += period
        pause = due - time.monotonic()
        if pause < -0.1:
            due = time.monotonic()
        if select.select([sys.stdin], [], [], max(0.0, pause))[0]:
            break
        watch.sample()
        now = time.monotonic()
        longest, previous = max(longest, now - previous), now
    report(
        {
            "samples": watch.samples,
            "missing": watch.missing,
            "missing_count": watch.missing_count,
            "incomplete": watch.incomplete,
            "targets": watch.targets,
            "longest_pause": longest,
            "seconds": time.monotonic() - begin,
        }
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
