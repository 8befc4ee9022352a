"""What doctor says of what was found."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lightship.config.load import parse
from lightship.model import Container, Facts, HistoryEntry, Slot, Worker
from lightship.operations.doctor import Check, DoctorResult, _request, judge_clock, judge_examined, judge_service
from lightship_agent.setup import ls_remote, unfinished

OLD, NEW = "a" * 40, "b" * 40


def facts(**other: Any) -> Facts:
    worker = Worker(1, 17, other.pop("loaded", NEW), other.pop("worker", "serving"), 0.0)
    found: dict[str, Any] = {
        "hostname": "h",
        "current": NEW,
        "stable": NEW,
        "container": Container("shop-1", "id", 1, True, "running"),
        "slots": {"0": Slot(NEW, True, (worker,), "1")},
        "history": (HistoryEntry("1", "code", NEW, "done", 1.0, 1.0),),
        **other,
    }
    return Facts(**found)


def wrong(found: Facts) -> set[str]:
    checks = judge_service(found, "web1")
    assert all(one.hint for one in checks if one.state == "wrong")
    return {one.name for one in checks if one.state == "wrong"}


@pytest.mark.parametrize(
    ("other", "names"),
    [
        ({}, set()),
        ({"container": None}, {"container"}),
        ({"container": Container("shop-1", "id", 1, False, "exited")}, {"container"}),
        ({"container": Container("shop-1", "id", 1, True, "restarting")}, {"container"}),
        ({"loaded": OLD}, {"workers"}),
        ({"worker": "booting"}, {"workers"}),
        ({"slots": {}}, {"workers"}),
        ({"stable": OLD}, {"rollout"}),
        ({"history": (HistoryEntry("1", "code", NEW, "degraded", 1.0, 1.0),)}, {"rollout"}),
    ],
)
def test_the_service(other: dict[str, Any], names: set[str]) -> None:
    assert wrong(facts(**other)) == names


def test_a_server_without_the_service_is_only_warned_of() -> None:
    (check,) = judge_service(Facts(hostname="h"), "web1")
    assert check.state == "warning"


@pytest.mark.parametrize(("there", "state"), [(100.0, "ok"), (96.0, "ok"), (94.0, "wrong"), (107.1, "wrong")])
def test_the_clock(there: float, state: str) -> None:
    assert judge_clock(100.0, there, 102.0, "web1").state == state


@pytest.mark.parametrize(("source", "asked", "state"), [("push", "", "ok"), ("pull", "/srv/git/shop", "wrong")])
def test_servers_need_the_git_host_only_where_they_fetch_the_code(source: str, asked: str, state: str) -> None:
    service = parse(json.dumps({"services": {"shop": {"repository": "/srv/git/shop", "source": source}}})).service()
    assert _request(service)["repository"] == asked
    answer = {"status": 128, "found": False, "output": "fatal: no way there"} if asked else None
    checks = judge_examined(service, {"free_bytes": 1 << 40, "free_inodes": 1 << 30, "git": answer}, None, "web1")
    assert {one.name: one.state for one in checks}["git from there"] == state


def test_the_exit_status() -> None:
    fine = [Check("a", "ok", ""), Check("b", "warning", ""), Check("c", "unknown", "")]
    assert DoctorResult("s", tuple(fine)).exit_status == 0
    assert DoctorResult("s", (*fine, Check("d", "wrong", ""))).exit_status == 5


def test_the_journal() -> None:
    begin, end = '{"phase": "begin"}\n', '{"phase": "end"}\n'
    assert not unfinished("")
    assert unfinished(begin)
    assert unfinished(begin + '{"phase": "doing"}\n{"pha')
    assert not unfinished(begin + end)


def test_git_gets_no_option_and_runs_no_program() -> None:
    assert ls_remote("git@host:a.git", "main")[-4:] == ["--", "git@host:a.git", "refs/heads/main", "refs/tags/main"]
    for repository, ref in (("--upload-pack=x", "main"), ("ext::sh -c id", "main"), ("/a", "-x"), ("/a", "a b")):
        with pytest.raises(ValueError):
            ls_remote(repository, ref)
