"""Several want to change one service at once: one does, the others wait or are told who, and nobody is overrun."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.engine import Engine
from support.promises import refused, settled, unchanged, until, works
from support.site import Site


@pytest.fixture(scope="module")
def site(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(engine, tmp_path_factory.mktemp("lock"))
    try:
        made.deploy()
        yield made
    finally:
        made.close()


def ended(process: subprocess.Popen[str]) -> tuple[int, dict[str, object]]:
    out, err = process.communicate(timeout=120)
    assert out, err
    return process.returncode, json.loads(out)


class Overlap:
    """Watches the journal: at no time may two rollouts be open in it."""

    def __init__(self, site: Site) -> None:
        self.history = site.home / "state" / "history.jsonl"

    def rollouts(self) -> list[tuple[float, float]]:
        """When each rollout began and ended, in order."""
        found = [json.loads(line) for line in self.history.read_text().splitlines()]
        return sorted((one["started"], one["started"] + one["seconds"]) for one in found)


def test_of_two_deployers_at_once_one_deploys_and_the_other_is_told_who_or_waits(site: Site) -> None:
    """20 times, every other time with the second one waiting; never two at once, and not one request fails."""
    told = waited = 0
    with site.observer(300) as observer, site.load(100, 300) as load:
        for number in range(20):
            commit = site.change(f"race{number}")
            waits = number % 2 == 1
            pair = [site.start("deploy", "--json", *(["--wait", "60"] if waits else [])) for _ in range(2)]
            results = [ended(process) for process in pair]
            statuses = sorted(status for status, _ in results)
            assert statuses in ([0, 0], [0, 6]), results
            assert site.current == commit
            for status, answer in results:
                if status == 6:
                    assert not waits
                    error = answer["error"]
                    assert isinstance(error, dict)
                    assert error["code"] == "locked"
                    assert error["detail"]["who"]
                    assert error["detail"]["since"] > 0
                    told += 1
            outcomes = sorted(str(answer["result"]["outcome"]) for status, answer in results if status == 0)  # type: ignore[index]
            # One did it; whoever had the lock after it found nothing to do.
            assert outcomes in (["done"], ["done", "nothing"])
            waited += len(outcomes) == 2
    seen = observer.seen
    assert not load.report.failed, load.report.errors
    assert (seen.missing_count, seen.incomplete) == (0, ())
    assert waited >= 10
    assert told >= 1
    spans = Overlap(site).rollouts()
    assert all(end <= begin + 0.002 for (_, end), (begin, _) in itertools.pairwise(spans))


def test_a_deploy_against_a_rollback_leaves_what_the_last_one_wanted(site: Site) -> None:
    with site.load(100) as load:
        for number in range(4):
            old = str(site.current)
            new = site.change(f"against{number}")
            deploying = site.start("deploy", "--json", "--wait", "60")
            going_back = site.start("rollback", "--to", old, "--json", "--wait", "60")
            results = [ended(deploying), ended(going_back)]
            assert [status for status, _ in results] == [0, 0], results
            assert site.current in (old, new)
            assert site.get()[2] == site.current
            site.deploy()
    assert not load.report.failed, load.report.errors


@contextlib.contextmanager
def held(site: Site, point: str = "ask.activate") -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A deployer whose agent stands still at a fail point, by default right before the flip: it, and its agent."""
    stop = {"LIGHTSHIP_TESTING": "1", "LIGHTSHIP_FAILPOINTS": f"{point}=stop"}
    holder = site.start("deploy", "--json", environment=stop)
    agent = 0
    try:
        until(lambda: stopped(holder.pid) or stopped(lock_holder(site)), what="one of the two stands still")
        agent = lock_holder(site)
        os.kill(agent, signal.SIGSTOP)
        until(lambda: stopped(agent))
        yield holder, agent
    finally:
        wake(agent, holder.pid)
        with contextlib.suppress(subprocess.TimeoutExpired):
            holder.communicate(timeout=30)
        holder.kill()
        holder.wait()


def wake(*pids: int) -> None:
    """Let processes go on; one that ended meanwhile is fine."""
    for pid in pids:
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def lock_holder(site: Site) -> int:
    try:
        return int(json.loads((site.home / "state" / "lock").read_text().partition("\n")[0])["pid"])
    except (ValueError, OSError):
        return 0


def stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


def test_a_holder_that_stands_still_is_named_and_waited_for_only_as_long_as_asked(site: Site) -> None:
    site.change("held")
    with unchanged(site), held(site) as (_, agent):
        said = site.deploy(expect=None)
        refused(site, said, "locked", status=6)
        assert said.error["detail"]["pid"] == agent
        assert "--take-over" in said.error["hint"]
        begun = time.monotonic()
        refused(site, site.deploy("--wait", "2", expect=None), "locked", status=6)
        assert 2 <= time.monotonic() - begun < 20
        os.kill(agent, signal.SIGKILL)
    works(site)


def test_a_holder_that_stands_still_is_overtaken_on_request_and_refused_when_it_wakes(site: Site) -> None:
    before = settled(site)
    stuck = site.change("stuck")
    with site.observer() as observer, site.load() as load:
        with held(site) as (holder, agent):
            fine = site.change("overtakes")
            said = site.deploy("--wait", "1", "--take-over")
            assert said.result["outcome"] == "done"
            assert site.current == fine
            assert load.wait_for(fine)
            wake(agent, holder.pid)
            status, answer = ended(holder)
            assert status == 3, answer
            assert answer["error"]["code"] == "fenced"  # type: ignore[index]
        assert site.current == fine
        assert load.wait_count(20)
    assert not load.report.failed, load.report.errors
    assert load.report.releases == [before, fine]
    assert stuck not in observer.seen.distinct
    works(site)


def test_a_deployer_that_works_is_ended_first_and_what_it_began_is_undone(site: Site) -> None:
    before = settled(site)
    slow = site.change("busy", import_seconds=30)
    holder = site.start("deploy", "--json")
    try:
        until(lambda: any(order.get("release") == slow for order in orders(site).values()), what="it boots")
        fine = site.change("overtakes at work")
        with site.load() as load:
            assert load.wait_count(5)
            said = site.deploy("--take-over")
            assert said.result["outcome"] == "done"
            assert load.wait_for(fine)
        assert not load.report.failed, load.report.errors
        assert load.report.releases == [before, fine]
        status, _ = ended(holder)
        assert status == 3
        assert site.current == fine
    finally:
        holder.kill()
        holder.communicate()
    works(site)


@pytest.mark.parametrize("point", ["order.write", "current.flip", "current.flipped", "commit.state"])
def test_a_holder_that_stands_still_within_a_step_never_does_the_rest_of_it(site: Site, point: str) -> None:
    settled(site)
    site.change("within a step")
    with site.load() as load, held(site, point) as (holder, agent):
        fine = site.change("after it")
        site.deploy("--take-over")
        wake(agent, holder.pid)
        assert load.wait_for(fine)
        assert load.wait_count(30)
        assert site.current == fine
    assert not load.report.failed, load.report.errors
    assert load.report.releases[-1] == fine
    works(site)


def orders(site: Site) -> dict[str, dict[str, object]]:
    """What the slots were told to run."""
    number = site.container().rpartition("-")[2]
    found: dict[str, dict[str, object]] = json.loads((site.home / "code/instances" / f"{number}.json").read_text())[
        "slots"
    ]
    return found
