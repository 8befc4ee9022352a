"""What the benchmarks share: promises and what was measured of them, figures, results as JSON, tables.

A single time says more about the machine than about lightship. So each promise is held as a ratio (or a difference)
against something that runs beside it: A B A B, in one run. One pair gives one ratio, and the median of those counts;
what else the machine did in one of the pairs does not.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

__all__ = [
    "MOST_PAIRS",
    "Figures",
    "Options",
    "Promise",
    "Report",
    "load_reports",
    "median",
    "ratios",
    "rows",
    "say",
    "scratch",
    "summary",
]

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
MOST_PAIRS = 99
Relation = Literal["at most", "exactly"]


class BenchmarkError(Exception):
    """A benchmark could not measure: that is no figure, and never a kept promise."""


@dataclass(frozen=True)
class Options:
    """How much to measure: ``quick`` is for trying out, ``full`` adds what is told of and not promised."""

    quick: bool = False
    full: bool = False

    def pairs(self, usual: int, quick: int) -> int:
        """So many pairs; never fewer than asked for unless quick."""
        return quick if self.quick else usual


@dataclass(frozen=True)
class Promise:
    """One promise and what was measured: ``value`` is to be at most (or exactly) ``limit``."""

    name: str
    value: float
    limit: float
    unit: str
    pairs: int
    relation: Relation = "at most"

    @property
    def kept(self) -> bool:
        """Whether it holds. What is not a number was not measured, and so was not kept."""
        if not math.isfinite(self.value):
            return False
        return self.value == self.limit if self.relation == "exactly" else self.value <= self.limit


Figures = dict[str, Any]
"""Figures that explain a promise: by way ("lightship", "by hand"), what was measured, as plain numbers."""


@dataclass(frozen=True)
class Report:
    """What one benchmark measured. ``figures`` are shown below its promises, ``samples`` are what they come from."""

    name: str
    title: str
    promises: Sequence[Promise]
    figures: Sequence[Figures] = ()
    samples: Sequence[Figures] = ()
    machine: Figures = field(default_factory=dict)
    quick: bool = False

    @property
    def kept(self) -> bool:
        """Whether all its promises hold; without one nothing was shown."""
        return bool(self.promises) and all(promise.kept for promise in self.promises)

    def as_json(self) -> str:
        """The results file's content: one sample a line, so that two runs can be compared by eye."""
        document = asdict(self)
        samples = document.pop("samples")
        head = json.dumps(document, indent=1, allow_nan=True)
        lines = ",\n".join(f"  {json.dumps(sample)}" for sample in samples)
        return f'{head[:-2]},\n "samples": [\n{lines}\n ]\n}}\n'

    @classmethod
    def from_json(cls, text: str) -> Report:
        """What ``as_json`` wrote."""
        found = json.loads(text)
        promises = tuple(Promise(**one) for one in found.pop("promises"))
        return cls(**{**found, "promises": promises})

    def save(self, folder: Path) -> Path:
        """Write the results file."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        path.write_text(self.as_json(), encoding="utf-8")
        return path


def load_reports(folder: Path, names: Sequence[str]) -> list[Report]:
    """The results that a folder holds, in the order of the names; those that are not there are left out."""
    paths = (folder / f"{name}.json" for name in names)
    return [Report.from_json(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]


# --- figures --------------------------------------------------------------------


def median(values: Sequence[float]) -> float:
    """The median; not a number when there is nothing to take it of, which no promise accepts."""
    return statistics.median(values) if values else math.nan


def ratios(ours: Sequence[float], others: Sequence[float]) -> list[float]:
    """The ratio of each pair. A pair without a usable time beside it is an error, and not left out."""
    found = []
    for mine, other in zip(ours, others, strict=True):
        if not (math.isfinite(mine) and math.isfinite(other) and other > 0):
            raise BenchmarkError(f"a pair that gives no ratio: {mine!r} against {other!r}")
        found.append(mine / other)
    return found


def machine_facts() -> Figures:
    """What of this machine matters to whoever reads the figures."""
    return {
        "cores": os.cpu_count() or 0,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "load": round(os.getloadavg()[0], 2),
    }


# --- tables ---------------------------------------------------------------------


def shown(value: float, unit: str) -> str:
    """A figure as it is read: seconds to the millisecond, ratios to the hundredth."""
    if not math.isfinite(value):
        return "not measured"
    if unit == "times":
        return f"{value:.2f} times"
    if unit == "s":
        return f"{value:.3f} s"
    return f"{value:g} {unit}".rstrip()


def rows(reports: Sequence[Report]) -> list[tuple[str, str, str, str, str]]:
    """Each promise as a row: what, promised, measured, pairs, ok or missed."""
    return [
        (
            one.name,
            f"{one.relation} {shown(one.limit, one.unit)}" if one.limit or one.unit == "s" else "none",
            shown(one.value, one.unit) if one.value or one.unit == "s" else "none",
            str(one.pairs),
            "ok" if one.kept else "missed",
        )
        for report in reports
        for one in report.promises
    ]


def summary(reports: Sequence[Report]) -> str:
    """All promises in one plain table, and the figures behind them."""
    lines = _aligned([("promise", "promised", "measured", "pairs", ""), *rows(reports)])
    for report in reports:
        if report.figures:
            names = list(report.figures[0])
            table = [tuple(names), *(tuple(cell(one.get(name)) for name in names) for one in report.figures)]
            lines += ["", f"{report.title} (medians)", *_aligned(table)]
    return "\n".join(lines)


def cell(value: object) -> str:
    """A figure in a table; times are in seconds throughout."""
    if isinstance(value, float):
        return f"{value:.3f}" if math.isfinite(value) else "-"
    return "-" if value is None else str(value)


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in table]


# --- the run --------------------------------------------------------------------


def say(text: str) -> None:
    """Tell how far it is, on standard error: standard output is for the table."""
    print(f"-- {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def scratch(name: str) -> Iterator[Path]:
    """A folder that is gone afterwards, whatever happened."""
    with tempfile.TemporaryDirectory(prefix=f"lightship-bench-{name}-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def of_way(samples: Sequence[Mapping[str, Any]], way: str, name: str) -> list[float]:
    """One figure of all samples of one way, in their order."""
    return [float(one[name]) for one in samples if one["way"] == way]
