"""The page docs/reference/benchmarks.md, from the results that were kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import ROOT, Report, cell, rows

PAGE = ROOT / "docs" / "reference" / "benchmarks.md"
TEXT = Path(__file__).with_name("page.md")
MARK = "<!-- results -->"
PHASES_MARK = "<!-- phases -->"
_PHASES = """\
![Every request around one deploy of lightship's, and what it did when](../images/phases.svg)

The bars below the requests are the phases of that very deploy, as `lightship trace` tells them.

"""
README = ROOT / "README.md"
BEGIN, END = "<!-- comparison: made by `python -m benchmarks --page` -->", "<!-- end of the comparison -->"
_COLUMNS = ("way", "command", "all new", "failed", "stalled", "worst", "CPU, all", "a broken commit")
_HEAD = (
    "way",
    "command s",
    "all new s",
    "failed",
    "held up over 0.1 s",
    "worst request s",
    "CPU s",
    "a commit that does not import",
)


def page(reports: Sequence[Report]) -> str:
    """The page: the text of page.md with the tables in their place."""
    told = any(sample.get("phases") for report in reports for sample in report.samples)
    text = TEXT.read_text(encoding="utf-8").replace(PHASES_MARK, _PHASES if told else "")
    return text.replace(MARK, tables(reports))


def tables(reports: Sequence[Report]) -> str:
    """All promises in one table, then the figures behind each."""
    if not reports:
        return "No results were kept yet: `make bench ARGS=--record` measures, and writes them here."
    blocks = [table([("promise", "promised", "measured", "pairs", ""), *rows(reports)])]
    for report in reports:
        if report.figures:
            names = list(report.figures[0])
            body = [tuple(cell(one.get(name)) for name in names) for one in report.figures]
            blocks.append(f"{report.title}, medians (times in seconds):\n\n{table([tuple(names), *body])}")
    one = reports[0].machine
    blocks.append(f"Measured on {one.get('cores')} cores with Python {one.get('python')}, Linux {one.get('kernel')}.")
    return "\n\n".join(blocks)


def table(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first line is its head."""
    head, *body = [[text.replace("|", "\\|") for text in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *body])


def readme(text: str, reports: Sequence[Report]) -> str:
    """The README with the comparison's table in its place."""
    found = next((one for one in reports if one.name == "comparison"), None)
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if found is None or not (begin and end):
        return text
    body = [tuple(_short(name, one.get(name)) for name in _COLUMNS) for one in found.figures]
    machine = found.machine
    rounds, cores, python = found.promises[0].pairs, machine.get("cores"), machine.get("python")
    where = (
        f"Medians of {rounds} rounds on {cores} cores, with Python {python}; "
        "failed and held up are of all rounds together."
    )
    return f"{head}{begin}\n{table([_HEAD, *body])}\n\n{where}\n{end}{tail}"


def _short(name: str, value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) and name != "way" else str(value)
