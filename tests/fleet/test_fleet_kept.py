"""A service whose SSH connections are kept between commands (`keep_connected`), on several real servers."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.promises import until
from support.servers import Fleet, all_run, no_failures, one_release_each, outcomes


@pytest.fixture
def kept(live: Fleet) -> Iterator[Fleet]:
    """The service, with all its servers' connections kept."""
    before = dict(live.environment)
    runtime = tempfile.mkdtemp(prefix="pool-")  # a short name, as a socket's path has to be short
    live.environment |= {"XDG_RUNTIME_DIR": runtime, "CI": ""}
    live.configure(keep_connected=300)
    live.run("status", expect=0)
    are_kept(live)
    try:
        yield live
    finally:
        live.run("connections", "--close", expect=0)
        until(lambda: not processes(live), 30, "the end of the pool")
        for one in live.servers.machines:
            until(lambda one=one: not one.agents(), 60, f"the end of the agents on {one.name}")
        live.environment = before
        live.settings.pop("keep_connected")
        live.configure()
        shutil.rmtree(runtime)


def connections(fleet: Fleet) -> list[dict[str, Any]]:
    """What is kept."""
    found: list[dict[str, Any]] = fleet.run("connections", "--json", expect=0).result["connections"]
    return found


def are_kept(fleet: Fleet) -> None:
    """Wait until the connections to all servers are kept."""
    until(lambda: sorted(one["server"] for one in connections(fleet)) == sorted(fleet.servers.names), 30, "connections")


def processes(fleet: Fleet) -> list[int]:
    """The pools of this service's user."""
    wanted = f"XDG_RUNTIME_DIR={fleet.environment['XDG_RUNTIME_DIR']}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if b"lightship.pool" in (entry / "cmdline").read_bytes() and wanted in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            pass
    return found


def names_of_spans(fleet: Fleet) -> set[str]:
    """All that the last rollout's trace names."""
    names: set[str] = set()

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            if isinstance(value.get("name"), str):
                names.add(value["name"])
            for one in value.values():
                walk(one)
        elif isinstance(value, list):
            for one in value:
                walk(one)

    walk(fleet.run("trace", "--json", expect=0).result)
    return names


def test_deploys_refusals_and_rollbacks_go_over_the_connections_that_are_there(kept: Fleet) -> None:
    first = kept.release
    with kept.loads() as loads:
        second = kept.new()
        kept.deploy()
        all_run(kept, second)
        assert "connection" in names_of_spans(kept)
        assert "ssh" not in names_of_spans(kept)  # nobody had to log in
        kept.new(more="import nothing_of_this_name")
        assert set(outcomes(kept.deploy(expect=3)).values()) <= {"refused", "aborted"}
        are_kept(kept)  # a conversation that was broken off ends its agent, and another one waits soon
        kept.run("rollback", "--json", expect=0)
        all_run(kept, first)
        last = kept.goes_on()
    for name, report in no_failures(loads).items():
        assert report.releases == [first, second, last], name
    assert all(one["conversations"] > 0 for one in connections(kept))


def test_a_pool_that_is_killed_between_commands_is_in_nobodys_way(kept: Fleet) -> None:
    (process,) = processes(kept)
    os.kill(process, signal.SIGKILL)
    kept.goes_on()
    are_kept(kept)
    kept.goes_on()


def test_a_pool_that_is_killed_in_the_middle_of_a_deploy_leaves_every_server_on_one_release(kept: Fleet) -> None:
    before, (process,) = kept.release, processes(kept)
    kept.configure(soak=3)
    with kept.loads() as loads:
        commit = kept.new()
        running = kept.start("deploy", "--json")
        until(lambda: commit in kept.currents.values(), 60, "the first flip")
        os.kill(process, signal.SIGKILL)
        out, err = running.communicate(timeout=200)
        for one in kept.servers.machines:
            until(lambda one=one: not one.agents() or one.agents() == 1, 60, f"the agent on {one.name}")
        assert set(one_release_each(kept).values()) <= {before, commit}, out + err
        kept.settings.pop("soak")
        kept.configure()
        kept.goes_on()
    no_failures(loads)


def test_a_connection_that_went_dead_unseen_holds_a_deploy_up_for_moments(kept: Fleet) -> None:
    # The agents that wait do not answer, nor does anything tell that they do not.
    first = kept.servers.machines[0]
    first.signal_agents("STOP")
    try:
        kept.goes_on()
    finally:
        first.signal_agents("CONT")
    all_run(kept, kept.release)


def test_where_ci_is_set_none_is_kept(kept: Fleet) -> None:
    kept.run("connections", "--close", expect=0)
    until(lambda: not processes(kept), 30, "the end of the pool")
    kept.environment["CI"] = "true"
    kept.goes_on()
    assert processes(kept) == []
    kept.environment["CI"] = ""
