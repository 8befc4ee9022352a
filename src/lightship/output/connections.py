"""Kept connections as lines of text."""

from __future__ import annotations

from lightship.operations.connections import Closed, Connections
from lightship.output.text import printable
from lightship.output.words import Line

__all__ = ["closed_lines", "connections_lines"]


def connections_lines(found: Connections) -> list[Line]:
    """One line for each, and why some are not kept."""
    if not found.connections and not found.problems:
        return [[("no connection is kept", ""), (" (`keep_connected` in lightship.yml has them kept)", "dim")]]
    wide = max((len(printable(one.server, 60)) for one in found.connections), default=0)
    lines: list[Line] = []
    for one in found.connections:
        state = "in use" if one.in_use else f"{_time(one.seconds_left)} left"
        how_often = f"used {one.conversations} time{'' if one.conversations == 1 else 's'}"
        lines.append(
            [
                (f"{printable(one.server, 60):<{wide}}", "name"),
                (f"  {printable(f'{one.user}@{one.host}', 80)}", ""),
                (f"  {state}, {how_often}", "dim"),
            ]
        )
    for problem in found.problems:
        lines.append(
            [(printable(problem.server, 60), "name"), (" is not kept: ", ""), (printable(problem.message), "")]
        )
    return lines


def closed_lines(closed: Closed) -> list[Line]:
    """What was closed."""
    lines: list[Line] = [[(f"{closed.closed} connection{'' if closed.closed == 1 else 's'} closed", "")]]
    if closed.in_use:
        lines.append([(f"{closed.in_use} in use: closed when the command that uses it has ended", "dim")])
    return lines


def _time(seconds: float) -> str:
    minutes = int(seconds) // 60
    return f"{minutes} min" if minutes else f"{int(seconds)} s"
