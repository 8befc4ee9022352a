"""The picture docs/images/fleet.svg: seconds against servers, both in powers of ten. Plain SVG, from kept results."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.common import ROOT, Figures, Report
from benchmarks.fleet_simulated import CPU_LIMIT

__all__ = ["PICTURE", "picture"]

PICTURE = ROOT / "docs" / "images" / "fleet.svg"
_WIDTH, _HEIGHT = 720, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 690, 30, 340
_LINES = (("rollout", "the rollout, as its delays were drawn", "#1f6feb"), ("cpu", "CPU of the controller", "#d1570a"))


def _x(servers: float, most: float) -> float:
    return _LEFT + (_RIGHT - _LEFT) * math.log10(servers) / max(math.log10(most), 1e-9)


def _y(seconds: float, low: int, high: int) -> float:
    return _BOTTOM - (_BOTTOM - _TOP) * (math.log10(seconds) - low) / (high - low)


def _text(x: float, y: float, words: str, anchor: str = "middle", colour: str = "#57606a") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{words}</text>'


def _grid(most: float, low: int, high: int) -> list[str]:
    lines = []
    for power in range(low, high + 1):
        y = _y(10.0**power, low, high)
        lines.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_RIGHT}" y2="{y:.1f}" stroke="#d0d7de"/>')
        lines.append(_text(_LEFT - 8, y + 4, f"{10.0**power:g} s", "end"))
    for power in range(round(math.log10(most)) + 1):
        x = _x(10.0**power, most)
        lines.append(f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{_BOTTOM}" stroke="#d0d7de"/>')
        lines.append(_text(x, _BOTTOM + 20, f"{10**power:,}"))
    return lines


def _line(samples: Sequence[Figures], name: str, colour: str, low: int, high: int) -> list[str]:
    most = max(float(one["servers"]) for one in samples)
    points = [(_x(float(one["servers"]), most), _y(float(one[name]), low, high)) for one in samples]
    drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>' for x, y in points]
    return [f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="2"/>', *dots]


def picture(report: Report) -> str:
    """The SVG of one report of ``fleet_simulated``."""
    samples = sorted(report.samples, key=lambda one: float(one["servers"]))
    values = [float(one[name]) for one in samples for name, _, _ in _LINES] + [CPU_LIMIT]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    most = max(float(one["servers"]) for one in samples)
    limit = _y(CPU_LIMIT, low, high)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        'font-size="13" role="img">',
        "<title>Time of a rollout against the number of servers</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        *_grid(most, low, high),
        f'<line x1="{_LEFT}" y1="{limit:.1f}" x2="{_RIGHT}" y2="{limit:.1f}" stroke="#d1570a" stroke-dasharray="6 4"/>',
        _text(_LEFT + 6, limit - 6, f"limit for the CPU time: {CPU_LIMIT:g} s", "start", "#d1570a"),
    ]
    for name, _, colour in _LINES:
        parts += _line(samples, name, colour, low, high)
    parts.append(_text((_LEFT + _RIGHT) / 2, _BOTTOM + 42, "servers"))
    for number, (_, words, colour) in enumerate(_LINES):
        y = _BOTTOM - 34 + 20 * number
        parts.append(f'<rect x="{_RIGHT - 270}" y="{y - 9}" width="18" height="4" fill="{colour}"/>')
        parts.append(_text(_RIGHT - 246, y - 2, words, "start", "#24292f"))
    return "\n".join([*parts, "</svg>"]) + "\n"
