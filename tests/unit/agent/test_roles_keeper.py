"""The keeper of the roles, inside the container: what it asks of Supervisor, step by step."""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
import xmlrpc.client
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import lightship_agent

BOOT = Path(lightship_agent.__file__).parent / "boot"
COMMIT, OTHER = "a" * 40, "b" * 40


class Supervisor:
    """Supervisor's part: processes in its states, and what was asked of it."""

    def __init__(self, *names: str, autostart: bool = False) -> None:
        self.asked: list[str] = []
        self.autostart = autostart
        self.numbers = itertools.count(100)
        self.processes = {name: self.info(name) for name in names}

    def info(self, name: str) -> dict[str, Any]:
        group, _, process = name.partition(":")
        return {
            "group": group, "name": process, "statename": "STOPPED", "pid": 0, "start": 0, "stop": 0, "spawnerr": "",
            "exitstatus": 0,
        }  # fmt: skip

    def set(self, name: str, state: str, **more: Any) -> None:
        self.processes[name].update(statename=state, **more)

    def getAllProcessInfo(self) -> list[dict[str, Any]]:  # noqa: N802
        return [dict(info) for info in self.processes.values()]

    def getAllConfigInfo(self) -> list[dict[str, Any]]:  # noqa: N802
        return [{"group": info["group"], "autostart": self.autostart} for info in self.processes.values()]

    def startProcess(self, name: str, _wait: bool) -> None:  # noqa: N802
        self.asked.append(f"start {name}")
        if self.processes[name]["spawnerr"]:
            raise xmlrpc.client.Fault(50, "SPAWN_ERROR")
        self.set(name, "STARTING", pid=next(self.numbers), start=1)

    def stopProcess(self, name: str, _wait: bool) -> None:  # noqa: N802
        self.asked.append(f"stop {name}")
        self.set(name, "STOPPING")


class Container:
    """A container's files, its Supervisor, and the keeper in it."""

    def __init__(self, folder: Path, module: ModuleType, supervisor: Supervisor) -> None:
        self.folder = folder
        self.module = module
        self.supervisor = supervisor
        self.keeper = module.Keeper()

    def order(self, **roles: dict[str, Any]) -> None:
        (self.folder / "code" / "instances" / "1.json").write_text(json.dumps({"roles": roles}))

    def look(self) -> list[str]:
        """One look; what it asked of Supervisor."""
        self.supervisor.asked.clear()
        self.keeper.next_look = 0.0
        self.keeper.look()
        return list(self.supervisor.asked)

    def announces(self, role: str, index: int, pid: int, generation: int) -> None:
        told = {"pid": pid, "generation": generation, "release": COMMIT}
        (self.folder / "run" / "roles" / role / f"{index}.json").write_text(json.dumps(told))

    def announced(self, role: str, index: int) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "run" / "roles" / role / f"{index}.json").read_text())
        return found

    def says(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "run" / "roles" / "status.json").read_text())
        return found

    def up(self, name: str) -> int:
        """Supervisor sees it run; its number."""
        self.supervisor.set(name, "RUNNING")
        pid: int = self.supervisor.processes[name]["pid"]
        return pid

    def again(self) -> None:
        """The keeper alone is started anew."""
        self.keeper = self.module.Keeper()


