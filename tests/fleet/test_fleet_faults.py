"""What goes wrong with one of several servers, or between it and the controller, on a release's way there.

Whatever it is: each server has one release afterwards, the healthy ones never fail a request, and the next deploy needs
no help.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.engine import Engine
from support.promises import until
from support.servers import TESTING, Fleet, Machine, Servers, all_run, no_failures, one_release_each, outcomes


def test_a_server_that_is_down_is_refused_or_left_out_and_brought_level(live: Fleet) -> None:
    *healthy, down = live.servers.machines
    with live.loads() as loads:
        before = live.currents
        down.do("kill $(cat /run/sshd.pid)")
        try:
            commit = live.new()
            said = live.deploy(expect=3)
            assert said.error["code"] == "ssh-refused", said.shown
            assert down.name in said.error["message"]
            assert "--skip-unreachable" in said.error["hint"]
            assert live.currents == before
            said = live.deploy("--skip-unreachable", expect=5)
            assert down.name in said.error["message"]
            assert outcomes(said) == {**{one.name: "done" for one in healthy}, down.name: "skipped"}
        finally:
            down.do("/usr/sbin/sshd")
        found = one_release_each(live)
        assert found == {**{one.name: commit for one in healthy}, down.name: before[down.name]}
        said = live.deploy()
        assert outcomes(said) == {**{one.name: "nothing" for one in healthy}, down.name: "done"}
        all_run(live, commit)
    no_failures(loads)


def stopped(process: subprocess.Popen[Any]) -> bool:
    """Whether a fail point has stopped it."""
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@contextmanager
def cut_off(away: Machine, process: subprocess.Popen[str]) -> Iterator[None]:
    """While the controller stands still this server is cut off, until its agent has noticed and ended by itself."""
    try:
        until(lambda: stopped(process) or process.poll() is not None, 120, "the fail point")
        assert process.poll() is None, process.communicate()
        assert away.agents() == 1
        away.cut()
        process.send_signal(signal.SIGCONT)
        until(lambda: not away.agents(), 120, "the end of the agent that was cut off")
        away.mend()
        yield
    finally:
        away.mend()
        process.kill()
        process.wait()


# Where the controller is when the network goes, which server loses it, how the command ends, and with which release.
@pytest.mark.parametrize(
    ("point", "number", "status", "goes_live"),
    [
        # Nobody was told anything yet.
        ("ask.prepare=stop*1", 0, 3, False),
        # Three are live, and the last one never gets to be.
        ("ask.activate=stop*1@4", -1, 4, False),
        # Both have been told to go live: the agent verifies and commits by itself.
        ("ask.verify=stop*1", 0, 0, True),
        ("ask.commit=stop*1", 0, 0, True),
    ],
    ids=["prepare", "activate", "verify", "commit"],
)
def test_a_server_is_cut_off_and_comes_back(live: Fleet, point: str, number: int, status: int, goes_live: bool) -> None:
    before, away = live.release, live.servers.machines[number]
    with live.loads() as loads:
        commit = live.new()
        process = live.start("deploy", "--json", environment={**TESTING, "LIGHTSHIP_FAILPOINTS": point})
        with cut_off(away, process):
            out, err = process.communicate(timeout=200)
        assert process.returncode == status, (out[-3000:], err)
        assert one_release_each(live) == dict.fromkeys(live.servers.names, commit if goes_live else before)
        live.goes_on()
    no_failures(loads)


def test_a_server_with_a_broken_engine(live: Fleet) -> None:
    *healthy, broken = live.servers.machines
    before = live.currents
    with live.loads(healthy) as loads:
        broken.stop_engine()
        try:
            live.new()
            for options in ((), ("--skip-unreachable",)):
                said = live.deploy(*options, expect=3)
                assert said.error["code"] == "engine-unreachable", said.shown
                assert broken.name in said.error["message"]
                assert live.currents == before
        finally:
            broken.start_engine()
        until(lambda: live.name in broken.do("docker ps --format '{{.Names}}'"), 60)
        live.goes_on()
    no_failures(loads)


def test_a_server_that_is_much_slower_is_waited_for(live: Fleet) -> None:
    slow = live.servers.machines[1]
    before = live.release
    with live.loads() as loads:
        throttled = slow.throttled()
        slow.limit(20)
        try:
            commit = live.goes_on()
        finally:
            slow.limit(None)
        assert slow.throttled() > throttled
    for report in no_failures(loads).values():
        assert report.releases == [before, commit]


def test_a_server_with_a_full_disk(engine: Engine, servers: Servers, tmp_path: Path) -> None:
    full = servers.machines[-1]
    root = "/srv/small"
    full.do(f"mkdir -p {root} && mount -t tmpfs -o size=160m none {root}")
    fleet = Fleet(engine, tmp_path / "small", settings={"root": root, "ports": ["8001:8000"]}, servers=servers)
    try:
        fleet.deploy()
        first = fleet.repository.head
        with fleet.loads() as loads:
            full.do(f"cat /dev/zero >{root}/fill 2>/dev/null || true")
            fleet.new()
            said = fleet.deploy(expect=3)
            assert full.name in said.error["message"], said.shown
            assert one_release_each(fleet) == dict.fromkeys(servers.names, first)
            full.do(f"rm {root}/fill")
            commit = fleet.goes_on()
        for report in no_failures(loads).values():
            assert report.releases == [first, commit]
    finally:
        fleet.close()
        full.do(f"umount -l {root}")
