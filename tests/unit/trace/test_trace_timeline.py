"""Spans are made of what was noted of events, whatever an agent says of its steps."""

from __future__ import annotations

import itertools
import math
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightship.rollout.events import Ended, LogLine, PhaseDone, PhaseStarted, PlanMade, StepDone, StepStarted, Took
from lightship.trace.recorder import Mark, Recorder
from lightship.trace.spans import MOST_SERVERS, Span, Trace
from lightship.trace.timeline import spans_of
from lightship.trace.waits import critical, timing, waits


def outline(span: Span, depth: int = 0) -> list[str]:
    """The tree as lines."""
    where = f" on {span.server}" if span.server else ""
    state = "" if span.state == "done" else f" {span.state}"
    line = f"{'  ' * depth}{span.name}{where} {span.start:g}-{span.end:g}{state}"
    return [line, *(one for child in span.children for one in outline(child, depth + 1))]


def nested(span: Span) -> None:
    """Every span ends no sooner than it began, within the one around it, and both are numbers."""
    for one in span.walk():
        assert math.isfinite(one.start)
        assert math.isfinite(one.end)
        assert one.start <= one.end
        for child in one.children:
            assert one.start <= child.start
            assert child.end <= one.end


def adds_up(root: Span) -> None:
    """What was waited for covers the command's time, in order and without a gap."""
    parts = critical(root)
    assert sum(part.end - part.start for part in parts) == pytest.approx(root.seconds)
    for before, after in itertools.pairwise(parts):
        assert before.end == pytest.approx(after.start)
    assert sum(one.seconds for one in waits(root)) == pytest.approx(root.seconds)


DEPLOY = [
    Mark(10.1, "took", "", "python", 0.1),
    Mark(10.3, "took", "", "modules", 0.2),
    Mark(10.3, "step", "", "connect"),
    Mark(10.4, "took", "web1", "connection", 0.1),
    Mark(10.6, "took", "", "git host", 0.3),
    Mark(10.7, "took", "web1", "hello", 0.3),
    Mark(10.7, "step done", "", "connect", 0.4),
    Mark(10.7, "step", "web1", "fetch"),
    Mark(10.9, "step done", "web1", "fetch", 0.2),
    Mark(11.0, "took", "web1", "inspect", 0.3),
    Mark(11.0, "phase", "web1", "prepare"),
    Mark(11.0, "step", "web1", "boot"),
    Mark(11.5, "step done", "web1", "boot", 0.5, 0.3),
    Mark(11.5, "phase done", "web1", "prepare"),
    Mark(11.5, "phase", "web1", "verify"),
    Mark(11.5, "step", "web1", "soak"),
    Mark(12.0, "step done", "web1", "soak", 0.5),
    Mark(12.0, "phase done", "web1", "verify"),
]


def test_a_deploy_is_a_tree_of_what_it_did() -> None:
    root = spans_of(DEPLOY, 10.0, 12.1, "deploy")
    assert outline(root) == [
        "deploy 0-2.1",
        "  python 0-0.1",
        "  modules 0.1-0.3",
        "  connect 0.3-0.7",
        "    connection on web1 0.3-0.4",
        "    git host 0.3-0.6",
        "    hello on web1 0.4-0.7",
        "  inspect on web1 0.7-1",
        "    fetch on web1 0.7-0.9",
        "  prepare on web1 1-1.5",
        "    boot on web1 1-1.5",
        "      import on web1 1.2-1.5",
        "  verify on web1 1.5-2",
        "    soak on web1 1.5-2",
    ]
    adds_up(root)


def test_the_order_in_which_it_was_noted_says_nothing() -> None:
    mixed = DEPLOY[:]
    random.Random(1).shuffle(mixed)
    by_time = sorted(DEPLOY, key=lambda mark: mark.at)
    again = sorted(mixed, key=lambda mark: (mark.at, DEPLOY.index(mark)))
    assert spans_of(again, 10.0, 12.1, "deploy") == spans_of(by_time, 10.0, 12.1, "deploy")
    nested(spans_of(mixed, 10.0, 12.1, "deploy"))


def test_what_never_ended_is_cut_where_its_phase_ended() -> None:
    marks = [
        Mark(1.0, "phase", "web1", "prepare"),
        Mark(1.2, "step", "web1", "boot"),
        Mark(2.0, "phase failed", "web1", "prepare"),
        Mark(2.0, "phase", "web1", "activate"),
        Mark(2.5, "step", "web1", "flip"),
    ]
    assert outline(spans_of(marks, 1.0, 3.0, "deploy", failed=True)) == [
        "deploy 0-2 failed",
        "  prepare on web1 0-1 failed",
        "    boot on web1 0.2-1 cut",
        "  activate on web1 1-2 cut",
        "    flip on web1 1.5-2 cut",
    ]


def test_a_step_that_began_before_its_phase_is_cut_to_it() -> None:
    # A check that only warns runs beside everything, and is told of when the commit waits for it.
    marks = [
        Mark(1.0, "phase", "a", "verify"),
        Mark(2.0, "phase done", "a", "verify"),
        Mark(2.0, "phase", "a", "commit"),
        Mark(3.0, "step done", "a", "check slow", 2.9),
        Mark(3.0, "phase done", "a", "commit"),
    ]
    root = spans_of(marks, 0.0, 3.0, "deploy")
    assert outline(root)[-1] == "    check slow on a 2-3"
    assert {one.what: one.seconds for one in waits(root)}["checks"] == pytest.approx(1.0)


