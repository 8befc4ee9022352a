"""Deploys and rollbacks of many servers, from the configuration to the result, with simulated servers."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any, TypeVar

import pytest

from lightship.errors import LightshipError, RefusedError, UsageError
from lightship.operations import deploy as deploys
from lightship.operations.deploy import Wanted
from lightship.operations.rolling import Rolling
from lightship_agent.records import replace
from support.fleet import BEFORE, NEW, OLD, Fault, SimulatedServer
from support.service_on_fleet import DOWN, Fleet, fleet

_T = TypeVar("_T")
MIGRATING = 'migrate: {command: ["migrate"]}'


def test_a_deploy_goes_over_the_servers_as_configured_and_as_told(tmp_path: Path) -> None:
    found = fleet(tmp_path, 10, "rollout: {canary: 2, batch: 4}")
    result = found.deploy()
    assert (result.outcome, result.exit_status, found.batches) == ("done", 0, [2, 4, 4])
    again = fleet(tmp_path, 10, "rollout: {canary: 2, batch: 4}")
    again.deploy(canary=0, batch="100%")
    assert again.batches == [10]


def test_unless_told_otherwise_one_goes_first_and_never_all_at_once(tmp_path: Path) -> None:
    found = fleet(tmp_path, 5)
    found.deploy()
    assert found.batches == [1, 2, 2]
    alone = fleet(tmp_path, 1)
    alone.deploy()
    assert alone.batches == [1]


def test_only_the_canary_has_a_soak_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soaks: dict[str, float] = {}

    class Looking(SimulatedServer):
        def told(self, args: dict[str, Any]) -> None:
            soaks[self.server] = args["soak"]

    servers = [Looking(f"web{number}") for number in range(3)]
    for one in servers:
        one.on_prepare = one.told
    Fleet(tmp_path, servers, "soak: 1").deploy(canary_soak=30.0)
    assert soaks == {"web0": 30.0, "web1": 1.0, "web2": 1.0}


def test_migrations_run_once_and_first(tmp_path: Path) -> None:
    found = fleet(tmp_path, 4, MIGRATING, web0={"current": NEW}, web1={"current": None})
    # web0 has nothing to do, so it is not the first one to be changed.
    result = found.run(lambda: deploys.deploy(found.context, Wanted(commit=NEW, kind="code"), 0.0))
    assert [one.migrated for one in found.servers] in ([1, 0, 0, 0], [0, 1, 0, 0])
    assert sum(any(step.name == "migrate" for step in plan.steps) for _, plan in result.plans) == 1


def test_a_server_that_is_down_stops_the_deploy_before_anything_changed(tmp_path: Path) -> None:
    found = fleet(tmp_path, 3, web1=DOWN)
    with pytest.raises(RefusedError) as caught:
        found.deploy()
    assert caught.value.exit_status == 3
    assert "web1" in caught.value.message and "--skip-unreachable" in caught.value.hint
    assert found.runs == [OLD] * 3
    assert all("prepare" not in one.asked for one in found.servers)


def test_a_server_that_is_down_can_be_left_out_and_is_named_and_brought_level_later(tmp_path: Path) -> None:
    found = fleet(tmp_path, 3, web1={"fault": Fault("open", "cut", down=50.0)})
    result = found.deploy(skip_unreachable=True)
    assert found.runs == [NEW, OLD, NEW]
    assert (result.outcome, result.exit_status) == ("degraded", 5)
    assert [one.outcome for one in result.servers] == ["done", "skipped", "done"]
    assert result.error is not None and "web1" in result.error.message
    later = Fleet(tmp_path, [SimulatedServer(one.server, one.current) for one in found.servers])
    wanted = Wanted(commit=NEW, rolling=Rolling())
    planned = later.run(lambda: deploys.plan(later.context, replace(wanted, kind=None)))
    assert {server for server, plan in planned.plans if plan.kind != "nothing"} >= {"web1"}


def test_all_that_are_down_cannot_be_left_out(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="2 of 2 servers"):
        fleet(tmp_path, 2, web0=DOWN, web1=DOWN).deploy(skip_unreachable=True)


def test_a_server_that_somebody_else_is_changing_is_not_left_out(tmp_path: Path) -> None:
    found = fleet(tmp_path, 2, web1={"fault": Fault("hello", "refuse")})
    with pytest.raises(LightshipError, match="web1"):
        found.deploy(skip_unreachable=True)


def test_a_failure_within_the_budget_is_told_with_status_5(tmp_path: Path) -> None:
    found = fleet(tmp_path, 4, web2={"broken": frozenset({NEW})})
    result = found.deploy(max_failures="25%", batch="1")
    assert found.runs == [NEW, NEW, OLD, NEW]
    assert result.exit_status == 5
    assert result.error is not None and result.error.code == "servers-differ"


def test_a_failure_past_the_budget_ends_on_one_release_with_status_4(tmp_path: Path) -> None:
    found = fleet(tmp_path, 4, web2={"broken": frozenset({NEW})})
    result = found.deploy(batch="1")
    assert found.runs == [OLD] * 4
    assert result.exit_status == 4


def test_a_rollback_goes_where_most_servers_were_before_and_has_no_canary(tmp_path: Path) -> None:
    found = fleet(tmp_path, 4)
    for one in found.servers:
        one.current, one.stable, one.previous = NEW, NEW, OLD
    found.servers[0].current, found.servers[0].stable, found.servers[0].previous = OLD, OLD, BEFORE
    result = found.rollback(batch="100%")
    assert (result.outcome, found.runs) == ("done", [OLD] * 4)
    assert result.servers[0].outcome == "nothing"
    assert found.batches == [3]


@pytest.mark.parametrize("option", [{"batch": "0"}, {"batch": "101%"}, {"max_failures": "-1"}, {"batch": "a" * 999}])
def test_a_wrong_number_of_servers_is_refused_before_a_server_hears_of_it(
    tmp_path: Path, option: dict[str, str]
) -> None:
    found = fleet(tmp_path, 2)
    with pytest.raises(UsageError):
        found.deploy(**option)
    assert all(not one.asked for one in found.servers)


def test_each_server_is_in_the_result(tmp_path: Path) -> None:
    from lightship.output.json import envelope

    found = fleet(tmp_path, 3, web2={"broken": frozenset({NEW})})
    result = found.deploy(max_failures="1", canary=0)
    document = json.loads(json.dumps(envelope("deploy", result, error=result.error, exit_status=result.exit_status)))
    servers = document["result"]["servers"]
    assert [(one["server"], one["outcome"], one["running"]) for one in servers] == [
        ("web0", "done", NEW),
        ("web1", "done", NEW),
        ("web2", "reverted", OLD),
    ]
    assert document["exit_status"] == 5 and not document["ok"]


def test_more_servers_than_the_machine_allows_files_are_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 109))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    found = fleet(tmp_path, 4)
    with pytest.raises(UsageError, match="4 servers at once need 112 open files"):
        found.deploy()
    assert all(not one.asked for one in found.servers)
    assert fleet(tmp_path, 3).deploy().outcome == "done"
    assert asked == [(109, 109)]


def test_an_interrupted_rollout_that_left_servers_apart_says_so(tmp_path: Path) -> None:
    result = fleet(tmp_path, 4, web2={"broken": frozenset({NEW})}).deploy(max_failures="1", canary=0)
    assert replace(result, interrupted=True).exit_status == 5
    assert replace(result, interrupted=True, outcome="reverted").exit_status == 130


@pytest.mark.parametrize("op", ["inspect", "prepare"])
def test_the_server_that_refuses_is_named(tmp_path: Path, op: str) -> None:
    found = fleet(tmp_path, 3, web1={"fault": Fault(op, "refuse")})
    try:
        error = found.deploy().error
    except LightshipError as caught:
        error = caught
    assert error is not None
    assert (error.exit_status, error.message.partition(":")[0]) == (3, "web1")
    assert found.runs == [OLD] * 3
