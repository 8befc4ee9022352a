"""The roles on the server's side: what Supervisor is told, and what of a container's words about them is believed."""

from __future__ import annotations

import configparser
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightship_agent.errors import ProtocolError
from lightship_agent.paths import ServicePaths
from lightship_agent.processes import processes_of
from lightship_agent.roles import RoleOrder, parse_role, read_back, render_conf, role_orders
from lightship_agent.running import RoleView, problems, read_roles, roles_facts
from lightship_agent.slots import InstanceOrder, read_order, write_order
from lightship_agent.space import releases_in_use

COMMIT, OTHER = "a" * 40, "b" * 40
WORKER = parse_role("worker", {"command": ["celery", "worker"], "processes": 2, "patience": 0.5, "settle": 0})
MAILER = parse_role("mailer", {"program": "mailer", "settle": 0})
#: This process stands for one of the container's: the kernel knows it, and for how long.
PID = os.getpid()


@pytest.fixture
def paths(tmp_path: Path) -> ServicePaths:
    found = ServicePaths.at(str(tmp_path), "shop")
    for folder in (found.code, found.instances, found.releases, found.state, found.roles(1) / "worker"):
        folder.mkdir(parents=True)
    (found.roles(1) / "mailer").mkdir()
    return found


def conf(text: str) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser()
    parser.read_string(text)
    return parser


def test_supervisor_is_told_of_the_commands_and_of_the_keeper() -> None:
    found = conf(render_conf(3, {"worker": WORKER, "mailer": MAILER}, "/opt/venv/bin/python3"))
    assert found.sections() == ["program:lightship-roles", "program:role-worker"]
    worker = found["program:role-worker"]
    launcher = "/opt/venv/bin/python3 -I -S /srv/lightship/code/boot/launcher.py role worker %(process_num)d"
    assert worker["command"] == launcher
    assert (worker["numprocs"], worker["autostart"], worker["stopsignal"]) == ("2", "false", "TERM")
    # Whole seconds, and never none: Supervisor would kill at once.
    assert (worker["stopwaitsecs"], worker["startsecs"]) == ("1", "1")


def test_without_roles_nothing_is_run_and_the_file_is_there_all_the_same() -> None:
    text = render_conf(3, {}, "/opt/venv/bin/python3")
    assert conf(text).sections() == []
    assert "instance 3" in text


@pytest.mark.parametrize("python", ["/x y", "python3\ncommand=/evil", "%(ENV_X)s", "", "/a;b"])
def test_an_image_cannot_write_into_the_file_by_the_name_of_its_python(python: str) -> None:
    assert conf(render_conf(1, {"worker": WORKER}, python))["program:lightship-roles"]["command"].startswith(
        "/opt/venv/bin/python3 "
    )


def test_what_is_written_is_read_back(paths: ServicePaths) -> None:
    roles = {"worker": WORKER.running(COMMIT, 7), "mailer": MAILER}
    write_order(paths, 1, InstanceOrder("a:b", None, 30.0, (), {}, roles, web=False))
    found = read_order(paths, 1)
    assert found is not None
    assert (found.roles, found.web) == (roles, False)
    assert found.roles["worker"].resting().release is None
    # A file of an earlier version knows of none.
    assert read_back({}) == {}


def test_what_a_role_runs_is_not_pruned(paths: ServicePaths) -> None:
    write_order(paths, 1, InstanceOrder("a:b", None, 30.0, (), {}, {"worker": WORKER.running(OTHER, 7)}))
    assert OTHER in releases_in_use(paths)


@pytest.mark.parametrize("name", ["web", "Worker", "a b", "../x", "a\n", "x" * 41, ""])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ProtocolError):
        role_orders({name: {"command": ["true"]}})


# --- what a container says -------------------------------------------------------------------------------------------


class Told:
    """A container that says of its roles what the test wants."""

    def __init__(self, paths: ServicePaths) -> None:
        self.paths = paths
        self.order = parse_role("worker", {"command": ["true"], "settle": 0}).running(COMMIT, 7)
        self.first = PID

    def status(self, *processes: dict[str, Any], wanted: Any = 7, **more: Any) -> None:
        told = {"problems": [], "roles": {"worker": {"wanted": wanted, "processes": list(processes)}}, **more}
        (self.paths.roles(1) / "status.json").write_text(json.dumps(told))

    def says(self, **changes: Any) -> None:
        told = {"pid": PID, "release": COMMIT, "generation": 7, "time": 1.0, **changes}
        (self.paths.roles(1) / "worker" / "0.json").write_text(json.dumps(told))

    def view(self) -> RoleView:
        return read_roles(self.paths, 1, {"worker": self.order}, self.first)["worker"]


def process(**changes: Any) -> dict[str, Any]:
    return {"name": "role-worker_0", "state": "RUNNING", "pid": PID, "ends": 0, "ended": "", **changes}


@pytest.fixture
def told(paths: ServicePaths) -> Told:
    made = Told(paths)
    made.status(process())
    made.says()
    return made


