"""`lightship trace`: what is asked of the servers, what is put together, and which one is meant."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from lightship.errors import UsageError
from lightship.operations import trace as operations
from lightship.operations.deploy import Wanted, deploy
from lightship.operations.trace import Found, choose, merged, store_of
from lightship.rollout.events import Ended
from lightship.trace.recorder import Recorder
from lightship.trace.spans import Span, Trace
from lightship.trace.waits import critical, timing
from lightship_agent.records import replace
from support.fleet import NEW, OLD
from support.service_on_fleet import DOWN, Fleet, fleet


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def recorded_deploy(found: Fleet, commit: str = NEW) -> Trace:
    """A deploy as the command line does it, in the time of the simulation."""
    recorder = Recorder("deploy", 0.0, clock=lambda: asyncio.get_running_loop().time() if running else ends[0])
    recorder.describe("shop", "me@here", len(found.servers))
    context = replace(found.context, emit=recorder, parting=recorder.parting)
    running, ends = [True], [0.0]

    async def work() -> None:
        try:
            await deploy(context, Wanted(commit=commit, kind="code"), 0.0)
        finally:
            ends[0] = asyncio.get_running_loop().time()

    found.run(work)
    running.clear()
    return recorder.end()


def slow(**seconds: float) -> dict[str, Any]:
    return {"delay": lambda op: seconds.get(op, 0.1)}


def test_the_slowest_server_of_each_phase_is_what_a_deploy_waits_for(tmp_path: Path) -> None:
    found = fleet(
        tmp_path, 4, "rollout: {canary: 1, batch: 3}",
        web0=slow(verify=3.0), web1=slow(prepare=5.0), web2=slow(verify=2.0), web3=slow(),
    )  # fmt: skip
    trace = recorded_deploy(found)
    phases = [
        (part.above[1] if len(part.above) > 1 else part.span) for part in critical(trace.root)
        if len(part.above) == 2 or part.span.grade == "phase"
    ]  # fmt: skip
    longest = {(one.name, one.server) for one in phases if one.seconds > 1}
    assert longest == {("prepare", "web1"), ("verify", "web0"), ("verify", "web2")}
    assert sum(one.seconds for one in timing(trace).waits) == pytest.approx(trace.seconds)
    assert trace.outcomes == dict.fromkeys(found.context.names, "done")


def test_a_colleague_sees_the_deploy_that_the_servers_kept(tmp_path: Path) -> None:
    found = fleet(tmp_path, 3, web1=slow(prepare=5.0))
    made = recorded_deploy(found)
    seen = found.run(lambda: operations.traces(found.context))
    (one,) = seen.traces
    assert (one.id, one.who, one.outcome, one.commit, one.servers) == (made.id, "me@here", "done", NEW, 3)
    assert {span.server for span in one.root.walk()} == {"", "web0", "web1", "web2"}
    assert one.outcomes == made.outcomes
    assert {(s.server, s.name) for s in one.root.children if s.grade == "phase"} == {
        (s.server, s.name) for s in made.root.children if s.grade == "phase"
    }


def test_a_server_on_which_nothing_was_done_keeps_nothing() -> None:
    recorder = Recorder("deploy", 0.0)
    assert recorder.parting()("web0") is None, "there was no rollout"
    outcomes = {"web0": "nothing", "web1": "done", "web2": "skipped", "web3": "refused"}
    recorder(Ended("", "code", "main", NEW, OLD, "degraded", outcomes))  # type: ignore[arg-type]
    keep = recorder.parting()
    assert [keep(name) is not None for name in (*outcomes, "web4")] == [False, True, False, True, False]


def test_a_deploy_that_broke_is_known_where_it_was_made(tmp_path: Path) -> None:
    found = fleet(tmp_path, 2, web1=DOWN)
    recorder = Recorder("deploy", 0.0)
    recorder.describe("shop", "me@here", 2)
    store_of(found.context).keep(recorder.end("ssh-unreachable"))
    seen = found.run(lambda: operations.traces(found.context))
    assert list(seen.unasked) == ["web1"]
    assert [one.error for one in seen.traces] == ["ssh-unreachable"]


def span(server: str, name: str = "prepare", start: float = 1.0, end: float = 2.0) -> Span:
    return Span(name, start, end, server, "phase")


def trace(number: int, *spans: Span, commit: str = NEW, **more: Any) -> Trace:
    root = Span("deploy", 0.0, 3.0, grade="command", children=spans)
    return Trace(f"{number:032x}", "deploy", "shop", 1e9 + number, "me", root, "done", commit=commit, **more)


def test_each_server_adds_its_own_and_none_can_speak_for_another() -> None:
    connect = Span("connect", 0.0, 1.0, grade="stage", children=(span("a", "hello", 0, 1), span("b", "hello", 0, 9)))
    lies = trace(1, connect, span("a"), span("b", end=2.9), outcomes={"a": "done", "b": "degraded"})
    own = trace(1, replace(connect, children=(span("b", "hello", 0, 0.5),)), span("b"), outcomes={"b": "done"})
    (found,) = merged([], {"a": [lies], "b": [own]})
    assert found.root.children == (
        replace(connect, children=(span("b", "hello", 0, 0.5), span("a", "hello", 0, 1))),
        span("a"),
        span("b"),
    )
    assert found.outcomes == {"a": "done", "b": "done"}


def test_what_was_seen_here_goes_before_what_a_server_says() -> None:
    here = trace(1, span("a"), outcomes={"a": "done"}, servers=2)
    other = replace(trace(1, span("a", end=2.5), outcomes={"a": "degraded"}), who="somebody else", commit=OLD)
    (found,) = merged([here], {"a": [other]})
    assert found == here


LISTED = Found(
    "shop", (trace(0xABC3, commit="c" * 40), trace(0xABC2, commit="1" * 40), trace(0xABC1, commit="c" * 40)), {}
)


@pytest.mark.parametrize(
    ("wanted", "number"),
    [(None, 1), ("1", 1), ("3", 3), ("ccc", 1), ("11", 2), ("1111111", 2), (f"{0xABC1:032x}", 3), ("c" * 40, 1)],
)
def test_a_rollout_is_named_by_number_id_or_commit(wanted: str | None, number: int) -> None:
    assert choose(LISTED, wanted) == (number, LISTED.traces[number - 1])


@pytest.mark.parametrize("wanted", ["9", "ddd", "", "x", "../..", "--list", "\u0661\u0662", "c" * 65, "\x1b[2J"])
def test_what_names_none_is_refused_in_words(wanted: str) -> None:
    with pytest.raises(UsageError) as caught:
        choose(LISTED, wanted)
    assert caught.value.code == "no-trace"
    assert caught.value.message.isprintable()


def test_without_any_the_word_is_who_could_not_be_asked() -> None:
    with pytest.raises(UsageError, match="web1 could not be asked"):
        choose(Found("shop", (), {"web1": "no route"}), None)
