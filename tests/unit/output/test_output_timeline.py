"""The timeline on a terminal: readable at 80 columns and without colour, and inert whatever servers say."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from lightship.operations.trace import Found, TraceResult, explained, listed
from lightship.output.timeline import Canvas, list_lines, trace_lines
from lightship.output.words import Line, timing_lines
from lightship.result import Timing, Wait
from lightship.trace.spans import Span, Trace
from lightship.trace.waits import timing
from lightship_agent.records import replace

GOLDEN = Path(__file__).parent / "golden"
NEW = "b" * 40


def text(lines: list[Line]) -> list[str]:
    return ["".join(piece for piece, _ in line).rstrip() for line in lines]


def step(name: str, start: float, end: float, server: str = "web1", *inner: Span, state: str = "done") -> Span:
    return Span(name, start, end, server, "step", state, inner)  # type: ignore[arg-type]


def phase(name: str, server: str, *steps: Span, state: str = "done", until: float | None = None) -> Span:
    end = steps[-1].end if until is None else until
    return Span(name, steps[0].start, end, server, "phase", state, steps)  # type: ignore[arg-type]


def stage(name: str, start: float, end: float, *inner: Span, server: str = "") -> Span:
    return Span(name, start, end, server, "stage", "done", inner)


DONE = Span("deploy", 0.0, 1.4, grade="command", children=(
    stage("python", 0.0, 0.03), stage("modules", 0.03, 0.2),
    stage("connect", 0.2, 0.4, stage("git host", 0.2, 0.38), stage("hello", 0.2, 0.32, server="web1")),
    stage("inspect", 0.4, 0.5, step("fetch", 0.4, 0.49), server="web1"),
    phase("prepare", "web1", step("tree", 0.5, 0.52), step("boot", 0.52, 0.85, "web1", step("import", 0.6, 0.85))),
    phase("activate", "web1", step("flip", 0.85, 0.853)),
    phase("verify", "web1", step("workers", 0.853, 0.87), step("health", 0.87, 0.88), step("soak", 0.88, 1.38)),
    phase("commit", "web1", step("commit", 1.38, 1.39)),
))  # fmt: skip
CUT = Span("deploy", 0.0, 3.0, grade="command", state="failed", children=(
    stage("connect", 0.0, 1.0, stage("hello", 0.0, 1.0, server="web1")),
    phase("prepare", "web1", step("boot", 1.0, 1.5)),
    phase("activate", "web1", step("flip", 1.5, 3.0, state="cut"), state="failed"),
))  # fmt: skip


def fleet(count: int) -> Span:
    """Servers that prepare at once and then go live in batches of two."""
    spans = [stage("connect", 0.0, 1.0, *(stage("hello", 0.0, 0.3 + n / 50, server=f"web{n}") for n in range(count)))]
    spans += [phase("prepare", f"web{n}", step("boot", 1.0, 2.0 + n / 20, f"web{n}")) for n in range(count)]
    at = max(one.end for one in spans)
    for n in range(count):
        start = at + n // 2
        ends = start + 0.6 + (n % 2) * 0.4
        name = f"web{n}"
        spans.append(phase("verify", name, step("soak", start, ends, name), state="failed" if n == 3 else "done"))
    return Span("deploy", 0.0, max(one.end for one in spans), grade="command", children=tuple(spans))


def shown(root: Span, **more: object) -> TraceResult:
    values: dict[str, object] = {"kind": "code", "ref": "main", "commit": NEW, "outcome": "done", "servers": 1, **more}
    who = str(values.pop("who", "me@here"))
    trace = Trace("0123456789abcdef" * 2, "deploy", "shop", 1700000000.0, who, root, **values)  # type: ignore[arg-type]
    return explained(Found("shop", (trace,), {}), None)


CASES = {
    "done": (shown(DONE), Canvas(80)),
    "plain": (shown(DONE), Canvas(80, plain=True)),
    "cut": (shown(CUT, outcome="degraded", outcomes={"web1": "degraded"}), Canvas(80)),
    "fleet": (
        shown(fleet(20), servers=25, outcome="degraded", outcomes={"web2": "done", "web3": "reverted"}), Canvas(100)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_timeline_is_as_it_was_drawn(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightship.output.timeline._when", lambda moment: "2023-11-14 22:13:20")
    result, canvas = CASES[name]
    assert text(trace_lines(result, canvas)) == (GOLDEN / f"timeline-{name}.txt").read_text("utf-8").splitlines()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("width", [50, 80, 160])
def test_no_line_is_wider_than_the_terminal(name: str, width: int) -> None:
    lines = text(trace_lines(CASES[name][0], Canvas(width)))
    wide = [line for line in lines if len(line) > width and "█" in line]
    assert wide == []
    if width >= 80:
        assert [line for line in lines if len(line) > width] == []


def test_without_block_characters_all_is_ascii() -> None:
    assert "\n".join(text(trace_lines(shown(fleet(20)), Canvas(80, plain=True)))).isascii()


@pytest.mark.parametrize("name", ["\x1b[2J", "\u202egnp", "x" * 5000, "a\nb", "\ud800"])
def test_what_servers_call_their_steps_is_inert(name: str) -> None:
    inner = (Span(name, 0.5, 1.0, name),)
    root = Span("deploy", 0.0, 2.0, children=(Span(name, 0.0, 1.0, name, "phase", "cut", inner),))
    result = shown(root, who=name, ref=name, servers=2, outcomes={name: "reverted"}, outcome="", error=name)
    for line in text(trace_lines(replace(result, unasked={name: name}), Canvas(80), whole=True)):
        assert all(unicodedata.category(character)[0] not in "C" for character in line)
        assert len(line) < 400


def test_of_ten_thousand_servers_a_screen_is_drawn() -> None:
    result = shown(fleet(10_000), servers=10_000)
    assert len(text(trace_lines(result, Canvas(80)))) < 60


def test_the_list_has_a_line_for_each() -> None:
    trace = CASES["done"][0].trace
    other = replace(trace, outcome="", error="git-ref-missing", commit=None, kind="", id="f" * 32)
    lines = text(list_lines(listed(Found("shop", (other, trace), {"web2": "no route"}))))
    assert lines[0] == "not asked: web2: no route"
    assert lines[1].split()[:2] == ["1", "ffffffff"] and "git-ref-missing" in lines[1]
    assert lines[2].split()[:2] == ["2", "01234567"] and "1.40 s" in lines[2]
    assert "no deploys yet" in text(list_lines(listed(Found("shop", (), {}))))[0]


# --- a deploy's last line ---------------------------------------------------------------------------------------------


def test_a_deploys_last_line_says_where_the_time_went_and_what_would_shorten_it() -> None:
    (line,) = text(timing_lines(timing(CASES["done"][0].trace)))
    assert line == (
        "1.40 s in all: soak 0.50, git host 0.27, import of the application 0.25, start of lightship 0.20, other 0.18; "
        "to shorten it: lower `soak:`, `--commit` (then the git host is not asked for the ref)"
    )


def test_of_a_quick_one_nothing_is_said() -> None:
    assert timing_lines(Timing("0" * 32, 0.3, (Wait("connection", 0.3),))) == []


@pytest.mark.parametrize(
    ("spans", "hints"),
    [
        ([stage("git host", 0.0, 1.0)], ("`--commit` (then the git host is not asked for the ref)",)),
        ([step("fetch", 0.0, 1.0)], ("`source: push` (servers then need not ask the git host)",)),
        ([step("fetch", 0.0, 1.0, "")], ()),
        ([step("check a", 0.0, 1.0)], ("`required: false` for checks that need not hold it up",)),
        ([step("build", 0.0, 1.0)], ("`lightship build` beforehand",)),
        ([stage("hello", 0.0, 1.0), step("migrate", 1.0, 2.0)], ()),
        ([step("soak", 0.0, 0.05)], ()),
        ([step("soak", 0.0, 0.5), stage("hello", 0.5, 90.0)], ()),
    ],
)
def test_only_what_was_long_and_can_be_shortened_is_worth_a_word(spans: list[Span], hints: tuple[str, ...]) -> None:
    root = Span("deploy", 0.0, spans[-1].end, children=tuple(spans))
    assert timing(replace(CASES["done"][0].trace, root=root)).shorter == hints
