"""What is shown of many servers: while a rollout runs, and when somebody looks."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from lightship.model import Change, Container, Facts, HistoryEntry, Plan, ServerResult, Slot, Worker
from lightship.operations.drift import drift, expected_release
from lightship.output.live import FleetLines, FleetTable, FleetView
from lightship.output.words import Line, plan_lines, rollout_lines, status_lines
from lightship.result import Drift, PlanResult, ServerStatus, StatusResult
from lightship.rollout.events import BatchStarted, Event, Note, PhaseDone, PhaseStarted, PlanMade, StepStarted
from lightship.rollout.result import RolloutResult
from lightship_agent.records import replace

OLD, NEW = "a" * 40, "b" * 40
PLAN = Plan("code", NEW, ("1 file changed",), (), Change(NEW, live=OLD))


def text(lines: list[Line]) -> list[str]:
    return ["".join(piece for piece, _ in line).rstrip() for line in lines]


def rollout_events(count: int, failing: str = "") -> list[Event]:
    """The events of a rollout in which one server fails its verification."""
    names = tuple(f"web{number}" for number in range(count))
    found: list[Event] = [PlanMade(name, PLAN) for name in names]
    for phase in ("prepare", "activate", "verify"):
        if phase == "activate":
            found.append(BatchStarted("", 1, 1, names, canary=False))
        found += [PhaseStarted(name, phase) for name in names]  # type: ignore[arg-type]
        found += [PhaseDone(name, phase, 0.5, phase == "verify" and name == failing) for name in names]  # type: ignore[arg-type]
    return found


# --- while it runs -----------------------------------------------------------------------


def test_the_view_knows_where_each_server_is() -> None:
    view = FleetView(clock=lambda: 10.0)
    for event in rollout_events(3, failing="web1"):
        view(event)
    view(PhaseStarted("web1", "revert"))
    view(StepStarted("web1", "revert"))
    assert view.counts["verify"] == {"done": 2, "failed": 1, "at work": 0}
    assert view.phases == ["prepare", "activate", "verify", "commit", "revert"]
    assert view.rows["web1"].failed and view.rows["web1"].at_work and view.rows["web1"].step == "revert"
    assert view.summary("verify") == "2 done, 1 failed"


def drawn(count: int, height: int, events: list[Event]) -> str:
    table = FleetTable("shop", io.StringIO(), count)
    for event in events:
        table.view(event)
    console = Console(file=io.StringIO(), width=120, height=height, force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(table.table(console))
    return captured.get()


def test_the_table_has_a_row_a_server_and_a_column_a_phase() -> None:
    lines = drawn(3, 40, rollout_events(3, failing="web1")).splitlines()
    assert lines[0].split() == ["server", "prepare", "activate", "verify", "commit"]
    assert lines[2].split() == ["web1", "✓", "0.50", "s", "✓", "0.50", "s", "✗", "0.50", "s"]
    assert "batch 1 of 1" in lines[-1]


@pytest.mark.parametrize("height", [15, 24, 50])
def test_of_more_servers_than_the_screen_has_lines_it_shows_numbers_and_those_that_failed(height: int) -> None:
    shown = drawn(500, height, rollout_events(500, failing="web321"))
    assert len(shown.splitlines()) < height
    assert "500 servers" in shown and "499 done, 1 failed" in shown
    assert "web321" in shown


def test_names_from_outside_are_inert_in_the_table() -> None:
    assert "\x1b[2J" not in drawn(2, 40, [PlanMade("web\x1b[2J", PLAN), PlanMade("b", PLAN)])


def told(count: int, events: list[Event], *, verbose: bool = False) -> list[str]:
    stream = io.StringIO()
    progress = FleetLines("shop", stream, count, verbose=verbose)
    for event in events:
        progress(event)
    return stream.getvalue().splitlines()


def test_elsewhere_each_phase_of_each_server_is_a_line() -> None:
    lines = told(2, rollout_events(2, failing="web1"))
    assert "web0: prepared in 0.50 s" in lines
    assert "web0: verified in 0.50 s" in lines
    assert "web1: verify failed after 0.50 s" in lines


def test_of_very_many_servers_only_batches_failures_and_notes_are_lines() -> None:
    lines = told(500, [*rollout_events(500, failing="web321"), Note("web7", "left out")])
    assert lines[0].startswith("web0: bbbbbbb code deploy"), "the plan that all share, once"
    assert "shop: prepared: 500 done" in lines
    assert "web321: verify failed after 0.50 s" in lines and "web7: left out" in lines
    assert len(lines) == 5


# --- when somebody looks -------------------------------------------------------------------


def server(name: str, commit: str = NEW, *, loaded: str = "", image: str = "shop:1@1", env: str = "e1") -> ServerStatus:
    worker = Worker(1, 2, loaded or commit, "serving")
    facts = Facts(
        hostname=name,
        current=commit,
        stable=commit,
        container=Container("shop-1", running=True),
        slots={"0": Slot(commit, True, (worker,))},
        history=(HistoryEntry("1", "code", commit, "done", 2.0 if commit == NEW else 1.0, 1.0),),
    )
    return ServerStatus(name, facts.stable, facts.current, facts.loaded, facts, image=image, environment=env)


def looked(*servers: ServerStatus) -> StatusResult:
    return StatusResult("shop", "main", NEW, "", servers, expected_release(servers), drift(servers))


def test_servers_that_are_alike_do_not_differ() -> None:
    result = looked(server("web0"), server("web1"))
    assert (result.drift, result.exit_status, result.expected) == ((), 0, NEW)
    assert "all 2 servers run it" in text(status_lines(result))[0]


@pytest.mark.parametrize(
    ("odd", "what"),
    [
        (server("web2", OLD), ["on disk", "loaded"]),
        (server("web2", NEW, loaded=OLD), ["loaded"]),
        (server("web2", image="shop:1@2"), ["image"]),
        (server("web2", env="e2"), ["environment"]),
    ],
)
def test_what_differs_from_what_is_said_and_ends_with_5(odd: ServerStatus, what: list[str]) -> None:
    result = looked(server("web0"), server("web1"), odd)
    assert [(one.server, one.what) for one in result.drift] == [("web2", word) for word in what]
    assert result.exit_status == 5
    lines = text(status_lines(result))
    assert "1 of 3 servers differ" in lines[0]
    assert all(any(line.startswith(f"  web2: {word} is") for line in lines) for word in what)


def test_of_two_halves_the_latest_deployed_is_expected() -> None:
    assert looked(server("web0", OLD), server("web1", NEW)).expected == NEW


def test_a_server_that_cannot_be_reached_is_a_difference() -> None:
    away = ServerStatus("web1", None, None, (), None)
    result = looked(server("web0"), away)
    assert result.exit_status == 5
    assert any("web1" in line and "not reached" in line for line in text(status_lines(result)))


def test_of_very_many_servers_those_that_are_alike_are_one_line() -> None:
    servers = [server(f"web{number}") for number in range(3000)]
    servers[17] = server("web17", OLD)
    lines = text(status_lines(looked(*servers)))
    assert len(lines) < 12
    assert any(line.strip().startswith("2999 on disk bbbbbbb") for line in lines)
    assert any("web17" in line for line in lines)


def test_a_plan_that_servers_share_is_shown_once() -> None:
    other = replace(PLAN, kind="nothing", why=("live already",))
    result = PlanResult("shop", "main", NEW, "", "code", (("web0", PLAN), ("web1", other), ("web2", PLAN)))
    lines = text(plan_lines(result))
    assert "web0, web2 (2 servers)" in lines and "web1" in lines
    assert sum(line.startswith("code deploy") for line in lines) == 1


def test_a_rollout_that_left_servers_apart_names_them() -> None:
    servers = tuple(ServerResult(f"web{n}", "done", "code", NEW, OLD, NEW) for n in range(99))
    servers += (ServerResult("web99", "reverted", "code", NEW, OLD, OLD),)
    result = RolloutResult("shop", "main", "code", NEW, "", OLD, "degraded", (), servers)
    lines = text(rollout_lines(result))
    assert lines[0] == "  99 servers: done, run bbbbbbb"
    assert lines[-1] == "shop: bbbbbbb is not on all servers; aaaaaaa and bbbbbbb serve"


def test_a_difference_is_plain_in_json() -> None:
    from lightship.output.json import plain

    assert plain(Drift("web1", "image", "a", "b")) == {
        "server": "web1",
        "what": "image",
        "value": "a",
        "expected": "b",
    }


def test_the_live_table_takes_every_event_and_leaves_its_last_picture() -> None:
    stream = io.StringIO()
    with FleetTable("shop", stream, 3) as progress:
        for event in [*rollout_events(3, failing="web1"), Note("web1", "asking again")]:
            progress(event)
    shown = stream.getvalue()
    assert "web1: asking again" in shown
    assert "✗ 0.50 s" in shown
    assert shown.count("bbbbbbb code deploy") == 1
