"""Deploys to several real servers over SSH, under load: sshd, Docker engines and a git server of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.engine import Engine
from support.servers import Fleet, Servers, no_failures
from support.site import Site


@pytest.fixture(scope="session")
def servers(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with Servers.running(engine, tmp_path_factory.mktemp("servers"), 2) as made:
        site = Site(engine, tmp_path_factory.mktemp("image"))
        made.load_image(engine.build(site.repository.tree, engine.name("image")))
        yield made


@pytest.fixture
def fleet(engine: Engine, servers: Servers, tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(engine, tmp_path / "site", servers=servers)
    try:
        yield made
    finally:
        made.close()


def all_run(fleet: Fleet, commit: str) -> None:
    """Every server has it on disk and in every worker, and `status` finds nothing that differs."""
    assert set(fleet.currents.values()) == {commit}
    said = fleet.run("status", "--json", expect=0)
    assert said.result["drift"] == []
    assert [one["server"] for one in said.result["servers"]] == fleet.servers.names
    for one in said.result["servers"]:
        loaded = [worker["release"] for slot in one["facts"]["slots"].values() for worker in slot["workers"]]
        assert loaded, one
        assert set(loaded) == {commit}, one


def test_deploys_of_every_kind_under_load(fleet: Fleet) -> None:
    first = fleet.repository.head
    said = fleet.deploy()
    assert {one["outcome"] for one in said.result["servers"]} == {"done"}
    all_run(fleet, first)

    # What is live already is nothing to do, and nothing is touched.
    before = fleet.fingerprints()
    said = fleet.deploy()
    assert {one["outcome"] for one in said.result["servers"]} == {"nothing"}
    assert fleet.fingerprints() == before

    with fleet.loads() as loads:
        second = fleet.change("v2")
        said = fleet.deploy()
        assert said.result["kind"] == "code", said.shown
        for load in loads.values():
            assert load.wait_for(second)
        all_run(fleet, second)

        # A commit that does not import is refused, and nothing was changed anywhere.
        before = fleet.fingerprints()
        broken = fleet.change("broken", more="import nothing_of_this_name")
        said = fleet.deploy(expect=3)
        assert "nothing_of_this_name" in said.stdout
        assert {one["outcome"] for one in said.result["servers"]} <= {"refused", "aborted"}, said.shown
        assert fleet.fingerprints() == before

        said = fleet.run("rollback", "--json", expect=0)
        for load in loads.values():
            assert load.wait_for(first)
        all_run(fleet, first)
    for report in no_failures(loads).values():
        assert report.releases == [first, second], report.releases
        assert broken not in report.releases
        assert report.records[-1].release == first
