"""A rollout over many servers: canary, batches, budget, and the way back. Whatever fails wherever."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightship.model import Change, Plan, ServerResult
from lightship.rollout import Amount, Hello, Order, Rollout, Session, Strategy, is_unreachable, overall
from lightship.rollout.events import BatchStarted, Event, PhaseStarted
from lightship.rollout.result import fleet_error
from support.fleet import NEW, OLD, Fault, SimulatedServer, run_virtually

HELLO = Hello(service="shop", root="/srv", container="shop", who="me", why="test", lock=True)
ALL = Amount(100, percent=True)


@dataclass
class Ended:
    """A rollout that is over, when its last agent has ended as well."""

    results: tuple[ServerResult, ...]
    servers: Sequence[SimulatedServer]
    events: list[Event]
    cancelled: bool

    @property
    def outcomes(self) -> list[str]:
        return [one.outcome for one in self.results]

    @property
    def runs(self) -> list[str | None]:
        return [one.current for one in self.servers]

    @property
    def overall(self) -> str:
        reached = [one.running for one in self.results if one.outcome != "skipped"]
        return overall([one.outcome for one in self.results], reached)

    @property
    def flipped(self) -> list[str]:
        return [one.server for one in self.servers if NEW in one.flips]


def order(session: Session, *, migrate: bool = False) -> Order:
    live = session.facts.current
    kind: Any = "nothing" if live == NEW else "code"
    prepare = {"commit": NEW, "migrate": {"command": ["migrate"]} if migrate else None}
    back = {"commit": live} if live else None
    return Order(session, Plan(kind, NEW, ("code",), (), Change(NEW, live=live)), prepare, back=back, finishes=300.0)


def roll(
    servers: Sequence[SimulatedServer],
    strategy: Strategy | None = None,
    *,
    skip: bool = False,
    migrate: bool = False,
    cancel_at: tuple[str, str] | None = None,
) -> Ended:
    """Roll NEW out; ``cancel_at`` is the server and phase at which somebody presses Ctrl-C."""
    events: list[Event] = []

    async def go() -> tuple[tuple[ServerResult, ...], bool]:
        task = asyncio.current_task()
        pressed: list[Event] = []

        def emit(event: Event) -> None:
            events.append(event)
            if isinstance(event, PhaseStarted) and (event.server, event.phase) == cancel_at and not pressed:
                pressed.append(event)
                assert task is not None
                asyncio.get_running_loop().call_soon(task.cancel)

        sessions = [await Session(one, HELLO, emit).open() for one in servers]
        orders = [order(one, migrate=migrate and number == 0) for number, one in enumerate(sessions)]
        rollout = Rollout(orders, emit, strategy, skip_unreachable=skip)
        found = await rollout.run()
        await asyncio.gather(*(one.bye() for one in sessions))
        # Agents that were cut off finish by themselves, with nobody to wait for them.
        await asyncio.sleep(1000)
        return found, rollout.cancelled

    (results, cancelled), _ = run_virtually(go)
    return Ended(results, servers, events, cancelled)


def fleet(count: int, **special: dict[str, Any]) -> list[SimulatedServer]:
    """``web0`` and so on; what is special of one is given by its name."""
    return [
        SimulatedServer(f"web{number}", delay=lambda op: 0.1, **special.get(f"web{number}", {}))
        for number in range(count)
    ]


BROKEN: dict[str, Any] = {"broken": frozenset({NEW})}

# --- the order ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "count", "sizes"),
    [
        (Strategy(), 5, [5]),
        (Strategy(canary=1), 1, [1]),
        (Strategy(canary=1), 5, [1, 4]),
        (Strategy(canary=1, batch=Amount(50, percent=True)), 2, [1, 1]),
        (Strategy(canary=1, batch=Amount(50, percent=True)), 10, [1, 5, 4]),
        (Strategy(canary=2, batch=Amount(3)), 10, [2, 3, 3, 2]),
        (Strategy(canary=9, batch=Amount(3)), 4, [4]),
        (Strategy(batch=Amount(1, percent=True)), 3, [1, 1, 1]),
    ],
)
def test_the_canary_comes_first_and_then_batches(strategy: Strategy, count: int, sizes: list[int]) -> None:
    assert [len(batch) for batch in strategy.batches(list(range(count)))] == sizes


@pytest.mark.parametrize(
    ("amount", "total", "many"), [("5%", 19, 0), ("5%", 20, 1), ("100%", 7, 7), (3, 2, 2), ("0%", 9, 0)]
)
def test_a_percentage_is_of_whole_servers(amount: str | int, total: int, many: int) -> None:
    assert Amount.parse(amount).of(total) == many


def test_all_have_prepared_before_the_canary_goes_live_and_it_has_passed_before_the_others_do() -> None:
    ended = roll(fleet(4), Strategy(canary=1, batch=Amount(2)))
    assert ended.overall == "done" and ended.runs == [NEW] * 4
    phases = [(one.phase, one.server) for one in ended.events if isinstance(one, PhaseStarted)]
    assert {phase for phase, _ in phases[:4]} == {"prepare"}
    live = [one for one in phases if one[0] in ("activate", "verify")]
    assert live[:2] == [("activate", "web0"), ("verify", "web0")]
    assert {server for _, server in live[2:6]} == {"web1", "web2"}
    batches = [one for one in ended.events if isinstance(one, BatchStarted)]
    assert [(one.number, one.servers, one.canary) for one in batches] == [
        (1, ("web0",), True),
        (2, ("web1", "web2"), False),
        (3, ("web3",), False),
    ]


def test_migrations_run_on_one_server_before_another_prepares() -> None:
    ended = roll(fleet(4), migrate=True)
    assert [one.migrated for one in ended.servers] == [1, 0, 0, 0]
    prepares = [number for number, one in enumerate(ended.events) if one == PhaseStarted("web0", "prepare")]
    others = [
        n
        for n, one in enumerate(ended.events)
        if isinstance(one, PhaseStarted) and one.server != "web0" and one.phase == "prepare"
    ]
    assert prepares[0] < min(others)


def test_migrations_that_fail_stop_all_before_another_server_prepares() -> None:
    ended = roll(fleet(3, web0={"fault": Fault("prepare", "refuse")}), migrate=True)
    assert ended.overall == "refused"
    assert all("prepare" not in one.asked for one in ended.servers[1:])


# --- failures ----------------------------------------------------------------------------


def test_a_canary_that_fails_ends_the_rollout_whatever_the_budget_and_no_other_server_is_touched() -> None:
    ended = roll(fleet(5, web0=BROKEN), Strategy(canary=1, max_failures=ALL))
    assert ended.flipped == ["web0"]
    assert ended.overall == "reverted" and ended.runs == [OLD] * 5
    assert ended.outcomes == ["reverted", *["aborted"] * 4]


def test_a_failure_past_the_budget_takes_back_all_that_were_changed() -> None:
    ended = roll(fleet(7, web4=BROKEN), Strategy(canary=1, batch=Amount(2)))
    assert ended.runs == [OLD] * 7
    assert set(ended.flipped) == {"web0", "web1", "web2", "web3", "web4"}
    assert ended.outcomes == [*["reverted"] * 5, *["aborted"] * 2]
    assert ended.overall == "reverted"


def test_a_failure_past_the_budget_leaves_them_when_asked_to_stop() -> None:
    ended = roll(fleet(6, web3=BROKEN), Strategy(canary=1, batch=Amount(2), on_failure="stop"))
    assert ended.runs == [NEW, NEW, NEW, OLD, NEW, OLD], "web4 was in the same batch"
    assert ended.overall == "degraded"
    assert [one.stable for one in ended.servers] == ended.runs, "what is left has been committed"


def test_a_failure_within_the_budget_goes_back_alone_and_the_result_says_that_servers_differ() -> None:
    ended = roll(fleet(5, web2=BROKEN), Strategy(canary=1, batch=Amount(1), max_failures=Amount(1)))
    assert ended.runs == [NEW, NEW, OLD, NEW, NEW]
    assert ended.outcomes == ["done", "done", "reverted", "done", "done"]
    assert ended.overall == "degraded"
    error = fleet_error(NEW, ended.results, "degraded")
    assert error is not None and error.exit_status == 5 and error.code == "servers-differ"
    assert "web2" in error.message and "aaaaaaa on web2" in error.message
    assert error.detail["servers"]["web2"] == OLD


def test_a_server_that_committed_alone_is_taken_back_as_by_a_rollback() -> None:
    cut = {"fault": Fault("verify", "cut after")}
    ended = roll(fleet(3, web0=cut, web2=BROKEN), Strategy(batch=Amount(1)))
    assert ended.servers[0].history[0]["outcome"] == "done", "its agent had finished by itself"
    assert ended.runs == [OLD] * 3
    assert ended.outcomes == ["reverted"] * 3


def test_servers_that_committed_are_taken_back_when_too_many_cannot() -> None:
    ended = roll(fleet(3, web1={"fault": Fault("commit", "fail")}))
    assert ended.runs == [OLD] * 3
    assert ended.overall == "reverted"


def test_a_server_that_cannot_go_back_is_told_of() -> None:
    ended = roll(fleet(3, web1={**BROKEN, "stuck": True}))
    assert ended.runs == [OLD, NEW, OLD]
    assert ended.outcomes == ["reverted", "degraded", "reverted"]
    assert ended.overall == "degraded"


# --- lost connections ----------------------------------------------------------------------


def test_a_network_that_comes_back_is_waited_for() -> None:
    ended = roll(fleet(2, web1={"fault": Fault("verify", "cut", down=20.0)}))
    assert ended.overall == "done" and ended.runs == [NEW] * 2


def test_a_server_that_stays_away_is_a_failure_and_nothing_is_claimed_of_it() -> None:
    ended = roll(fleet(3, web2={"fault": Fault("verify", "cut", down=1e6)}))
    assert ended.outcomes == ["reverted", "reverted", "degraded"]
    assert ended.results[2].running is None
    assert ended.overall == "degraded"


def test_a_server_that_comes_back_at_the_end_goes_the_way_of_the_others() -> None:
    slow = lambda op: 40.0 if op == "prepare" else 0.1  # noqa: E731
    servers = fleet(3, web2={"fault": Fault("verify", "cut", down=75.0)})
    for one in servers[:2]:
        one.delay = slow
    # Their way back takes a while, since they have committed: web2 is there again by then.
    servers[0].fault = Fault("verify", "cut after")
    ended = roll(servers)
    assert ended.runs == [OLD] * 3, ended.outcomes
    assert ended.outcomes == ["reverted"] * 3


def test_a_server_lost_between_its_preparing_and_its_turn_has_not_gone_live() -> None:
    ended = roll(fleet(2, web1={"fault": Fault("activate", "cut")}), Strategy(batch=Amount(1), max_failures=Amount(1)))
    assert ended.outcomes == ["done", "refused"]
    assert ended.overall == "degraded"


def test_one_that_cannot_be_reached_while_preparing_stops_all_with_nothing_changed() -> None:
    ended = roll(fleet(3, web1={"fault": Fault("prepare", "cut", down=1e6)}))
    assert ended.overall == "refused" and ended.flipped == []


def test_one_that_cannot_be_reached_is_skipped_when_asked_for_and_named() -> None:
    ended = roll(fleet(3, web1={"fault": Fault("prepare", "cut", down=1e6)}), skip=True)
    assert ended.outcomes == ["done", "skipped", "done"]
    assert is_unreachable(ended.results[1].error)
    assert ended.overall == "degraded", "nobody knows that the fleet runs one release"


def test_the_server_of_the_migrations_is_never_skipped() -> None:
    ended = roll(fleet(3, web0={"fault": Fault("prepare", "cut", down=1e6)}), skip=True, migrate=True)
    assert ended.overall == "refused" and ended.flipped == []


def test_a_server_that_was_skipped_is_brought_level_by_the_next_deploy() -> None:
    servers = fleet(3, web1={"fault": Fault("prepare", "cut", down=100.0)})
    roll(servers, skip=True)
    again = [SimulatedServer(one.server, one.current) for one in servers]
    ended = roll(again)
    assert ended.outcomes == ["nothing", "done", "nothing"]
    assert ended.overall == "done" and ended.runs == [NEW] * 3


# --- being asked to stop ---------------------------------------------------------------------


def test_asked_to_stop_in_the_middle_of_the_batches_it_goes_back_to_one_release() -> None:
    ended = roll(fleet(6), Strategy(canary=1, batch=Amount(2)), cancel_at=("web2", "verify"))
    assert ended.cancelled
    assert ended.flipped == ["web0", "web1", "web2"]
    assert ended.runs == [OLD] * 6
    assert ended.outcomes == [*["reverted"] * 3, *["aborted"] * 3]


def test_asked_to_stop_when_all_are_live_it_finishes() -> None:
    ended = roll(fleet(3), Strategy(canary=1), cancel_at=("web2", "verify"))
    assert ended.cancelled and ended.runs == [NEW] * 3 and ended.overall == "done"


# --- whatever fails wherever -----------------------------------------------------------------

FAULTS = st.builds(
    Fault,
    st.sampled_from(["prepare", "activate", "verify", "commit", "revert"]),
    st.sampled_from(["refuse", "fail", "cut", "cut after", "kill"]),
    st.sampled_from([0.0, 5.0, 90.0, 1e6]),
)
AMOUNTS = st.one_of(
    st.integers(1, 4).map(Amount), st.sampled_from([10, 34, 50, 100]).map(lambda one: Amount(one, percent=True))
)


@st.composite
def fleets(draw: st.DrawFn) -> list[SimulatedServer]:
    servers = []
    for number in range(draw(st.integers(1, 7))):
        pace = draw(st.sampled_from([0.01, 0.1, 3.0]))
        servers.append(
            SimulatedServer(
                f"web{number}",
                draw(st.sampled_from([OLD, OLD, OLD, NEW])),
                delay=lambda op, pace=pace: pace,  # type: ignore[misc]
                fault=draw(st.one_of(st.none(), st.none(), FAULTS)),
                broken=frozenset({NEW}) if draw(st.integers(0, 5)) == 0 else frozenset(),
                stuck=draw(st.integers(0, 9)) == 0,
            )
        )
    return servers


STRATEGIES = st.builds(
    Strategy,
    st.integers(0, 2),
    AMOUNTS,
    st.one_of(st.integers(0, 3).map(Amount), st.just(Amount(30, percent=True))),
    st.sampled_from(["revert", "stop"]),
)
CANCELS = st.one_of(
    st.none(),
    st.none(),
    st.tuples(
        st.integers(0, 6).map(lambda number: f"web{number}"),
        st.sampled_from(["prepare", "activate", "verify", "commit", "revert"]),
    ),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(servers=fleets(), strategy=STRATEGIES, skip=st.booleans(), cancel_at=CANCELS)
def test_whatever_fails_wherever(
    servers: list[SimulatedServer], strategy: Strategy, skip: bool, cancel_at: tuple[str, str] | None
) -> None:
    before = {one.server: one.current for one in servers}
    offline = {one.server for one in servers if one.fault is not None and one.fault.down >= 1e6}
    ended = roll(servers, strategy, skip=skip, cancel_at=cancel_at)
    _never_more_changed_than_the_budget_allows(ended, strategy, before)
    for one, result in zip(ended.servers, ended.results, strict=True):
        if one.rollout is None or one.server not in offline:
            assert one.rollout is None or result.outcome in ("degraded", "skipped"), "a rollout was left open"
        assert one.current in (before[one.server], NEW), "it runs one known release"
        if result.outcome in ("done", "nothing"):
            assert one.current == NEW
        elif result.outcome in ("reverted", "refused", "aborted"):
            assert one.current == before[one.server], (one.server, result)
        if result.running is not None and one.server not in offline:
            assert result.running == one.current, "the result tells the truth"
    _the_fleet_is_as_it_is_said_to_be(ended, strategy, before)


def _never_more_changed_than_the_budget_allows(ended: Ended, strategy: Strategy, before: dict[str, str | None]) -> None:
    """What has flipped belongs to the batches that were begun, and each but the last left room in the budget."""
    begun = [one for one in ended.events if isinstance(one, BatchStarted)]
    allowed = {server for batch in begun for server in batch.servers}
    assert set(ended.flipped) <= allowed
    failed = {one.server for one in ended.results if one.error is not None}
    todo = [one.server for one in ended.results if one.outcome not in ("nothing", "skipped")]
    budget = strategy.budget(len(todo))
    known = 0
    for batch in begun[:-1]:
        # One that was lost and came back well in the end is no failure in the result any more; none is too few.
        known += sum(1 for server in batch.servers if server in failed and not _failed_later(ended, server))
        assert known <= budget
        if batch.canary:
            assert not known


def _failed_later(ended: Ended, server: str) -> bool:
    """Whether a server was well when its batch had ended: it failed at the commit, or on its way back."""
    asked = next(one for one in ended.servers if one.server == server).asked
    return "commit" in asked or "revert" in asked


def _the_fleet_is_as_it_is_said_to_be(ended: Ended, strategy: Strategy, before: dict[str, str | None]) -> None:
    runs = set(ended.runs)
    if ended.overall in ("done", "nothing"):
        assert runs == {NEW}
    elif ended.overall in ("refused", "aborted", "skipped"):
        assert ended.runs == list(before.values()), "nothing was changed"
    elif ended.overall == "reverted":
        assert ended.runs == list(before.values()) and len(runs) == 1


def test_the_examples_would_notice_a_budget_that_is_not_kept() -> None:
    """The check of the property itself: a rollout that goes on past its budget is seen."""
    servers = fleet(3, web0=BROKEN)
    ended = roll(servers, Strategy(batch=Amount(1), max_failures=Amount(1)))
    with pytest.raises(AssertionError):
        _never_more_changed_than_the_budget_allows(ended, Strategy(batch=Amount(1)), dict.fromkeys("x"))
