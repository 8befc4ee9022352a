"""`keep_warm: 1`: the release before stays booted beside the one that serves, and a rollback is the flip alone."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.engine import Engine
from support.load import LoadReport
from support.promises import until
from support.site import Said, Site

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def made(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A service that keeps a release warm."""
    site = Site(engine, tmp_path_factory.mktemp("warm"), settings={"keep_warm": 1, "keep": 3, "soak": 0.1})
    try:
        site.deploy()
        yield site
    finally:
        site.close()


@pytest.fixture
def site(made: Site) -> Site:
    """The service with two new releases, of which the first is kept warm."""
    made.configure(keep_warm=1)
    for word in ("one", "two"):
        made.change(f"v-{word}-{next(_numbers)}")
        made.deploy()
    return made


def slots(site: Site) -> dict[str, set[str]]:
    """The states of the workers of each release that a slot runs."""
    found: dict[str, set[str]] = {}
    facts = site.run("status", "--json").result["servers"][0]["facts"]
    for slot in facts["slots"].values():
        for worker in slot["workers"]:
            found.setdefault(worker["release"], set()).add(worker["state"])
    return found


def pids(site: Site, release: str) -> set[int]:
    facts = site.run("status", "--json").result["servers"][0]["facts"]
    workers = [worker for slot in facts["slots"].values() for worker in slot["workers"]]
    return {worker["pid"] for worker in workers if worker["release"] == release}


def steps(said: Said) -> dict[str, dict[str, Any]]:
    return {step["name"]: step for step in said.result["servers"][0]["steps"]}


def quiet(report: LoadReport) -> None:
    assert not report.failed, report.errors


def test_a_rollback_boots_nothing_and_neither_does_the_way_forward_again(site: Site) -> None:
    [first] = [one for one, states in slots(site).items() if states != {"serving"}]
    second = site.current
    assert second
    assert slots(site) == {first: {"parked"}, second: {"serving"}}
    assert site.run("status", expect=0)
    assert site.run("doctor", expect=0)
    warm = pids(site, first)

    with site.load() as load:
        assert load.wait_count(20)
        site.run("rollback", "--json", expect=0)
        assert pids(site, first) == warm, "it was booted anew"
        assert slots(site) == {first: {"serving"}, second: {"parked"}}
        forward = pids(site, second)
        said = site.deploy("--retry")
        assert said.result["kind"] == "code"
        assert pids(site, second) == forward
        assert slots(site) == {first: {"parked"}, second: {"serving"}}
    report = load.report
    quiet(report)
    assert report.releases == [second, first]
    assert report.records[-1].release == second


def test_the_next_release_takes_its_place_and_one_that_is_broken_costs_nobody_a_request(site: Site) -> None:
    first, second = (one for one, _ in sorted(slots(site).items(), key=lambda item: item[1] == {"serving"}))
    with site.load() as load:
        third = site.change("v3")
        site.deploy()
        assert slots(site) == {second: {"parked"}, third: {"serving"}}
        site.change("v4", more="import nothing_of_this_name")
        site.deploy(expect=3)
        assert slots(site) == {third: {"serving"}}, "what is kept warm had to make room"
        # The way back boots it, as without.
        site.run("rollback", "--json", expect=0)
        assert slots(site) == {second: {"serving"}, third: {"parked"}}
        site.run("rollback", "--to", first, "--json", expect=0)
        assert slots(site)[first] == {"serving"}
    quiet(load.report)
    site.change("v5")
    site.configure(keep_warm=0)
    site.deploy()
    assert list(slots(site).values()) == [{"serving"}]


def test_what_is_kept_warm_is_booted_again_when_it_would_be_booted_otherwise_or_has_died(site: Site) -> None:
    [first] = [one for one, states in slots(site).items() if states == {"parked"}]
    warm = pids(site, first)
    for one in warm:
        os.kill(_outside(site, one), 9)
    # uWSGI starts workers that were killed anew: they stand at the gate like the others before them.
    until(lambda: slots(site).get(first) and not pids(site, first) & warm, 20, "the workers that were killed")
    site.run("rollback", "--json", expect=0)
    assert site.get()[2] == first
    second_pids = {one: pids(site, one) for one in slots(site)}
    site.configure(health={"path": "/other", "host": "localhost"})
    site.run("rollback", "--json", expect=0)
    assert site.get()[2] != first
    assert not second_pids[site.get()[2]] & pids(site, site.get()[2]), "it was tested by another health path"


def test_a_container_that_is_started_again_has_both(site: Site) -> None:
    [first] = [one for one, states in slots(site).items() if states == {"parked"}]
    second = site.current
    site.engine.docker("restart", "--time", "1", site.container())
    until(lambda: slots(site) == {first: {"ready"}, second: {"serving"}}, 40, "both releases")
    with site.load() as load:
        assert load.wait_count(20)
        site.run("rollback", "--json", expect=0)
    quiet(load.report)
    assert slots(site)[first] == {"serving"}


@pytest.mark.parametrize("point", ["rollout.prepared", "rollout.activated", "commit.stable", "commit.released"])
def test_killed_on_the_way_back_one_release_serves_and_the_next_deploy_needs_no_help(site: Site, point: str) -> None:
    first = next(one for one, states in slots(site).items() if states == {"parked"})
    second = site.current
    points = {"LIGHTSHIP_TESTING": "1", "LIGHTSHIP_FAILPOINTS": f"{point}=kill,ask.hello=kill@2"}
    with site.load() as load:
        assert load.wait_count(20)
        # An agent that dies before the flip leaves nothing to ask again about.
        status = site.run("rollback", "--json", environment=points).status
        assert status == (3 if point == "rollout.prepared" else -9)
        assert site.get()[2] == site.current
        assert site.current == (second if point == "rollout.prepared" else first)
        third = site.change("v3")
        site.deploy()
    quiet(load.report)
    assert slots(site)[third] == {"serving"}


def test_with_too_little_memory_left_it_is_let_go_and_said_so(site: Site) -> None:
    second = site.current
    used = site.engine.docker("stats", "--no-stream", "--format", "{{.MemUsage}}", site.container()).split()[0]
    assert used.endswith("MiB"), used
    limit = int(float(used.removesuffix("MiB")) * 1024 * 1024 / 0.95)
    site.engine.docker("update", f"--memory={limit}", "--memory-swap=-1", site.container())
    said = site.run("rollback", "--json", expect=0)
    assert "warm" in steps(said), steps(said)
    assert second not in slots(site), "it is kept warm all the same"
    site.deploy("--retry")
    shown = site.run("rollback", expect=0)
    assert "of the container's memory is left" in shown.stdout + shown.stderr


def _outside(site: Site, pid: int) -> int:
    """A process of the container by its number on this machine."""
    first = site.engine.docker("inspect", "--format", "{{.State.Pid}}", site.container())
    space = Path(f"/proc/{first}/ns/pid").readlink()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            numbers = re.search(r"^NSpid:(.*)$", (entry / "status").read_text(), re.MULTILINE)
            if numbers and int(numbers[1].split()[-1]) == pid and (entry / "ns" / "pid").readlink() == space:
                return int(entry.name)
    raise AssertionError(f"no process {pid}")
