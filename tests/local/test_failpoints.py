"""Every side effect has a named fail point, and every name is one that a test can use."""

from __future__ import annotations

import ast
import importlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lightship import failpoints as controllers
from lightship.errors import TransportError
from lightship_agent import failpoints
from lightship_agent.errors import AgentFailure
from lightship_agent.protocol import OPERATIONS

AGENT = Path(failpoints.__file__).parent
MODULES = sorted(path.stem for path in AGENT.glob("*.py") if not path.stem.startswith("__"))


def named_in_the_source() -> list[str]:
    """The names that ``fail_point`` is called with, anywhere in the agent."""
    found = []
    for path in AGENT.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "fail_point":
                (name,) = node.args
                assert isinstance(name, ast.Constant), f"{path.name}:{node.lineno}: the name must stand there"
                found.append(str(name.value))
    return found


def registered() -> set[str]:
    """What the agent's own modules register, in a process where no test has added anything."""
    program = f"import importlib\nfor name in {MODULES}: importlib.import_module('lightship_agent.' + name)\n"
    program += "from lightship_agent.failpoints import FAIL_POINTS\nprint('\\n'.join(FAIL_POINTS))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_every_fail_point_in_the_source_is_registered_and_every_registered_one_is_used() -> None:
    assert set(named_in_the_source()) == registered()


def test_every_module_of_the_agent_that_changes_something_has_fail_points() -> None:
    changing = ("os.rename(", "os.unlink(", "atomic_write(", "swap_link(", "append(", "remove_tree(", "os.utime(")
    for name in MODULES:
        if name == "system":  # its callers have them: what a write means is known there
            continue
        text = (AGENT / f"{name}.py").read_text()
        if any(f"system.{call}" in text or call in text for call in changing if call != "append("):
            assert "fail_point(" in text, f"{name} changes files and has no fail point"


def test_the_controller_has_one_before_and_one_after_each_operation() -> None:
    around = {f"{moment}.{op}" for op in OPERATIONS for moment in ("ask", "answered")}
    assert set(controllers.FAIL_POINTS) == around | set(controllers.OWN)
    assert not set(controllers.FAIL_POINTS) & registered()


def test_every_point_of_the_controllers_own_is_in_its_source() -> None:
    texts = [path.read_text() for path in Path(controllers.__file__).parent.rglob("*.py")]
    for name in controllers.OWN:
        assert any(f'fail_point("{name}")' in text for text in texts), name


@pytest.fixture
def testing(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    importlib.import_module("lightship_agent.journal")
    monkeypatch.setenv("LIGHTSHIP_TESTING", "1")
    monkeypatch.setattr(failpoints, "_times", {})
    return monkeypatch


def test_an_action_can_wait_for_the_third_time(testing: pytest.MonkeyPatch) -> None:
    testing.setenv("LIGHTSHIP_FAILPOINTS", "journal.doing=error*1@3")
    failpoints.fail_point("journal.doing")
    failpoints.fail_point("journal.doing")
    with pytest.raises(AgentFailure):
        failpoints.fail_point("journal.doing")
    failpoints.fail_point("journal.doing")


def test_the_points_that_were_passed_are_written_down(testing: pytest.MonkeyPatch, tmp_path: Path) -> None:
    testing.setenv("LIGHTSHIP_FAILPOINTS_LOG", str(tmp_path / "log"))
    failpoints.fail_point("journal.doing")
    failpoints.fail_point("journal.done")
    assert (tmp_path / "log").read_text().split() == ["journal.doing", "journal.done"]


def test_in_a_child_it_is_the_agent_that_is_killed_and_the_child_goes_on(tmp_path: Path) -> None:
    program = """
import pathlib, sys, time
from lightship_agent import journal
from lightship_agent.failpoints import fail_point
from lightship_agent.system import detached
def work():
    fail_point("journal.doing")
    time.sleep(0.2)
    written = pathlib.Path(sys.argv[1] + ".new")
    written.write_text("done")
    written.rename(sys.argv[1])
detached(work)
"""
    for action, status in (("kill", -signal.SIGKILL), ("kill-child", 0)):
        path = tmp_path / action
        env = {**os.environ, "LIGHTSHIP_TESTING": "1", "LIGHTSHIP_FAILPOINTS": f"journal.doing={action}"}
        process = subprocess.Popen([sys.executable, "-c", program, str(path)], env=env)
        assert process.wait() == status
        for _ in range(100):
            if path.exists():
                break
            signal.sigtimedwait([], 0.1)
        assert path.read_text() == "done"


def test_one_process_is_killed_and_those_after_it_pass(tmp_path: Path) -> None:
    program = "from lightship_agent import journal, failpoints; failpoints.fail_point('journal.doing')"
    env = {**os.environ, "LIGHTSHIP_TESTING": "1", "LIGHTSHIP_FAILPOINTS_LOG": str(tmp_path / "log")}
    for action, expected in (("kill*1", [-9, 0, 0]), ("kill*2", [-9, -9, 0]), ("kill", [-9, -9, -9])):
        env["LIGHTSHIP_FAILPOINTS"] = f"journal.doing={action}"
        (tmp_path / "log").unlink(missing_ok=True)
        found = [subprocess.run([sys.executable, "-c", program], env=env, check=False).returncode for _ in range(3)]
        assert found == expected, action


def test_the_controllers_points_do_nothing_in_earnest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTSHIP_FAILPOINTS", "ask.verify=error,journal.done=kill")
    monkeypatch.delenv("LIGHTSHIP_TESTING", raising=False)
    controllers.ask("verify")
    monkeypatch.setenv("LIGHTSHIP_TESTING", "1")
    controllers.answered("verify")
    with pytest.raises(TransportError):
        controllers.ask("verify")


def test_an_action_of_the_controller_can_wait_and_come_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTSHIP_TESTING", "1")
    monkeypatch.setattr(controllers, "_times", {})
    monkeypatch.setenv("LIGHTSHIP_FAILPOINTS", "ask.verify=error*1@2")
    controllers.ask("verify")
    with pytest.raises(TransportError):
        controllers.ask("verify")
    controllers.ask("verify")