NUMBERS = st.one_of(st.floats(allow_nan=True, allow_infinity=True), st.integers(-(10**400), 10**400), st.floats(0, 20))
MARKS = st.builds(
    Mark,
    st.one_of(st.floats(0, 30), NUMBERS),
    st.sampled_from(["step", "step done", "step failed", "phase", "phase done", "phase failed", "took"]),
    st.sampled_from(["", "a", "b"]),
    st.sampled_from(["boot", "fetch", "connect", "prepare", "revert", "check x", "\x1b[2J", ""]),
    NUMBERS,
    NUMBERS,
)


@given(st.lists(MARKS, max_size=30), st.floats(0, 10), st.floats(0, 30))
def test_no_agent_can_break_the_tree(marks: list[Mark], began: float, ended: float) -> None:
    root = spans_of([mark for mark in marks if _a_time(mark.at)], began, ended, "deploy")
    nested(root)
    adds_up(root)
    assert all(one.seconds >= 0 for one in waits(root))


def _a_time(value: float) -> bool:
    # When something was heard of is this process's own clock.
    return isinstance(value, float) and math.isfinite(value)


def test_an_agent_that_tells_of_steps_without_end_costs_no_memory_without_end() -> None:
    marks = [Mark(1.0 + n / 1e6, "step done", "a", f"s{n}", 0.1) for n in range(5000)]
    assert sum(1 for _ in spans_of(marks, 0.0, 2.0, "deploy").walk()) <= 1001
    recorder = Recorder("deploy", 0.0)
    for _ in range(5000):
        recorder(StepDone("a", "x" * 10_000, 0.1, {"output": "y" * 10_000}))
    assert recorder.size < 2000


def test_the_recorder_passes_on_what_others_are_to_see_and_keeps_the_rest() -> None:
    moments = iter([1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0])
    recorder, shown = Recorder("deploy", 1.0, clock=lambda: next(moments)), []
    recorder.show = shown.append
    recorder.describe("shop", "me@here", 1)
    events = [
        StepStarted("web1", "tree"), Took("web1", "hello", 0.2), LogLine("web1", "stdout", "secret"),
        StepDone("web1", "tree", 0.5), PhaseStarted("web1", "prepare"),
        Ended("", "code", "main", "b" * 40, None, "done", {"web1": "done"}),
    ]  # fmt: skip
    for event in events:
        recorder(event)
    assert shown == [event for event in events if not isinstance(event, (Took, Ended))]
    trace = recorder.end()
    assert (trace.service, trace.who, trace.outcome, trace.kind, trace.servers) == (
        "shop",
        "me@here",
        "done",
        "code",
        1,
    )
    assert "secret" not in str(trace.as_dict())


def test_what_is_pushed_before_the_plan_is_code_and_after_it_an_image() -> None:
    recorder = Recorder("deploy", time.perf_counter())
    recorder(StepDone("a", "push", 0.1))
    recorder(PlanMade("a", None))  # type: ignore[arg-type]
    recorder(StepDone("a", "push", 0.1))
    assert [one.name for one in recorder.end().root.children] == ["send code", "push"]


def test_a_server_keeps_what_is_its_own_and_what_is_of_all() -> None:
    marks = [*DEPLOY, *(mark._replace(server="web2") for mark in DEPLOY if mark.server)]
    root = spans_of(marks, 10.0, 12.1, "deploy")
    trace = Trace("0" * 32, "deploy", "shop", 1.0, "me", root, "done", outcomes={"web1": "done", "web2": "done"})
    own = trace.by_server()("web2")
    assert {span.server for span in own.root.walk()} == {"", "web2"}
    assert own.outcomes == {"web2": "done"}
    assert spans_of([*(m for m in marks if m.server != "web1")], 10.0, 12.1, "deploy") == own.root


@pytest.mark.parametrize("count", [1, 100, 10_000])
def test_of_many_servers_the_telling_ones_are_kept(count: int) -> None:
    draw = random.Random(1)
    recorder = Recorder("deploy", 0.0, clock=lambda: now[0])
    now = [0.0]
    ends = {f"web{n}": 1.0 + draw.random() for n in range(count)}
    for name in ends:
        recorder(PhaseStarted(name, "prepare"))
    for name, now[0] in sorted(ends.items(), key=lambda item: item[1]):
        recorder(StepDone(name, "boot", now[0], {"import_seconds": 0.2}))
        recorder(PhaseDone(name, "prepare", now[0], failed=name == "web7"))
    recorder.describe("shop", "me", count)
    recorder(Ended("", "code", "main", "b" * 40, None, "done", dict.fromkeys(ends, "done")))
    began = time.process_time()
    trace = recorder.end()
    slowest = max(ends, key=lambda name: ends[name])
    kept = trace.reduced()
    took = time.process_time() - began
    assert took < 10
    names = {span.server for span in kept.root.walk()} - {""}
    assert len(names) == min(count, MOST_SERVERS)
    assert slowest in names
    assert ("web7" in names) is (count > 7)
    assert kept.servers == count
    # What the command waited for is told of the same, whether or not all are kept.
    assert timing(kept).waits == timing(trace).waits
    assert critical(trace.root)[-1].span.server == slowest
    adds_up(trace.root)
