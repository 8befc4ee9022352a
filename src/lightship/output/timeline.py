"""Where a command's time went, as lines of text: a timeline of bars, and what was waited for.

A bar is drawn full where the command waited for just that, and pale where it went on beside what was waited for; so it
can be read without colours, which say the phase.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from lightship.model import short
from lightship.operations.trace import Listed, TraceList, TraceResult
from lightship.output.text import printable
from lightship.output.words import Line, Piece, Style
from lightship.result import Timing
from lightship.trace.spans import Span, Trace
from lightship.trace.waits import WAITS, critical
from lightship_agent.records import dataclass

__all__ = ["Canvas", "list_lines", "terminal", "trace_lines"]

_LEAST_WIDTH, _MOST_WIDTH = 50, 160
_LABEL = 34
_SECONDS = 9
#: What took less is not drawn, unless it went wrong.
_TINY = 0.005
#: Of what many servers did so many rows are drawn, those that were waited for longest.
_ROWS = 12
_WRONG_SHOWN = 10
_COLOURS: Mapping[str, Style] = {
    "prepare": "name",
    "activate": "good",
    "verify": "warn",
    "commit": "dim",
    "revert": "bad",
}


@dataclass(frozen=True, slots=True)
class Canvas:
    """What is drawn on: so many columns wide; ``plain`` is without block characters."""

    width: int = 80
    plain: bool = False

    @property
    def full(self) -> str:
        """What a bar is drawn with."""
        return "#" if self.plain else "█"

    @property
    def pale(self) -> str:
        """The same, where nobody waited."""
        return "-" if self.plain else "░"


def terminal() -> Canvas:
    """Standard output: as wide as it is, and without what its encoding lacks."""
    columns = shutil.get_terminal_size((80, 24)).columns
    try:
        "█░".encode(sys.stdout.encoding or "utf-8")
        plain = False
    except UnicodeEncodeError:
        plain = True
    return Canvas(max(_LEAST_WIDTH, min(columns, _MOST_WIDTH)), plain)


class _Row(NamedTuple):
    """A span in the timeline."""

    depth: int
    span: Span
    style: Style
    waited: tuple[tuple[float, float], ...]


# --- one trace --------------------------------------------------------------------------------------------------------


def trace_lines(result: TraceResult, canvas: Canvas, *, whole: bool = False) -> list[Line]:
    """The timeline of one command, what it waited for, and how its servers compare."""
    trace = result.trace
    return [
        *_unasked(result.unasked),
        *_head(result.number, trace),
        [],
        *_timeline(trace.root, canvas, whole=whole),
        [],
        *_waited_for(result.timing, canvas),
        *_fleet(trace),
    ]


def _unasked(unasked: Mapping[str, str]) -> list[Line]:
    if not unasked:
        return []
    name, why = next(iter(unasked.items()))
    more = f" (and {len(unasked) - 1} more)" if len(unasked) > 1 else ""
    return [[("not asked: ", "warn"), (f"{printable(name, 100)}{more}: {printable(why, 200)}", "")]]


def _head(number: int, trace: Trace) -> list[Line]:
    what = f"{trace.kind} deploy" if trace.command == "deploy" and trace.kind not in ("", "nothing") else trace.command
    ended = trace.outcome or (f"ended by {trace.error}" if trace.error else "not ended")
    where = f" on {trace.servers} servers" if trace.servers > 1 else ""
    ref = f" of {printable(trace.ref, 60)}" if trace.ref and trace.ref != trace.commit else ""
    good = trace.outcome in ("done", "nothing")
    return [
        [
            (printable(trace.service, 60), "name"),
            (": ", ""),
            (f"{short(trace.commit)} " if trace.commit else "", "bold"),
            (f"{printable(what, 40)}{ref}, ", ""),
            (printable(ended, 80), "good" if good else "bad"),
            (f"{where} in ", ""),
            (f"{trace.seconds:.2f} s", "bold"),
        ],
        [(f"  rollout {trace.id[:8]} (number {number}), {_when(trace.began)}, {printable(trace.who, 60)}", "dim")],
    ]


def _when(moment: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))
    except (ValueError, OverflowError, OSError):
        return "at an unknown time"


def _timeline(root: Span, canvas: Canvas, *, whole: bool) -> list[Line]:
    several = len({span.server for span in root.walk()} - {""}) > 1
    rows = list(_rows(root, several=several, whole=whole))
    labels = [_label(row, several=several) for row in rows]
    wide = min(_LABEL, max(map(len, labels), default=0))
    room = max(10, canvas.width - wide - _SECONDS - 1)
    end = f"{root.seconds:.2f} s"
    lines: list[Line] = [[(" " * (wide + _SECONDS + 1) + "0" + end.rjust(room - 1), "dim")]]
    for row, label in zip(rows, labels, strict=True):
        text = label if len(label) <= wide else f"{label[: wide - 1]}…"
        style: Style = "bad" if row.span.state != "done" else ""
        mark = {"done": " ", "failed": "!", "cut": "?"}[row.span.state]
        bar = _bar(row, root, room, canvas)
        lines.append(
            [(f"{text:<{wide}}", style), (f"{row.span.seconds:{_SECONDS - 1}.2f}{mark} ", "dim"), (bar, row.style)]
        )
    return lines


def _label(row: _Row, *, several: bool) -> str:
    server = f" {printable(row.span.server, 20)}" if several and row.span.server and row.span.grade != "step" else ""
    return f"{'  ' * row.depth}{printable(row.span.name, 40)}{server}"


def _rows(root: Span, *, several: bool, whole: bool) -> Iterator[_Row]:
    waited: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for part in critical(root):
        for span in (*part.above, part.span):
            waited[id(span)].append((part.start, part.end))

    def inside(span: Span, depth: int, style: Style) -> Iterator[_Row]:
        for one in _worth(span.children, waited, several=several, whole=whole):
            colour = _COLOURS.get(one.name, style) if one.grade == "phase" else style
            yield _Row(depth, one, colour, tuple(waited[id(one)]))
            yield from inside(one, depth + 1, colour)

    yield from inside(root, 0, "")


def _worth(
    spans: Sequence[Span], waited: Mapping[int, Sequence[tuple[float, float]]], *, several: bool, whole: bool
) -> list[Span]:
    """What is drawn: all, but for what took no time, and what of many servers nobody waited for."""
    seen = [one for one in spans if one.seconds >= _TINY or one.state != "done"]
    if whole or not several:
        return seen
    waits = {id(one): sum(end - start for start, end in waited.get(id(one), ())) for one in seen}
    of_servers = [one for one in seen if one.server and one.grade != "step"]
    longest = sorted(of_servers, key=lambda one: -waits[id(one)])[:_ROWS]
    kept = {id(one) for one in longest if waits[id(one)] >= _TINY}
    return [one for one in seen if not one.server or one.grade == "step" or id(one) in kept]


def _bar(row: _Row, root: Span, room: int, canvas: Canvas) -> str:
    """The span's place in the whole; what is too short for a cell has one all the same."""
    scale = room / (root.seconds or 1.0)
    first = min(room - 1, int((row.span.start - root.start) * scale))
    last = max(first + 1, min(room, round((row.span.end - root.start) * scale)))
    cells = [canvas.pale] * (last - first)
    for start, end in row.waited:
        low = max(first, min(last - 1, int((start - root.start) * scale)))
        high = max(low + 1, min(last, round((end - root.start) * scale)))
        cells[low - first : high - first] = [canvas.full] * (high - low)
    return " " * first + "".join(cells)


