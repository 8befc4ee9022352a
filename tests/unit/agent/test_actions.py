"""What an operation asks of git, and what it takes as known."""

from __future__ import annotations

import fcntl
import threading
from pathlib import Path
from typing import Any

import pytest

from lightship_agent import actions
from lightship_agent.actions import Actions
from lightship_agent.git import Mirror
from lightship_agent.paths import ServicePaths
from support.repo import Repository


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Actions:
    """A conversation that only looks, after its hello."""
    # Who owns them is root's to say; here they are the test's.
    monkeypatch.setattr(actions, "make_directories", lambda paths: paths.state.mkdir(parents=True, exist_ok=True))
    monkeypatch.setattr(actions, "require_space", lambda *_: None)
    made = Actions(lambda event: None, lambda: False)
    made._paths = ServicePaths.at(str(tmp_path), "shop")
    made._mirror = Mirror(made._paths)
    return made


@pytest.mark.parametrize("another", [False, True])
def test_a_commit_is_looked_for_again_when_another_one_may_have_brought_it(
    plan: Actions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, another: bool
) -> None:
    repository = Repository(tmp_path / "git")
    commit = repository.commit(files={"a": "1"})
    assert plan._paths is not None
    looked: list[str] = []
    fetched: list[bool] = []
    has, fetch = Mirror.has_commit, Mirror._fetch
    monkeypatch.setattr(Mirror, "has_commit", lambda self, one: bool(looked.append(one)) or has(self, one))
    monkeypatch.setattr(Mirror, "_fetch", lambda *args, **more: bool(fetched.append(True)) or fetch(*args, **more))
    inspect: dict[str, Any] = {"commit": commit, "ref": "main", "repository": str(repository.remote)}
    if not another:
        assert plan._inspect(inspect)["commit"] == commit
        assert (looked, fetched) == ([commit], [True])
        return
    plan._paths.state.mkdir(parents=True)
    with (plan._paths.state / "mirror.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        asked: list[int] = []
        flock = fcntl.flock
        monkeypatch.setattr(fcntl, "flock", lambda file, kind: asked.append(kind) or flock(file, kind))
        thread = threading.Thread(target=plan._inspect, args=(inspect,))
        thread.start()
        while fcntl.LOCK_EX not in asked and thread.is_alive():
            thread.join(0.01)
        Mirror(plan._paths).fetch(str(repository.remote), "main", commit, look=False)
    thread.join()
    assert (looked, fetched) == ([commit, commit], [True])
