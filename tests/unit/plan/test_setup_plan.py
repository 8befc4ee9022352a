"""The plan of setup, from what was found on a server; and the commands that its program builds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from lightship.errors import UsageError
from lightship.operations.setup import ServerSetup, SetupOptions, SetupResult
from lightship.plan.setup import Item, plan_setup
from lightship_agent import setup as program

READY: dict[str, Any] = {
    "uid": 0,
    "user": "root",
    "sudo": False,
    "python": "3.11.2",
    "os": {"id": "debian", "pretty_name": "Debian GNU/Linux 12 (bookworm)"},
    "apt": True,
    "git": "2.39.5",
    "docker": "20.10.24",
    "engine": {"version": "20.10.24", "error": ""},
    "systemd": True,
    "enabled": True,
    "certificates": True,
    "root": {"path": "/srv/lightship", "kind": "directory", "uid": 0, "gid": 0, "mode": 0o755},
}
NO_ENGINE = {"version": None, "error": "cannot connect"}


def states(**other: Any) -> dict[str, str]:
    return {one.name: one.state for one in plan_setup({**READY, **other}).items}


def test_a_ready_server_needs_nothing() -> None:
    plan = plan_setup(READY)
    assert plan.ready
    assert (plan.changes, plan.packages, plan.engine, plan.make_root) == (0, (), False, False)


def test_a_bare_debian_gets_its_own_packages() -> None:
    none = {"path": "/srv/lightship", "kind": "none"}
    plan = plan_setup({**READY, "git": None, "docker": None, "engine": NO_ENGINE, "certificates": False, "root": none})
    assert plan.packages == ("git", "ca-certificates", "docker.io")
    assert plan.engine
    assert plan.make_root
    assert plan.changes == 5
    assert all(name in program.PACKAGES for name in plan.packages)


def test_elsewhere_nothing_is_installed() -> None:
    plan = plan_setup({**READY, "os": {"id": "fedora", "pretty_name": "Fedora 41"}, "apt": False, "git": None})
    assert plan.packages == ()
    (git,) = [one for one in plan.items if one.name == "git"]
    assert git.state == "person"
    assert "Fedora 41" in git.hint
    # Some other system with an apt-get is none of Debian's either, one that is made of it is.
    assert plan_setup({**READY, "os": {"id": "x"}, "git": None}).packages == ()
    assert plan_setup({**READY, "os": {"id": "x", "id_like": "ubuntu debian"}, "git": None}).packages == ("git",)


def test_without_python_it_comes_first() -> None:
    plan = plan_setup({**READY, "python": None, "looked": False})
    assert plan.packages == ("python3",)
    assert states(python="3.8")["python3"] == "person"
    assert states(python="3.9")["python3"] == "ok"
    assert states(python="3.10.1")["python3"] == "ok"


def test_without_root_nothing_is_planned() -> None:
    plan = plan_setup({"uid": -1, "why": "sudo asks for a password there", "hint": "do this"})
    assert [(one.state, one.hint) for one in plan.items] == [("person", "do this")]


@pytest.mark.parametrize(
    ("other", "state"),
    [
        ({"engine": NO_ENGINE}, "change"),
        ({"engine": NO_ENGINE, "systemd": False}, "person"),
        ({"engine": NO_ENGINE, "docker": None, "apt": False}, "person"),
        ({"enabled": False}, "change"),
        ({"enabled": None}, "ok"),
    ],
)
def test_the_engine(other: dict[str, Any], state: str) -> None:
    assert states(**other)["engine"] == state


@pytest.mark.parametrize(
    ("other", "state"),
    [
        ({"uid": 1000}, "change"),
        ({"gid": 1000}, "change"),
        ({"mode": 0o777}, "change"),
        ({"mode": 0o700}, "change"),
        ({"kind": "link"}, "person"),
        ({"kind": "other"}, "person"),
    ],
)
def test_the_directory(other: dict[str, Any], state: str) -> None:
    assert states(root={**READY["root"], **other})["directory"] == state


def test_only_packages_of_the_list_are_installed() -> None:
    assert program.install(["git"])[-3:] == ["install", "--", "git"]
    for strange in (["nmap"], ["git", "-o"], [], ["git; id"], ["./x.deb"]):
        with pytest.raises(ValueError):
            program.install(strange)


def test_a_command_that_takes_too_long_is_ended() -> None:
    done = program.execute(["sh", "-c", "echo begun; sleep 60"], 0.3)
    assert done.status is None
    assert "begun" in done.output
    assert "took more than" in done.output
    assert program.execute(["/nowhere/program"], 1).status is None


def test_what_is_said_of_the_system() -> None:
    text = 'ID=ubuntu\nID_LIKE="debian"\nPRETTY_NAME="Ubuntu 24.04"\nHOME_URL=x\n'
    assert program.os_release(text) == {"id": "ubuntu", "id_like": "debian", "pretty_name": "Ubuntu 24.04"}
    assert program.os_release("") == {}


def test_the_directory_is_not_made_anywhere(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("/etc")
    for path in ("/srv", "/", "relative/x", "/srv/../etc", "/srv/a b", str(link)):
        with pytest.raises(program.StepError):
            program.make_root(path)
    assert program.look_at_root(str(link))["kind"] == "link"
    assert program.look_at_root(str(tmp_path / "none"))["kind"] == "none"
    if os.geteuid() == 0:
        program.make_root(str(tmp_path / "a" / "b"))
        found = program.look_at_root(str(tmp_path / "a" / "b"))
        assert (found["uid"], found["gid"], found["mode"]) == (0, 0, 0o755)


def test_a_fingerprint_is_whole() -> None:
    SetupOptions(accept=("SHA256:" + "a" * 43,))
    for wrong in ("a" * 43, "SHA256:abc", "MD5:00", "sha256:" + "a" * 43):
        with pytest.raises(UsageError):
            SetupOptions(accept=(wrong,))


def test_the_exit_status() -> None:
    ok, left = ServerSetup("a", (Item("git", "ok", ""),)), ServerSetup("b", (Item("git", "person", ""),))
    assert SetupResult("s", False, (), (ok,), 3).exit_status == 0
    assert SetupResult("s", False, (), (ok, left), 0).exit_status == 3
    assert SetupResult("s", False, (), (ok, left), 2).exit_status == 5
    assert SetupResult("s", True, (), (ok, left), 0).exit_status == 0