def _waited_for(timing: Timing, canvas: Canvas) -> list[Line]:
    lines: list[Line] = [[("waited for", "name")]]
    whole = timing.seconds or 1.0
    wide = max((len(WAITS.get(one.what, one.what)) for one in timing.waits), default=0)
    room = max(10, canvas.width - wide - 20)
    for one in timing.waits:
        if one.seconds < _TINY:
            continue
        share = one.seconds / whole
        bar = canvas.full * round(share * room)
        name = WAITS.get(one.what, one.what)
        lines.append([(f"  {name:<{wide}}", ""), (f"{one.seconds:8.2f} s{share:5.0%}  ", "bold"), (bar, "dim")])
    for number, hint in enumerate(timing.shorter):
        lines.append([("  to shorten it: " if number == 0 else " " * 17, "dim"), (hint, "")])
    return lines


def _fleet(trace: Trace) -> list[Line]:
    """How the servers compare, phase by phase; those that went wrong by name."""
    if trace.servers <= 1:
        return []
    phases: dict[str, list[Span]] = defaultdict(list)
    for span in trace.root.children:
        if span.grade == "phase":
            phases[span.name].append(span)
    lines: list[Line] = [[], [("servers", "name")]]
    for name, spans in phases.items():
        slowest = max(spans, key=lambda one: one.seconds)
        median = sorted(one.seconds for one in spans)[len(spans) // 2]
        words = f"median {median:.2f} s, slowest {printable(slowest.server, 40)} {slowest.seconds:.2f} s"
        lines.append([(f"  {printable(name, 20):<10}", _COLOURS.get(name, "")), (f"{len(spans)} servers, {words}", "")])
    known = {span.server for span in trace.root.walk()} - {""}
    if len(known) < trace.servers:
        lines.append([(f"  of {len(known)} of {trace.servers} servers it is known", "dim")])
    wrong = [(name, one) for name, one in trace.outcomes.items() if one not in ("done", "nothing")]
    for name, outcome in wrong[:_WRONG_SHOWN]:
        lines.append([(f"  {printable(name, 40)}: ", ""), (outcome, "bad")])
    if len(wrong) > _WRONG_SHOWN:
        lines.append([(f"  and {len(wrong) - _WRONG_SHOWN} more", "dim")])
    return lines


# --- the list ---------------------------------------------------------------------------------------------------------


def list_lines(result: TraceList) -> list[Line]:
    """A line for each rollout of which there is a trace, the newest first."""
    lines = _unasked(result.unasked)
    if not result.traces:
        return [*lines, [("no deploys yet of which it is known where their time went", "dim")]]
    return [*lines, *map(_listed, result.traces)]


def _listed(one: Listed) -> Line:
    ended = one.outcome or one.error or "not ended"
    good = one.outcome in ("done", "nothing")
    outcome: Piece = (f" {printable(ended, 20):<9}", "good" if good else "bad")
    return [
        (f"{one.number:>3}", "name"),
        (f"  {one.id[:8]}  {_when(one.began)} ", "dim"),
        (f" {short(one.commit):<7}", "bold"),
        (f" {printable(one.command, 10):<8} {printable(one.kind, 10):<9}", ""),
        outcome,
        (f"{one.seconds:8.2f} s", ""),
        (f"  {printable(one.who, 40)}", "dim"),
    ]
