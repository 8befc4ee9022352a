"""What a command waited for: its time divided among the spans that it could not have ended without.

From the end backwards: at each moment it is asked what had just ended and so let the rest begin, then what was under
way. So of servers that prepare at once the slowest counts, and of what goes on at the same time what took longest. The
parts add up to the whole, since what no span covers counts for the span around it.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lightship.result import Timing, Wait
from lightship.trace.spans import Span, Trace

__all__ = ["WAITS", "Part", "critical", "shorter", "timing", "waits", "what_of"]

#: What may be waited for, in the words that people read.
WAITS = {
    "start": "start of lightship",
    "git": "git host",
    "connection": "connection",
    "lock": "another deploy",
    "code": "code to the servers",
    "image": "image",
    "container": "container",
    "checks": "checks",
    "migrations": "migrations",
    "import": "import of the application",
    "workers": "workers",
    "roles": "roles",
    "proxy": "proxy",
    "health": "health",
    "soak": "soak",
    "revert": "way back",
    "agent": "work on the servers",
    "other": "the rest",
}
_OF_STEPS = {
    "python": "start",
    "modules": "start",
    "configuration": "start",
    "git host": "git",
    "fetch": "git",
    "connect": "connection",
    "connection": "connection",
    "hello": "connection",
    "ssh": "start",
    "bye": "connection",
    "lock": "lock",
    "send code": "code",
    "tree": "code",
    **dict.fromkeys(("build", "push", "pull", "save", "load", "send"), "image"),
    **dict.fromkeys(("start", "drain", "try"), "container"),
    "migrate": "migrations",
    "import": "import",
    **dict.fromkeys(("boot", "workers"), "workers"),
    **dict.fromkeys(("roles", "rest"), "roles"),
    "proxy": "proxy",
    "health": "health",
    "soak": "soak",
    "revert": "revert",
    **dict.fromkeys(
        ("inspect", "prepare", "activate", "verify", "commit", "flip", "tidy", "assets", "recover", "abort"), "agent"
    ),
}
_CLOSE = 0.002
#: A hint is worth a line when what it is about took so many seconds, and so large a part of the whole.
_WORTH_SECONDS, _WORTH_SHARE = 0.1, 0.1
_HINTS = 2


class Part(NamedTuple):
    """A stretch of time that the command waited for ``span``, which lies in the spans ``above`` it."""

    span: Span
    start: float
    end: float
    above: tuple[Span, ...]


def critical(root: Span) -> list[Part]:
    """The stretches that make up the command's time, in order and without a gap."""
    found = list(_parts(root, root.start, root.end, ()))
    found.reverse()
    return found


def _parts(span: Span, low: float, high: float, above: tuple[Span, ...]) -> Iterator[Part]:
    """The stretches of a span between two times, the last one first."""
    at = high
    for child, start, end in _steps_back(span.children, low, high):
        if end < at:
            yield Part(span, end, at, above)
        yield from _parts(child, start, end, (*above, span))
        at = start
    if at > low:
        yield Part(span, low, at, above)


def _steps_back(spans: Sequence[Span], low: float, high: float) -> Iterator[tuple[Span, float, float]]:
    """From the end: the span that had just ended, or else one that was under way, or else the one that ended last."""
    by_end = sorted(spans, key=lambda one: one.end, reverse=True)
    under_way: list[tuple[float, int]] = []
    index, at = 0, high
    while at > low:
        while index < len(by_end) and by_end[index].end > at + _CLOSE:
            heapq.heappush(under_way, (by_end[index].start, index))
            index += 1
        while under_way and under_way[0][0] >= at:
            heapq.heappop(under_way)
        ended = by_end[index] if index < len(by_end) else None
        if ended is not None and (ended.end >= at - _CLOSE or not under_way):
            index += 1
            chosen = ended
        elif under_way:
            chosen = by_end[heapq.heappop(under_way)[1]]
        else:
            return
        start, end = max(chosen.start, low), min(chosen.end, at)
        if end > start:
            yield chosen, start, end
            at = start


def what_of(part: Part) -> str:
    """Which of ``WAITS`` a stretch counts for."""
    name = part.span.name
    if name.startswith("check "):
        return "checks"
    if any(one.name == "revert" and one.grade == "phase" for one in (part.span, *part.above)):
        return "revert"
    return _OF_STEPS.get(name, "other")


def waits(root: Span) -> tuple[Wait, ...]:
    """What the command waited for, the longest first."""
    total: dict[str, float] = defaultdict(float)
    for part in critical(root):
        total[what_of(part)] += part.end - part.start
    return tuple(Wait(what, seconds) for what, seconds in sorted(total.items(), key=lambda item: -item[1]))


def shorter(root: Span, found: Sequence[Wait]) -> tuple[str, ...]:
    """What would shorten the longest waits, in words; nothing for those that only the machine could."""
    names = {part.span.name for part in critical(root) if part.end - part.start >= _WORTH_SECONDS}
    words = {
        "soak": "lower `soak:`",
        "git": "`source: push` (servers then need not ask the git host)"
        if "fetch" in names and any(one.name == "fetch" and one.server for one in root.walk())
        else "`--commit` (then the git host is not asked for the ref)"
        if "git host" in names
        else "",
        "connection": "`keep_connected:` (the next command then finds its connections open)"
        if any(one.name == "ssh" for one in root.walk())
        else "",
        "import": "a faster import of the application (`python -X importtime`)",
        "checks": "`required: false` for checks that need not hold it up",
        "image": "`lightship build` beforehand",
        "roles": "lower `patience:` of the roles",
    }
    worth = [
        words.get(one.what, "")
        for one in found
        if one.seconds >= _WORTH_SECONDS and one.seconds >= _WORTH_SHARE * root.seconds
    ]
    return tuple(filter(None, worth))[:_HINTS]


def timing(trace: Trace) -> Timing:
    """Where a command's time went, for its result."""
    found = waits(trace.root)
    return Timing(trace.id, trace.seconds, found, shorter(trace.root, found))
