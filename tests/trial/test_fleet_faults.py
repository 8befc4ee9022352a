"""Several real servers, and what goes wrong with one of them or with the controller on a release's way there."""

from __future__ import annotations

import itertools
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.engine import Engine
from support.promises import until
from support.servers import Fleet, Machine, Servers, all_run, no_failures
from support.site import Said

_numbers = itertools.count(1)
# Longer than both sides need to notice that the other one is gone.
CUT_SECONDS = 40.0
TESTING = {"LIGHTSHIP_TESTING": "1"}


@pytest.fixture(scope="module")
def live(engine: Engine, servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A service that runs everywhere, for all of these tests: each leaves it so."""
    made = Fleet(engine, tmp_path_factory.mktemp("live") / "site", servers=servers)
    try:
        made.deploy()
        yield made
    finally:
        made.close()


def new(fleet: Fleet) -> str:
    """Another version, pushed; its commit."""
    return fleet.change(f"v{next(_numbers)}")


def outcomes(said: Said) -> dict[str, str]:
    return {one["server"]: one["outcome"] for one in said.result["servers"]}


def goes_on(fleet: Fleet) -> None:
    """The next deploy needs no help, and brings every server to one release."""
    commit = new(fleet)
    fleet.deploy()
    all_run(fleet, commit)


def one_release_each(fleet: Fleet, *allowed: str) -> None:
    """Each server runs one of these, on disk and in all workers."""
    for name, one in fleet.facts().items():
        loaded = {worker["release"] for slot in one["facts"]["slots"].values() for worker in slot["workers"]}
        assert len(loaded) == 1, (name, loaded)
        assert loaded == {one["on_disk"]}, (name, loaded, one["on_disk"])
        assert loaded <= set(allowed), (name, loaded)


def test_a_server_that_is_down_is_refused_or_left_out_and_brought_level(live: Fleet) -> None:
    *healthy, down = live.servers.machines
    with live.loads() as loads:
        before = live.currents
        down.do("kill $(cat /run/sshd.pid)")
        try:
            commit = new(live)
            said = live.deploy(expect=None)
            assert said.status == 3, said.shown
            assert said.error["code"] == "ssh-refused", said.shown
            assert down.name in said.error["message"]
            assert "--skip-unreachable" in said.error["hint"]
            assert live.currents == before
            said = live.deploy("--skip-unreachable", expect=5)
            assert down.name in said.error["message"]
            found = outcomes(said)
            assert found == {**{one.name: "done" for one in healthy}, down.name: "skipped"}
            assert live.current_on(down) == before[down.name]
            assert {live.current_on(one) for one in healthy} == {commit}
        finally:
            down.do("/usr/sbin/sshd")
        assert live.run("status", "--json").status == 5
        said = live.deploy()
        assert outcomes(said) == {**{one.name: "nothing" for one in healthy}, down.name: "done"}
        all_run(live, commit)
    no_failures(loads)


def test_a_sudo_user_behind_a_jump_host(live: Fleet) -> None:
    *others, inner = live.servers.machines
    try:
        live.servers.configure(f"Host {inner.name}\n  User deploy\n  ProxyJump {others[0].name}\n")
        # Nothing else than the jump host reaches it.
        inner.do(f"iptables -I INPUT -p tcp --dport 22 ! -s {others[0].address} -j REJECT")
        with live.loads() as loads:
            goes_on(live)
        no_failures(loads)
    finally:
        inner.do("iptables -F INPUT")
        live.servers.configure()


def test_a_changed_host_key_is_refused_and_never_left_out(live: Fleet) -> None:
    changed = live.servers.machines[-1]
    before = live.currents
    changed.do("kill $(cat /run/sshd.pid); rm /etc/ssh/ssh_host_*; ssh-keygen -q -A; /usr/sbin/sshd")
    try:
        new(live)
        for options in ((), ("--skip-unreachable",)):
            said = live.deploy(*options, expect=3)
            assert said.error["code"] == "host-key-changed", said.shown
            assert live.currents == before
    finally:
        live.servers.know()
    goes_on(live)


def test_an_inventory_that_is_a_script(live: Fleet) -> None:
    script = live.folder / "inventory.py"
    hosts = ", ".join(f'"{one.name}"' for one in live.servers.machines)
    script.write_text(
        "#!/usr/bin/env python3\nimport json\n"
        f'print(json.dumps({{"shop": {{"hosts": [{hosts}]}}, "_meta": {{"hostvars": {{}}}}}}))\n'
    )
    script.chmod(0o755)
    before = dict(live.settings)
    try:
        live.settings = {key: value for key, value in before.items() if key != "servers"}
        live.configure(inventory="inventory.py", hosts="shop")
        goes_on(live)
    finally:
        live.settings = before
        live.configure()


@pytest.mark.parametrize(
    "point",
    ["answered.hello", "ask.prepare", "answered.prepare", "ask.activate", "answered.activate", "answered.verify"],
)
def test_the_controller_is_killed(live: Fleet, point: str) -> None:
    before = live.currents["web1"]
    assert before is not None
    with live.loads() as loads:
        commit = new(live)
        said = live.deploy(expect=None, environment={**TESTING, "LIGHTSHIP_FAILPOINTS": f"{point}=kill"})
        assert said.status == -signal.SIGKILL
        goes_on(live)
    for report in no_failures(loads).values():
        assert set(report.releases) <= {before, commit, live.repository.head}


def cut(machine: Machine) -> None:
    """Nothing of SSH comes or goes any more; requests to the service do."""
    machine.do("iptables -I INPUT -p tcp --dport 22 -j DROP; iptables -I OUTPUT -p tcp --sport 22 -j DROP")


def mend(machine: Machine) -> None:
    machine.do("iptables -F INPUT; iptables -F OUTPUT")


def stopped(process: subprocess.Popen[Any]) -> bool:
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.mark.parametrize("point", ["answered.prepare", "answered.activate"])
def test_a_server_is_cut_off_and_comes_back(live: Fleet, point: str) -> None:
    before = live.currents["web1"]
    away = live.servers.machines[0]
    assert before is not None
    with live.loads() as loads:
        commit = new(live)
        process = live.start("deploy", "--json", environment={**TESTING, "LIGHTSHIP_FAILPOINTS": f"{point}=stop"})
        try:
            until(lambda: stopped(process), 60)
            cut(away)
            begun = time.monotonic()
            while process.poll() is None:
                # The fail point stops it once for each server.
                if stopped(process):
                    process.send_signal(signal.SIGCONT)
                if time.monotonic() > begun + CUT_SECONDS:
                    mend(away)
                assert time.monotonic() < begun + 150
                time.sleep(0.5)
            out, err = process.communicate()
        finally:
            mend(away)
            process.kill()
        assert process.returncode in (0, 3, 4, 5), (out[-3000:], err)
        one_release_each(live, before, commit)
        if process.returncode != 5:
            # After the switch its agent finished by itself, and was found to have done so.
            assert set(live.currents.values()) == {before if process.returncode else commit}
        goes_on(live)
    no_failures(loads)


def test_a_server_with_a_broken_engine(live: Fleet) -> None:
    *healthy, broken = live.servers.machines
    before = live.currents
    with live.loads(healthy) as loads:
        broken.stop_engine()
        try:
            new(live)
            for options in ((), ("--skip-unreachable",)):
                said = live.deploy(*options, expect=3)
                assert said.error["code"] == "engine-unreachable", said.shown
                assert broken.name in said.error["message"]
                assert live.currents == before
        finally:
            broken.start_engine()
        until(lambda: live.name in " ".join(broken.do("docker ps --format '{{.Names}}'").split()), 60)
        goes_on(live)
    no_failures(loads)


def test_a_server_with_a_full_disk(engine: Engine, servers: Servers, live: Fleet, tmp_path: Path) -> None:
    full = servers.machines[-1]
    root = "/srv/small"
    full.do(f"mkdir -p {root} && mount -t tmpfs -o size=160m none {root}")
    fleet = Fleet(engine, tmp_path / "small", settings={"root": root, "ports": ["8001:8000"]}, servers=servers)
    try:
        fleet.deploy()
        first = fleet.repository.head
        full.do(f"cat /dev/zero >{root}/fill 2>/dev/null || true")
        fleet.change("v2")
        said = fleet.deploy(expect=3)
        assert full.name in said.error["message"], said.shown
        found = {worker for one in fleet.facts().values() for worker in one["loaded"]}
        assert found == {first}
        full.do(f"rm {root}/fill")
        commit = fleet.change("v3")
        fleet.deploy()
        assert {worker for one in fleet.facts().values() for worker in one["loaded"]} == {commit}
        assert fleet.run("status", "--json").status == 0
    finally:
        fleet.close()
        full.do(f"umount -l {root}")