Make = Callable[..., Container]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    (tmp_path / "code" / "instances").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    monkeypatch.setenv("LIGHTSHIP_CODE", str(tmp_path / "code"))
    monkeypatch.setenv("LIGHTSHIP_RUN", str(tmp_path / "run"))
    before = list(sys.path)

    def made(*names: str, tries: bool = False, autostart: bool = False) -> Container:
        if tries:
            monkeypatch.setenv("LIGHTSHIP_RELEASE", COMMIT)
        spec = importlib.util.spec_from_file_location("roles_keeper", BOOT / "roles.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        supervisor = Supervisor(*names, autostart=autostart)
        monkeypatch.setattr(module, "supervisor", lambda: supervisor)
        return Container(tmp_path, module, supervisor)

    yield made
    sys.path[:] = before
    sys.modules.pop("keeper", None)


WORKER, SECOND, MAILER = "role-worker:role-worker_0", "role-worker:role-worker_1", "mailer:mailer"


def worker(generation: int = 1, release: str | None = COMMIT) -> dict[str, Any]:
    return {"command": ["x"], "program": "", "release": release, "generation": generation}


def mailer(generation: int = 1, release: str | None = COMMIT) -> dict[str, Any]:
    return {"command": [], "program": "mailer", "release": release, "generation": generation}


def started(make: Make) -> Container:
    """A container whose worker runs generation 1."""
    found = make(WORKER)
    found.order(worker=worker())
    assert found.look() == [f"start {WORKER}"]
    found.announces("worker", 0, found.up(WORKER), 1)
    assert found.look() == []
    return found


def test_a_role_without_a_release_is_not_started_and_said_to_be_there(make: Make) -> None:
    found = make(WORKER)
    found.order(worker=worker(0, None))
    assert found.look() == []
    assert found.says()["problems"] == []
    assert found.says()["roles"]["worker"]["wanted"] is None


def test_nothing_is_started_where_an_image_is_only_tried(make: Make) -> None:
    found = make(WORKER, MAILER, tries=True)
    found.order(worker=worker(), mailer=mailer())
    assert found.look() == []
    # What starts there by itself all the same is stopped.
    found.supervisor.set(MAILER, "RUNNING", pid=5)
    assert found.look() == [f"stop {MAILER}"]


def test_another_generation_stops_gracefully_waits_and_starts(make: Make) -> None:
    found = started(make)
    found.order(worker=worker(2))
    assert found.look() == [f"stop {WORKER}"]
    assert found.look() == []  # a job in flight takes its time
    found.supervisor.set(WORKER, "STOPPED", pid=0)
    assert found.look() == [f"start {WORKER}"]
    assert found.look() == []
    found.announces("worker", 0, found.up(WORKER), 2)
    assert found.look() == []
    [process] = found.says()["roles"]["worker"]["processes"]
    assert (process["state"], process["ends"]) == ("RUNNING", 0)


def test_each_process_goes_its_own_way(make: Make) -> None:
    found = make(WORKER, SECOND)
    found.order(worker=worker())
    assert found.look() == [f"start {WORKER}", f"start {SECOND}"]
    for index, name in enumerate((WORKER, SECOND)):
        found.announces("worker", index, found.up(name), 1)
    found.order(worker=worker(2))
    assert found.look() == [f"stop {WORKER}", f"stop {SECOND}"]
    found.supervisor.set(SECOND, "STOPPED", pid=0)
    assert found.look() == [f"start {SECOND}"]


def test_a_process_that_ends_is_counted_once_and_tried_again_later(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    found = started(make)
    found.supervisor.set(WORKER, "FATAL", pid=0, stop=5, spawnerr="Exited too quickly (process log may have details)")
    assert found.look() == []
    assert found.look() == []
    [process] = found.says()["roles"]["worker"]["processes"]
    assert (process["ends"], process["ended"]) == (1, "it ended soon after its start")
    monkeypatch.setattr(found.module, "RETRY_SECONDS", -1.0)
    found.keeper.roles["worker"].processes["role-worker_0"].retry_at = 0.0
    found.supervisor.processes[WORKER]["spawnerr"] = ""
    assert found.look() == [f"start {WORKER}"]


def test_one_that_supervisor_started_again_by_itself_is_counted_too(make: Make) -> None:
    found = started(make)
    found.supervisor.set(WORKER, "RUNNING", pid=999)
    found.announces("worker", 0, 999, 1)
    assert found.look() == []
    assert found.says()["roles"]["worker"]["processes"][0]["ends"] == 1


def test_a_program_that_cannot_be_started_at_all_is_counted(make: Make) -> None:
    found = make(WORKER)
    found.supervisor.processes[WORKER]["spawnerr"] = "no such file"
    found.order(worker=worker())
    assert found.look() == [f"start {WORKER}"]
    assert found.says()["roles"]["worker"]["processes"][0] == {
        "name": "role-worker_0", "state": "STOPPED", "pid": 0, "ends": 1, "ended": "SPAWN_ERROR",
    }  # fmt: skip


def test_what_a_person_stopped_stays_stopped_until_the_next_generation(make: Make) -> None:
    found = started(make)
    found.supervisor.set(WORKER, "STOPPED", pid=0)
    assert found.look() == []
    assert found.look() == []
    found.again()
    assert found.look() == []
    found.order(worker=worker(2))
    assert found.look() == [f"start {WORKER}"]


def test_a_keeper_that_is_started_again_leaves_alone_what_runs(make: Make) -> None:
    found = started(make)
    found.again()
    assert found.look() == []
    # And stops what is not wanted any more, though another one started it.
    found.order(worker=worker(2))
    found.again()
    assert found.look() == [f"stop {WORKER}"]


def test_a_keeper_that_died_between_stop_and_start_starts(make: Make) -> None:
    found = started(make)
    found.order(worker=worker(2))
    found.look()
    found.again()
    found.supervisor.set(WORKER, "STOPPED", pid=0)
    assert found.look() == [f"start {WORKER}"]


def test_a_container_that_is_started_again_has_its_roles_started(make: Make) -> None:
    found = started(make)
    found.again()
    found.supervisor.processes[WORKER] = found.supervisor.info(WORKER)  # a new Supervisor has started none yet
    assert found.look() == [f"start {WORKER}"]


def test_a_program_of_the_image_is_announced_once_it_was_restarted(make: Make) -> None:
    found = make(MAILER)
    found.order(mailer=mailer())
    assert found.look() == [f"start {MAILER}"]
    pid = found.up(MAILER)
    assert found.look() == []
    told = found.announced("mailer", 0)
    assert (told["pid"], told["release"], told["generation"]) == (pid, COMMIT, 1)
    found.order(mailer=mailer(2, OTHER))
    assert found.look() == [f"stop {MAILER}"]
    assert found.announced("mailer", 0)["release"] == COMMIT
    found.supervisor.set(MAILER, "STOPPED", pid=0)
    assert found.look() == [f"start {MAILER}"]
    found.up(MAILER)
    found.look()
    assert found.announced("mailer", 0)["release"] == OTHER


def test_a_program_that_runs_unasked_is_no_proof_and_is_restarted(make: Make) -> None:
    found = make(MAILER)
    found.supervisor.set(MAILER, "RUNNING", pid=5, start=1)
    found.order(mailer=mailer())
    assert found.look() == [f"stop {MAILER}"]
    assert not (found.folder / "run" / "roles" / "mailer" / "0.json").exists()


def test_what_the_image_lacks_or_does_by_itself_is_told(make: Make) -> None:
    found = make(MAILER, autostart=True)
    found.order(mailer=mailer(0, None), other={**mailer(0, None), "program": "gone"})
    found.look()
    problems = found.says()["problems"]
    assert ["autostart=false" in one for one in problems] == [True, False]
    assert "no program or group gone" in problems[1]
