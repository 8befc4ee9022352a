"""A fleet in lines of text: a row a server while they fit on a screen, then groups of servers that are alike."""

from __future__ import annotations

from collections.abc import Sequence

from lightship.model import short
from lightship.output.text import printable
from lightship.output.words import Line, Piece, Style
from lightship.result import Drift, ServerStatus, StatusResult

__all__ = ["fleet_status_lines", "names_words"]

#: More servers than that are shown in groups.
ROWS = 40
_DRIFT_SHOWN = 40
_NAMES = 6
_DIGITS = 12
_HEAD = ("server", "on disk", "loaded", "image", "environment", "")


def names_words(names: Sequence[str], shown: int = _NAMES) -> str:
    """Servers by name, the first few of many."""
    words = ", ".join(printable(name, 100) for name in names[:shown])
    return f"{words} and {len(names) - shown} more" if len(names) > shown else words


def fleet_status_lines(result: StatusResult) -> list[Line]:
    """What several servers run: first all together in a line, then each, then what differs from what."""
    lines: list[Line] = [_title(result), []]
    lines += _table(result) if len(result.servers) <= ROWS else _groups(result)
    if result.drift:
        lines += [[], [("differs", "warn")]]
        lines += [_drift_line(one) for one in result.drift[:_DRIFT_SHOWN]]
        if len(result.drift) > _DRIFT_SHOWN:
            lines.append([(f"  and {len(result.drift) - _DRIFT_SHOWN} more; --json has all", "dim")])
    return lines


def _title(result: StatusResult) -> Line:
    count = len(result.servers)
    wrong = {one.server for one in result.drift} | {one.server for one in result.servers if one.problem}
    words: Piece = (
        (f"{len(wrong)} of {count} servers differ", "bad")
        if wrong
        else (f"all {count} servers run it", "good")
        if result.expected
        else ("nothing is deployed yet", "warn")
    )
    return [(result.service, "name"), (": ", ""), (short(result.expected), "bold"), (" is expected; ", ""), words]


def _cells(one: ServerStatus) -> tuple[str, ...]:
    if one.facts is None:
        return ("?", "?", "?", "?")
    loaded = ", ".join(short(commit) for commit in one.loaded) or "-"
    return short(one.on_disk), loaded, printable(one.image, 50) or "-", printable(one.environment, _DIGITS) or "-"


def _state(one: ServerStatus) -> Piece:
    if one.problem:
        return printable(one.problem, 120), "bad"
    return ("live", "good") if one.on_disk else ("nothing is deployed yet", "warn")


def _table(result: StatusResult) -> list[Line]:
    rows = [((printable(one.server, 60), *_cells(one)), _state(one)) for one in result.servers]
    widths = [max(len(row[column]) for row in [_HEAD, *(cells for cells, _ in rows)]) for column in range(5)]
    usual = short(result.expected)
    wrong = {(one.server, one.what) for one in result.drift}
    lines: list[Line] = [[("  ".join(text.ljust(width) for text, width in zip(_HEAD, widths, strict=False)), "dim")]]
    for (cells, state), one in zip(rows, result.servers, strict=True):
        pieces: list[Piece] = []
        for column, (text, width) in enumerate(zip(cells, widths, strict=True)):
            style: Style = "name" if column == 0 else "bad" if (one.server, _HEAD[column]) in wrong else ""
            style = "bold" if not style and text == usual else style
            pieces.append((f"{text:<{width}}  ", style))
        lines.append([*pieces, state])
    return lines


def _groups(result: StatusResult) -> list[Line]:
    """Servers that are alike in one line; what is particular is named below."""
    groups: dict[tuple[object, ...], list[ServerStatus]] = {}
    for one in result.servers:
        groups.setdefault((_cells(one), _state(one)), []).append(one)
    lines: list[Line] = []
    for members in sorted(groups.values(), key=len, reverse=True):
        disk, loaded, image, environment = _cells(members[0])
        lines.append(
            [
                (f"{len(members):>6} ", "bold"),
                (f"on disk {disk}, loaded {loaded}, image {image}, environment {environment}: ", ""),
                _state(members[0]),
                (f" ({names_words([one.server for one in members])})", "dim"),
            ]
        )
    return lines


def _drift_line(one: Drift) -> Line:
    return [
        (f"  {printable(one.server, 60)}: ", "name"),
        (f"{one.what} is {printable(one.value, 80)}", "bad"),
        (f", expected {printable(one.expected, 80)}", ""),
    ]
