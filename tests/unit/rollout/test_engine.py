"""The phases over several servers, with agents that answer as they are told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from lightship.model import Change, Outcome, Plan, ServerResult
from lightship.rollout import Hello, Order, Rollout, Session, overall
from lightship.rollout.events import Event, PhaseStarted
from lightship.rollout.result import RolloutResult

OLD, NEW = "a" * 40, "b" * 40
HELLO = Hello(service="shop", root="/srv", container="shop", who="me", why="test", lock=True)
PLAN = Plan("code", NEW, ("code",), (), Change(NEW, live=OLD))


def worker(release: str) -> dict[str, Any]:
    return {"id": 1, "pid": 2, "release": release, "state": "serving", "time": 1.0}


def facts(current: str) -> dict[str, Any]:
    slots = {"0": {"release": current, "running": True, "workers": [worker(current)]}}
    return {"hostname": "h", "current": current, "stable": current, "slots": slots}


class Agent:
    """An agent in this process: both the channel and its transport. ``script`` holds what is out of the usual."""

    def __init__(self, server: str, script: Mapping[str, Any], asked: list[str]) -> None:
        self.server = server
        self.current = OLD
        self._script = dict(script)
        self._asked = asked
        self._answers: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def open(self) -> Agent:
        self._answers = asyncio.Queue()
        return self

    async def send(self, line: bytes) -> None:
        request = json.loads(line)
        op = request["op"]
        self._asked.append(f"{self.server}.{op}")
        found = self._script.pop(op, None)
        if found == "lost":
            self.current = self._script.get("ends with", self.current)
            self._answers.put_nowait(None)
        elif found == "hangs":
            return
        elif isinstance(found, dict):
            self._reply(request, {"error": {"code": "c", "message": "it failed", **found}})
        else:
            self._reply(request, {"result": found[0] if isinstance(found, list) else self._usual(op)})

    def _usual(self, op: str) -> dict[str, Any]:
        if op == "activate":
            self.current = NEW
        elif op == "revert":
            self.current = OLD
        usual = {
            "hello": {"facts": facts(self.current), "recovered": self._script.get("recovered")},
            "verify": {"workers": [worker(NEW)]},
            "revert": {"current": OLD},
        }
        return usual.get(op, {})

    def _reply(self, request: Mapping[str, Any], answer: dict[str, Any]) -> None:
        self._answers.put_nowait(json.dumps({"id": request["id"], **answer}).encode())

    async def receive(self) -> bytes | None:
        return await self._answers.get()

    async def close(self, patience: float) -> int | None:
        return 0 if patience else None

    def last_words(self) -> str:
        return ""


def roll(*scripts: Mapping[str, Any], cancel_at: str = "") -> tuple[tuple[ServerResult, ...], list[str], Rollout]:
    asked: list[str] = []

    async def go() -> tuple[tuple[ServerResult, ...], Rollout]:
        agents = [Agent(f"s{number}", script, asked) for number, script in enumerate(scripts)]
        sessions = [await Session(agent, HELLO, lambda _: None).open() for agent in agents]
        asked.clear()
        task = asyncio.current_task()
        asked_to_stop: list[Event] = []

        def emit(event: Event) -> None:
            if task and isinstance(event, PhaseStarted) and event.phase == cancel_at and not asked_to_stop:
                asked_to_stop.append(event)
                asyncio.get_running_loop().call_soon(task.cancel)

        rollout = Rollout([Order(one, PLAN, {"commit": NEW}) for one in sessions], emit)
        result = await rollout.run()
        await asyncio.gather(*(one.close() for one in sessions))
        return result, rollout

    result, rollout = asyncio.run(go())
    return result, asked, rollout


def outcomes(result: tuple[ServerResult, ...]) -> list[str]:
    return [one.outcome for one in result]


def test_all_prepare_before_one_activates() -> None:
    result, asked, _ = roll({}, {}, {})
    assert outcomes(result) == ["done"] * 3
    ops = [one.partition(".")[2] for one in asked]
    assert ops == ["prepare"] * 3 + ["activate"] * 3 + ["verify"] * 3 + ["commit"] * 3
    assert all(one.running == NEW for one in result)


@pytest.mark.parametrize("outcome", ["refused", "failed"])
def test_one_that_cannot_prepare_stops_all_with_nothing_changed(outcome: str) -> None:
    result, asked, _ = roll({}, {"prepare": {"outcome": outcome}}, {})
    assert outcomes(result) == ["aborted", "refused", "aborted"]
    assert not any(one.endswith("activate") for one in asked)
    assert sum(one.endswith("abort") for one in asked) == 3
    assert result[1].error is not None
    assert result[1].error.exit_status == 3
    assert all(one.running == OLD for one in result)


def test_one_that_fails_after_the_flip_takes_the_others_back() -> None:
    result, asked, _ = roll({}, {"verify": {"outcome": "reverted"}})
    assert outcomes(result) == ["reverted", "reverted"]
    assert "s0.revert" in asked
    assert "s1.revert" not in asked, "its agent went back by itself"
    assert all(one.running == OLD for one in result)


def test_a_worker_of_another_release_is_no_success() -> None:
    result, asked, _ = roll({"verify": [{"workers": [worker(NEW), worker(OLD)]}]})
    assert outcomes(result) == ["reverted"]
    assert "s0.revert" in asked


def test_no_worker_at_all_is_no_success() -> None:
    result, _, _ = roll({"verify": [{"workers": []}]})
    assert outcomes(result) == ["reverted"]


def test_a_way_back_that_fails_is_degraded() -> None:
    result, _, _ = roll({"verify": [{"workers": []}], "revert": {"outcome": "failed"}})
    assert outcomes(result) == ["degraded"]
    assert result[0].error is not None
    assert result[0].error.exit_status == 5


def test_an_agent_that_says_degraded_is_believed() -> None:
    result, asked, _ = roll({"verify": {"outcome": "degraded"}}, {})
    assert outcomes(result) == ["degraded", "reverted"]
    assert "s0.revert" not in asked


def test_a_connection_lost_while_preparing_is_a_refusal() -> None:
    result, _, _ = roll({"prepare": "lost"})
    assert outcomes(result) == ["refused"]


@pytest.mark.parametrize(("ends", "outcome"), [(NEW, "done"), (OLD, "reverted"), ("c" * 40, "degraded")])
@pytest.mark.parametrize("op", ["activate", "verify", "commit"])
def test_a_connection_lost_after_the_flip_is_looked_into(op: str, ends: str, outcome: str) -> None:
    result, asked, _ = roll({op: "lost", "ends with": ends})
    assert outcomes(result) == [outcome]
    assert asked.count("s0.hello") == 1
    assert result[0].running == ends


def test_a_connection_lost_right_before_the_flip_is_a_refusal() -> None:
    result, _, _ = roll({"activate": "lost", "ends with": OLD, "recovered": {"outcome": "aborted", "commit": NEW}})
    assert outcomes(result) == ["refused"]
    assert result[0].error is not None and result[0].error.exit_status == 3


def test_asked_to_stop_while_preparing_nothing_is_changed() -> None:
    result, asked, rollout = roll({"prepare": "hangs"}, {}, cancel_at="prepare")
    assert rollout.cancelled
    assert outcomes(result) == ["aborted", "aborted"]
    assert not any(one.endswith("activate") for one in asked)


@pytest.mark.parametrize("phase", ["activate", "verify", "commit"])
def test_asked_to_stop_after_the_barrier_it_finishes(phase: str) -> None:
    result, _, rollout = roll({}, {}, cancel_at=phase)
    assert rollout.cancelled
    assert outcomes(result) == ["done", "done"]


@pytest.mark.parametrize(
    ("each", "all_"),
    [
        ([], "nothing"),
        (["nothing", "nothing"], "nothing"),
        (["done", "nothing"], "done"),
        (["refused", "aborted"], "refused"),
        (["reverted", "reverted"], "reverted"),
        (["done", "reverted"], "degraded"),
        (["degraded", "reverted"], "degraded"),
    ],
)
def test_the_outcome_of_all_is_the_gravest_and_never_better_than_it_is(each: list[Outcome], all_: Outcome) -> None:
    assert overall(each) == all_


@pytest.mark.parametrize(("outcome", "status"), [("done", 0), ("nothing", 0), ("reverted", 4), ("degraded", 5)])
def test_the_exit_status_follows_from_the_outcome(outcome: Outcome, status: int) -> None:
    result = RolloutResult("shop", "main", "code", NEW, "", OLD, outcome, (), ())
    assert result.exit_status == status
