"""The way back of a server whose neighbour failed: the real agent and service, beside a simulated server that fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from lightship.model import Server
from lightship.operations.context import connect_local, load_context
from lightship.operations.deploy import Wanted, deploy
from lightship.operations.rolling import Rolling
from lightship.rollout import RolloutResult
from lightship_agent.records import replace
from support.engine import Engine
from support.fleet import OLD, Fault, SimulatedServer
from support.site import Site

ALL_AT_ONCE = Rolling(canary=0, batch="100%")


@pytest.fixture(scope="module")
def site(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(engine, tmp_path_factory.mktemp("back"), settings={"health": {"path": "/health/"}})
    try:
        made.deploy()
        yield made
    finally:
        made.close()


def deploy_with(site: Site, neighbour: SimulatedServer, commit: str, kind: str = "code") -> RolloutResult:
    """Deploy to the site's real server and to a simulated one beside it."""
    loaded = load_context(None, site.folder / "lightship.yml", lambda _: None)
    local = Server("local", "localhost", local=True)
    context = replace(
        loaded,
        servers=(local, Server(neighbour.server, neighbour.server)),
        connect=lambda name: connect_local(local) if name == "local" else neighbour,
    )
    wanted = Wanted(commit=commit, kind=kind, rolling=ALL_AT_ONCE)  # type: ignore[arg-type]
    return asyncio.run(deploy(context, wanted, time.perf_counter()))


@pytest.mark.parametrize(
    ("neighbour", "steps"),
    [
        # It fails while this one is verified and has not committed: one rename.
        (SimulatedServer("web1", delay=lambda op: 3.0 if op == "verify" else 0.0, fault=Fault("verify", "fail")), 1),
        # It fails when this one has committed: the release before is booted and goes live like any other.
        (SimulatedServer("web1", delay=lambda op: 3.0 if op == "commit" else 0.0, fault=Fault("commit", "fail")), 2),
    ],
    ids=["verified", "committed"],
)
def test_a_server_goes_back_with_its_neighbour_and_no_request_fails(
    site: Site, neighbour: SimulatedServer, steps: int
) -> None:
    before = site.current
    assert before is not None
    commit = site.change(f"w{steps}")
    with site.load(rate=50) as load:
        time.sleep(0.5)
        result = deploy_with(site, neighbour, commit)
        time.sleep(0.5)
    report = load.report
    assert [one.outcome for one in result.servers] == ["reverted", "reverted"], result.error
    assert [one.running for one in result.servers] == [before, OLD]
    assert result.exit_status in (4, 5)
    assert site.current == before and neighbour.current == OLD
    assert sum(one.name == "flip" for one in result.servers[0].steps) == steps
    assert report.count > 20 and not report.failed, report.errors
    assert site.run("status", expect=0).status == 0


def test_a_replaced_container_that_has_committed_is_taken_back(site: Site) -> None:
    before, container = site.current, site.container()
    commit = site.change("w9")
    neighbour = SimulatedServer("web1", delay=lambda op: 3.0 if op == "commit" else 0.0, fault=Fault("commit", "fail"))
    result = deploy_with(site, neighbour, commit, "container")
    assert [one.outcome for one in result.servers] == ["reverted", "reverted"], result.error
    assert site.current == before and site.container() != container
    assert site.answers()


@pytest.mark.parametrize("way", ["deploy", "rollback"])
def test_what_could_be_neither_ended_nor_taken_back_is_settled_by_the_next_command(site: Site, way: str) -> None:
    """The server's state can be written no more from the commit on: the release is live, and not written down."""
    before = site.current
    commit = site.change(f"neither {way}")
    broken = {"LIGHTSHIP_TESTING": "1", "LIGHTSHIP_FAILPOINTS": "state.saved=error@2"}
    said = site.run("deploy", "--json", environment=broken, expect=5)
    assert said.error["code"] == "revert-failed"
    assert site.current == commit and site.get()[2] == commit
    assert site.run("status").status != 0
    site.run(way, expect=0)
    wanted = commit if way == "deploy" else before
    assert site.current == wanted and site.get()[2] == wanted
    facts = site.run("status", "--json", expect=0).result["servers"][0]["facts"]
    assert (facts["current"], facts["stable"]) == (wanted, wanted)
