"""Roles over several real servers: each plays its own, one of them no `web`, and they change or go back together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.engine import Engine
from support.servers import Fleet, Machine, Servers, no_failures, outcomes

#: A process that stays up, and says no to a version that is named so.
ROLE = """
import sys
import time

from service import version

if version.VERSION.startswith("bad"):
    sys.exit("this role does not like " + version.VERSION)
while True:
    time.sleep(0.05)
"""


def role(**more: Any) -> dict[str, Any]:
    return {"command": ["python3", "-m", "service.role"], "settle": 0.5, **more}


class Shop(Fleet):
    """A service of which the servers play different roles: web alone, all, `beat` and `worker` alone, and web again."""

    @property
    def play(self) -> dict[str, dict[str, int]]:
        """For each server, the roles beside web that it is to run, and how many processes of each."""
        _, second, third, _ = self.servers.names
        return {name: {} for name in self.servers.names} | {second: {"worker": 2, "beat": 1}, third: {"worker": 2}}

    @property
    def webs(self) -> list[Machine]:
        """Those that serve."""
        return [one for one in self.servers.machines if one.name != self.servers.names[2]]

    def run_on(self, commit: str) -> None:
        """Every role's processes run where they are to, all on this release, and nowhere else."""
        status = self.run("status", "--json", expect=0).result
        assert status["drift"] == []
        for server in status["servers"]:
            roles = {name: one for name, one in server["facts"]["roles"].items() if one["processes"]}
            found = {name: len(one["processes"]) for name, one in roles.items()}
            assert found == self.play[server["server"]], server["server"]
            releases = {process["release"] for one in roles.values() for process in one["processes"]}
            assert releases <= {commit}, server["server"]
        assert set(self.currents.values()) == {commit}
        for machine in self.servers.machines:
            count = sum(self.play[machine.name].values())
            seen = machine.do("pgrep --full --count '[p]ython3 -m service.role$' || true")
            assert int(seen) == count, machine.name


@pytest.fixture
def shop(engine: Engine, servers: Servers, tmp_path: Path) -> Iterator[Shop]:
    """The service, not deployed yet."""
    first, second, third, fourth = servers.names
    made = Shop(
        engine,
        tmp_path / "site",
        files={"service/role.py": ROLE},
        settings={
            "ports": ["8300:8000"],
            "roles": {"worker": role(processes=2), "beat": role(once=True)},
            "servers": [
                {"host": first, "roles": ["web"]},
                second,
                {"host": third, "roles": ["beat", "worker"]},
                {"host": fourth, "roles": ["web"]},
            ],
        },
        servers=servers,
    )
    try:
        yield made
    finally:
        made.close()


def test_each_server_plays_its_roles_and_all_change_and_go_back_together(shop: Shop) -> None:
    first = shop.repository.head
    assert set(outcomes(shop.deploy()).values()) == {"done"}
    shop.run_on(first)
    with shop.loads(shop.webs) as loads:
        second = shop.new(files={"service/role.py": ROLE + "# other\n"})
        said = shop.deploy("--canary", "1", "--batch", "2")
        assert said.result["kind"] == "code", said.shown
        shop.run_on(second)

        # What only a role cannot stand is found after the flip, on the servers that play it: all go back.
        shop.change("bad")
        said = shop.deploy(expect=4)
        assert said.error["code"] == "role-failed", said.shown
        assert "this role does not like bad" in said.error["detail"]["log"]
        assert set(outcomes(said).values()) <= {"reverted", "aborted"}, said.shown
        shop.run_on(second)

        shop.run("rollback", "--json", expect=0)
        shop.run_on(first)
        assert all(load.wait_count(20) for load in loads.values())
    for report in no_failures(loads).values():
        assert report.records[-1].release == first
    third = shop.new()
    shop.deploy()
    shop.run_on(third)
