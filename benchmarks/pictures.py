"""Pictures of the comparison: a deploy's requests over time, and all ways side by side. SVG, from kept results."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, Figures, Report, median, of_way

__all__ = ["BARS", "PHASES", "SIZES", "TIMELINE", "bars", "phases", "sizes", "timeline", "write"]

IMAGES = ROOT / "docs" / "images"
TIMELINE, BARS, SIZES = IMAGES / "timeline.svg", IMAGES / "comparison.svg", IMAGES / "sizes.svg"
PHASES = IMAGES / "phases.svg"
_OLD, _NEW, _FAILED = "#8c959f", "#1f6feb", "#cf222e"
_LIGHTSHIP = "lightship"
_SHOWN = (_LIGHTSHIP, "by hand, warm SSH", "by hand, chain reload", "image: build, push, pull, run")
_STALL_MS = 100
_LINE, _FAINT, _PHASE = "#24292f", "#d0d7de", "#57606a"
#: How a request was answered, its colour, and what it is called.
_ANSWERS = ((0, _OLD, "old version"), (1, _NEW, "new version"), (-1, _FAILED, "failed"))
#: A deploy's moments, their lines, and what they are called.
_MOMENTS: Sequence[tuple[str, Any, str]] = (("all_new", "-", "all new"), ("command", ":", "command ended"))


def _figure(rows: int, columns: int, width: float, height: float, **more: Any) -> tuple[Any, Any]:
    """A figure whose SVG is the same each time, with its text as text."""
    import matplotlib  # noqa: PLC0415 - only whoever draws waits for it

    matplotlib.use("svg")
    matplotlib.rcParams.update(
        {"svg.hashsalt": "lightship", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}
    )
    from matplotlib import pyplot  # noqa: PLC0415

    figure, axes = pyplot.subplots(rows, columns, figsize=(width, height), squeeze=False, **more)
    return figure, axes


def _svg(figure: Any) -> str:
    from matplotlib import pyplot  # noqa: PLC0415

    figure.tight_layout()
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


def timeline(report: Report) -> str:
    """Every request around one deploy by each way: when it was sent, how long it took, and which version answered."""
    samples = {str(one["way"]): one for one in report.samples if one.get("timeline")}
    shown = [samples[way] for way in _SHOWN if way in samples]
    figure, axes = _figure(len(shown), 1, 8, 1.75 * len(shown), sharex=True)
    for (axis,), sample in zip(axes, shown, strict=True):
        _requests(axis, sample)
    _legend(axes[0][0], shown)
    axes[-1][0].set_xlabel("seconds since the command was started")
    return _svg(figure)


def phases(report: Report) -> str | None:
    """One deploy of lightship's, with what it did when; ``None`` where no result tells."""
    sample = next((one for one in report.samples if one.get("phases") and one["way"] == _LIGHTSHIP), None)
    if sample is None:
        return None
    spans = [(str(name), float(start), float(end)) for name, start, end in sample["phases"]]
    figure, ((requests,), (bands,)) = _figure(2, 1, 8, 2.2 + 0.2 * len(spans), sharex=True, height_ratios=(1, 1))
    _requests(requests, sample)
    _legend(requests, [sample])
    for place, (_, start, end) in enumerate(spans):
        bands.barh(place, end - start, left=start, height=0.7, color=_PHASE)
    bands.set_yticks(range(len(spans)), [f"{name} {end - start:.2f} s" for name, start, end in spans], fontsize=8)
    bands.tick_params(axis="y", length=0)
    bands.invert_yaxis()
    bands.spines[["top", "right", "left"]].set_visible(False)
    bands.grid(axis="y", color=_FAINT, linewidth=0.8)
    bands.set_axisbelow(True)
    _moments(bands, sample)
    bands.set_xlabel("seconds since the command was started")
    return _svg(figure)


def _requests(axis: Any, sample: Figures) -> None:
    for kind, colour, _ in _ANSWERS:
        points = [(at, wait * 1000) for at, wait, which in sample["timeline"] if which == kind]
        if points:
            axis.scatter(*zip(*points, strict=True), s=6, color=colour, linewidths=0)
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set_ylim(1, 20_000)
    axis.set_ylabel("ms")
    axis.set_title(f"{sample['way']}: all new after {sample['all_new']:.2f} s", loc="left", fontsize=10)
    _moments(axis, sample)
    axis.axhline(_STALL_MS, color=_FAINT, linewidth=0.8, zorder=0)


def _moments(axis: Any, sample: Figures) -> None:
    """When the command was started, when all was new, and when the command ended."""
    for at, style in ((0.0, "-"), *((float(sample[name]), style) for name, style, _ in _MOMENTS)):
        axis.axvline(at, color=_LINE, linewidth=0.8, linestyle=style)