def test_a_process_counts_when_itself_supervisor_and_the_kernel_say_the_same(told: Told) -> None:
    view = told.view()
    assert view.problem == ""
    assert [(one.pid, one.release) for one in view.processes] == [(PID, COMMIT)]
    facts = roles_facts(told.paths, 1, {"worker": told.order}, PID)["worker"]
    assert (facts["problem"], facts["wanted"], len(facts["processes"])) == ("", 1, 1)


LIES: dict[str, tuple[Callable[[Told], Any], str]] = {
    "another release": (lambda told: told.says(release=OTHER), "it runs bbbbbbb"),
    "a release that is none": (lambda told: told.says(release="../../etc"), "it runs nothing"),
    "another generation": (lambda told: told.says(generation=6), "it runs"),
    "another process": (lambda told: told.says(pid=PID + 1), "not there yet"),
    "a process that the kernel does not know": (
        lambda told: (told.says(pid=2**22 + 5), told.status(process(pid=2**22 + 5))),
        "not there yet",
    ),
    "still starting": (lambda told: told.status(process(state="STARTING")), "just started"),
    "given up": (lambda told: told.status(process(state="FATAL", pid=0)), "FATAL"),
    "it ended": (lambda told: told.status(process(state="BACKOFF", pid=0, ends=1, ended="exit status 3")), "status 3"),
    "stopped by hand, after it had ended once": (
        lambda told: told.status(process(state="STOPPED", pid=0, ends=1, ended="exit status 3")),
        "it is STOPPED",
    ),
    "an older order": (lambda told: told.status(process(), wanted=6), "not taken up"),
    "no process at all": (lambda told: told.status(), "0 of 1"),
    "numbers past all bounds": (lambda told: told.status(process(pid=10**400, ends=10**400)), "not there yet"),
    "texts for numbers": (lambda told: told.status(process(pid=str(PID))), "not there yet"),
    "lists for texts": (lambda told: told.status(process(state=["RUNNING"], ended=[{}], ends=1)), "it ended"),
    "no object": (lambda told: (told.paths.roles(1) / "status.json").write_text("[]"), "not taken up"),
    "no JSON": (lambda told: (told.paths.roles(1) / "status.json").write_text("{" * 100_000), "not taken up"),
    "too much": (lambda told: (told.paths.roles(1) / "status.json").write_text(" " * 10**6), "not taken up"),
    "roles that are none": (lambda told: told.status(roles=[1]), "not taken up"),
}


@pytest.mark.parametrize("lie", LIES)
def test_whatever_else_a_container_says_is_no_proof(told: Told, lie: str) -> None:
    LIES[lie][0](told)
    assert LIES[lie][1] in told.view().problem


def test_a_thousand_processes_are_cut(told: Told) -> None:
    told.status(*[process(name=f"x{number}") for number in range(1000)])
    assert len(told.view().processes) == 100


def test_links_and_pipes_are_not_followed(told: Told, tmp_path: Path) -> None:
    (tmp_path / "bait").write_text(json.dumps({"pid": PID, "release": COMMIT, "generation": 7}))
    announcement = told.paths.roles(1) / "worker" / "0.json"
    announcement.unlink()
    announcement.symlink_to(tmp_path / "bait")
    assert "not there yet" in told.view().problem
    announcement.unlink()
    os.mkfifo(announcement)
    begun = time.monotonic()
    assert "not there yet" in told.view().problem
    assert time.monotonic() - begun < 5
    (told.paths.roles(1) / "status.json").unlink()
    assert problems(told.paths, 1) is None
    assert told.view().problem == "the role worker was not taken up"


def test_a_process_must_stay_up_as_long_as_is_asked(told: Told) -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        told.order = parse_role("worker", {"command": ["true"], "settle": 300}).running(COMMIT, 7)
        told.status(process(pid=child.pid))
        told.says(pid=child.pid)
        assert "just started" in told.view().problem
        told.order = parse_role("worker", {"command": ["true"], "settle": 0.1}).running(COMMIT, 7)
        time.sleep(0.2)
        assert told.view().problem == ""
        child.kill()


def test_a_container_that_does_not_run_runs_no_role(told: Told) -> None:
    facts = roles_facts(told.paths, 1, {"worker": told.order}, 0)["worker"]
    assert (facts["problem"], facts["processes"]) == ("the container does not run", [])


def test_the_kernel_knows_the_processes_of_a_namespace_and_their_age() -> None:
    found = processes_of(PID)
    assert found is not None
    assert PID in found
    assert 0 <= found[PID] < 86_400 * 365
    assert processes_of(2**22 + 5) is None
    with subprocess.Popen(["sleep", "60"]) as child:
        assert (processes_of(PID) or {})[child.pid] < 30
        child.kill()


def test_a_role_that_rests_has_stopped_when_no_process_is_left(told: Told) -> None:
    told.order = told.order.resting()
    told.status(process(), wanted=None)
    assert (told.view().heard, told.view().stopped) == (True, False)
    told.status(process(pid=0, state="STOPPED"), wanted=None)
    assert (told.view().heard, told.view().stopped) == (True, True)


def test_an_order_says_what_it_is() -> None:
    assert isinstance(WORKER, RoleOrder)
    assert WORKER.running(COMMIT, 7).definition() == WORKER.definition()
