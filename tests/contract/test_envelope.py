"""What programs may rely on: the envelope of ``--json``, held to golden files.

A key that goes away or changes its meaning needs a new ``VERSION``; a new key may come at any time and only has to be
added to the golden file, by hand, so that somebody sees what changes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightship.errors import RefusedError
from lightship.model import (
    Change,
    Commit,
    Container,
    Facts,
    FileChange,
    Plan,
    ProxyClaim,
    ProxyFacts,
    Release,
    Role,
    RoleProcess,
    ServerResult,
    Slot,
    Step,
    StepTiming,
    Worker,
)
from lightship.operations.connections import Closed, Connections, Kept, Problem
from lightship.operations.trace import Found, explained, listed
from lightship.output.json import VERSION, dumps, envelope
from lightship.result import PlanResult, ReleasesResult, ServerReleases, ServerStatus, StatusResult, Timing, Wait
from lightship.rollout.result import RolloutResult
from lightship.trace.spans import Span, Trace

GOLDEN = Path(__file__).parent / "golden"
OLD, NEW = "a" * 40, "b" * 40
WORKER = Worker(1, 17, NEW, "serving", 1700000000.5)
PROCESS = RoleProcess("worker", 0, 18, NEW, "RUNNING")
CHANGE = Change(
    NEW,
    "Fix \x1b[2J",
    "A",
    1.0,
    OLD,
    (Commit(NEW, "Fix"),),
    1,
    True,
    (FileChange("M", "a.py"),),
    1,
    {"Dockerfile": "1"},
    None,
)
PLAN = Plan("code", NEW, ("1 file changed (a.py)",), (Step("tree", "lay out", "x"),), CHANGE)
RELEASE = Release(NEW, 1.0, "stable", "deploy main", "Fix", "fp")
FACTS = Facts(
    hostname="h", python="3.11", docker="20", git="2.39.5", current=NEW, stable=NEW, previous=OLD, releases=(RELEASE,),
    container=Container("shop-1", "id", 1, True, "running", "t", "i", "ii", "fp", "s", "swap"),
    slots={"0": Slot(NEW, True, (WORKER,), "3")}, free_bytes=1, free_inodes=2, env_digest="d",
    roles={"worker": Role(NEW, 1, (PROCESS,), "")},
    proxy=ProxyFacts("lightship-proxy", "haproxy:2.6", True, True, True, 1, ProxyClaim(("shop.example",), http=80)),
)  # fmt: skip
ERROR = RefusedError("it does not start", hint="fix it", code="boot-failed", detail={"traceback": "KeyError: 1"})
DONE = ServerResult(
    "local", "done", "code", NEW, OLD, NEW, (StepTiming("tree", 0.05),), (WORKER,), 0.6, processes=(PROCESS,)
)
TIMING = Timing("0" * 32, 0.7, (Wait("soak", 0.5), Wait("start", 0.2)), ("lower `soak:`",))
SPANS = Span("deploy", 0.0, 0.7, grade="command", children=(Span("verify", 0.2, 0.7, "local", "phase"),))
TRACES = Found(
    "shop",
    (Trace("0" * 32, "deploy", "shop", 1700000000.5, "me@here", SPANS, "done", "code", "main", NEW, OLD, "",
           {"local": "done"}, 1),),
    {"web2": "it cannot be reached"},
)  # fmt: skip
RESULTS: dict[str, dict[str, Any]] = {
    "deploy": envelope(
        "deploy",
        RolloutResult(
            "shop",
            "main",
            "code",
            NEW,
            "Fix",
            OLD,
            "done",
            ("w",),
            (DONE,),
            (("local", PLAN),),
            seconds=0.62,
            timing=TIMING,
        ),
    ),
    "refused": envelope(
        "deploy",
        RolloutResult("shop", "main", "code", NEW, "Fix", OLD, "refused", ("w",), (), (), error=ERROR),
        error=ERROR,
    ),
    "plan": envelope("plan", PlanResult("shop", "main", NEW, "Fix", "code", (("local", PLAN),))),
    "status": envelope(
        "status", StatusResult("shop", "main", NEW, "", (ServerStatus("local", NEW, NEW, (NEW,), FACTS),))
    ),
    "releases": envelope("releases", ReleasesResult("shop", (ServerReleases("local", NEW, NEW, OLD, (RELEASE,)),))),
    "trace": envelope("trace", explained(TRACES, None)),
    "traces": envelope("trace", listed(TRACES)),
    "connections": envelope(
        "connections",
        Connections(
            (Kept("web1", "deploy", "web1.example.org", 1700000000.5, 299.5, 3, in_use=False),),
            (Problem("web2", "it cannot be reached"),),
            17,
        ),
    ),
    "connections-closed": envelope("connections", Closed(2, 1)),
    "error": envelope("deploy", error=ERROR),
}


def test_the_version_is_known() -> None:
    assert VERSION == 1, "a new version needs new golden files and a word in docs/reference/cli.md"


@pytest.mark.parametrize("name", RESULTS)
def test_the_shape_is_as_promised(name: str) -> None:
    golden = json.loads((GOLDEN / f"{name}.json").read_text("utf-8"))
    assert json.loads(dumps(RESULTS[name])) == golden
    assert list(golden) == ["version", "command", "ok", "exit_status", "result", "error"]


@pytest.mark.parametrize("name", RESULTS)
def test_the_text_is_inert(name: str) -> None:
    text = dumps(RESULTS[name])
    assert text.isascii()
    assert text.replace("\n", "").isprintable()