def _legend(axis: Any, samples: Sequence[Figures]) -> None:
    """One legend for all, above the first: beside no request, and with what there is in any of them."""
    from matplotlib.lines import Line2D  # noqa: PLC0415

    kinds = {which for sample in samples for _, _, which in sample["timeline"]}
    handles = [
        Line2D([], [], color=colour, marker="o", markersize=3, linestyle="none", label=label)
        for kind, colour, label in _ANSWERS
        if kind in kinds
    ] + [Line2D([], [], color=_LINE, linewidth=0.8, linestyle=style, label=label) for _, style, label in _MOMENTS]
    place = {"loc": "lower right", "bbox_to_anchor": (1, 1), "borderaxespad": 0.1}
    close = {"columnspacing": 1.2, "handletextpad": 0.4, "handlelength": 1.4}
    axis.legend(handles=handles, fontsize=8, frameon=False, ncols=len(handles), **place, **close)


def bars(report: Report) -> str:
    """All ways side by side: until all is new, the command, and the worst that a visitor saw."""
    deploys = [one for one in report.samples if one["kind"] == "deploy"]
    ways = list(dict.fromkeys(str(one["way"]) for one in deploys))[::-1]
    figure, axes = _figure(1, 3, 10, 0.42 * len(ways) + 1, sharey=True)
    for axis, (name, words) in zip(
        axes[0],
        (
            ("all_new", "until every response is new, s"),
            ("command", "the command, s"),
            ("worst", "the worst request meanwhile, s"),
        ),
        strict=True,
    ):
        values = [median(of_way(deploys, way, name)) for way in ways]
        colours = [_NEW if way.startswith(_LIGHTSHIP) else _OLD for way in ways]
        drawn = axis.barh(ways, values, color=colours)
        axis.bar_label(drawn, [_label(deploys, way, name, value) for way, value in zip(ways, values, strict=True)],
                       padding=2, fontsize=8)  # fmt: skip
        axis.set_title(words, fontsize=9, loc="left")
        axis.set_xlim(0, max(values) * 1.35)
        axis.spines[["top", "right"]].set_visible(False)
    return _svg(figure)


def _label(deploys: Sequence[Figures], way: str, name: str, value: float) -> str:
    failed = int(sum(of_way(deploys, way, "failed")) / max(1, len(of_way(deploys, way, "failed"))))
    return f"{value:.2f}" + (f", {failed} failed" if name == "worst" and failed else "")


def sizes(report: Report) -> str:
    """A deploy's time against the size of the repository, its history, the releases kept, the change, the import."""
    figure, ((flat, change, imports),) = _figure(1, 3, 10, 3.2)
    large = list(dict.fromkeys(str(one["of"]) for one in report.samples if one["of"] not in ("change", "import")))
    for offset, (way, colour) in enumerate((("small", _OLD), ("large", _NEW))):
        found = [
            median(of_way([one for one in report.samples if one["of"] == of], of if offset else "small", "seconds"))
            for of in large
        ]
        places = [place + 0.4 * offset for place in range(len(large))]
        flat.bar_label(flat.bar(places, found, 0.38, color=colour, label=way), fmt="%.2f", fontsize=8)
    flat.set_xticks([place + 0.2 for place in range(len(large))], large, fontsize=8)
    flat.set_title("a small service, and a large one, s", fontsize=9, loc="left")
    flat.legend(fontsize=8, frameon=False)
    for axis, of, words in ((change, "change", "files changed"), (imports, "import", "seconds of the import")):
        points = _points(report, of)
        axis.plot(*zip(*points, strict=True), color=_NEW, marker="o", markersize=4)
        axis.set_title(f"against {words}, s", fontsize=9, loc="left")
        axis.set_ylim(0)
    change.set_xscale("log")
    imports.plot([0, 2], [0, 2], color=_OLD, linewidth=0.8, linestyle=":", label="the import alone")
    imports.legend(fontsize=8, frameon=False)
    for axis in (flat, change, imports):
        axis.spines[["top", "right"]].set_visible(False)
    flat.set_ylim(0, flat.get_ylim()[1] * 1.25)
    return _svg(figure)


def _points(report: Report, of: str) -> list[tuple[float, float]]:
    """The number that each way is called by, and its median."""
    samples = [one for one in report.samples if one["of"] == of]
    ways = dict.fromkeys(str(one["way"]) for one in samples)
    numbers = {way: float(next(word for word in way.split() if word[0].isdigit())) for way in ways}
    return [(numbers[way], median(of_way(samples, way, "seconds"))) for way in ways]


_DRAWN: Mapping[str, Mapping[Path, Callable[[Report], str | None]]] = {
    "comparison": {PHASES: phases, TIMELINE: timeline, BARS: bars},
    "scale": {SIZES: sizes},
}


def write(report: Report) -> list[Path]:
    """Draw what there is of a report."""
    drawn = {path: draw(report) for path, draw in _DRAWN.get(report.name, {}).items()}
    for path, text in drawn.items():
        if text is not None:
            path.write_text(text, encoding="utf-8")
    return [path for path, text in drawn.items() if text is not None]
