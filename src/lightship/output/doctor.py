"""What ``lightship doctor`` found, as lines of text."""

from __future__ import annotations

from lightship.operations.doctor import DoctorResult
from lightship.output.text import printable
from lightship.output.words import Line, Style

__all__ = ["doctor_lines"]

_STYLES: dict[str, Style] = {"ok": "good", "warning": "warn", "wrong": "bad", "unknown": "dim"}


def doctor_lines(result: DoctorResult) -> list[Line]:
    """A line for each check, under its server."""
    lines: list[Line] = []
    server = ""
    for one in result.checks:
        if one.server != server:
            server = one.server
            lines.append([(printable(server), "name")])
        words = f"{printable(one.name, 40):<15} {printable(one.message)}"
        lines.append([(f"  {one.state:<8}", _STYLES[one.state]), (words, "")])
        if one.hint and one.state != "ok":
            lines.append([(" " * 26, ""), (printable(one.hint), "dim")])
    wrong = sum(one.state == "wrong" for one in result.checks)
    lines.append([(f"{wrong} wrong" if wrong else "nothing is wrong", "bad" if wrong else "good")])
    return lines
