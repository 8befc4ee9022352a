"""Where the time of real deploys went: told by the command, kept by the server, and there after a kill, too."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.engine import Engine
from support.site import Said, Site

IMPORT = 0.4
#: Of the time from the command's start, as its caller sees it, to its end so much is allowed to be missing: what the
#: operating system does to start and to end a process, and the writing of the result. A loaded machine takes its share.
MISSING_SHARE, MISSING_SECONDS = 0.04, 0.12


@pytest.fixture(scope="module")
def site(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(engine, tmp_path_factory.mktemp("trace"), settings={"health": {"path": "/health/"}, "soak": 0.4})
    made.environment["XDG_STATE_HOME"] = str(made.folder / "state")
    try:
        made.deploy()
        yield made
    finally:
        made.close()


def trace(site: Site, *arguments: str, **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = site.run("trace", "--json", *arguments, expect=0, **options).result
    return found


def waits(timing: dict[str, Any]) -> dict[str, float]:
    return {one["what"]: one["seconds"] for one in timing["waits"]}


def spans(span: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield span
    for one in span["children"]:
        yield from spans(one)


def is_whole(said: Said, found: dict[str, Any]) -> None:
    """What the critical path's spans add up to is the command's time, as whoever waited for it saw it."""
    total = sum(one["end"] - one["start"] for one in found["critical"])
    assert total == pytest.approx(found["timing"]["seconds"], abs=0.001)
    assert sum(waits(found["timing"]).values()) == pytest.approx(total, abs=0.001)
    assert said.seconds - total == pytest.approx(0, abs=MISSING_SHARE * said.seconds + MISSING_SECONDS)
    assert total < said.seconds + 0.02
    # Next to nothing of it is nobody's.
    assert waits(found["timing"]).get("other", 0.0) < 0.1 * total


def test_a_deploy_says_where_its_time_went(site: Site) -> None:
    commit = site.change("v2", import_seconds=IMPORT)
    said = site.deploy()
    found = trace(site)
    assert (found["trace"]["commit"], found["trace"]["outcome"], found["trace"]["kind"]) == (commit, "done", "code")
    is_whole(said, found)
    told = waits(said.result["timing"])
    assert told["soak"] == pytest.approx(0.4, abs=0.1)
    assert told["import"] == pytest.approx(IMPORT, abs=0.1)
    assert {"start", "connection", "git"} <= set(told)
    assert found["trace"]["id"] == said.result["timing"]["trace"]
    assert any("soak" in hint for hint in said.result["timing"]["shorter"])


def test_a_rollback_does_too_and_waits_for_no_git_host(site: Site) -> None:
    said = site.run("rollback", "--json", expect=0)
    found = trace(site)
    assert found["trace"]["command"] == "rollback"
    is_whole(said, found)
    assert "git" not in waits(found["timing"])


def test_a_refused_deploy_does_too(site: Site) -> None:
    commit = site.change("v3", more="1/0")
    said = site.deploy(expect=3)
    found = trace(site, commit[:9])
    assert (found["trace"]["outcome"], found["trace"]["error"]) == ("refused", "boot-failed")
    is_whole(said, found)
    assert [one["name"] for one in spans(found["trace"]["root"]) if one["state"] == "failed"] == [
        "deploy",
        "prepare",
        "boot",
    ]


def test_a_deploy_that_reached_no_rollout_is_known_here(site: Site) -> None:
    said = site.deploy("--commit", "f" * 40, expect=3)
    found = trace(site)
    assert (found["trace"]["outcome"], found["trace"]["error"]) == ("", said.error["code"])
    is_whole(said, found)


def test_people_get_one_line_and_a_picture(site: Site) -> None:
    # On a busy machine anything may take its time: what is told first is the longest, so this has to be that.
    site.configure(soak=1.5)
    site.change("v4", import_seconds=IMPORT)
    said = site.run("deploy", expect=0)
    last = said.stdout.splitlines()[-1]
    assert "s in all: soak 1.5" in last and "to shorten it: lower `soak:`" in last
    shown = site.run("trace", expect=0).stdout
    assert "█" in shown and "waited for" in shown and "import of the application" in shown
    assert "\x1b" not in shown
    assert site.run("trace", environment={"PYTHONIOENCODING": "ascii"}, expect=0).stdout.isascii()


def test_another_controller_sees_what_the_server_kept(site: Site, tmp_path: Path) -> None:
    commit = site.change("v5")
    made = site.deploy().result["timing"]["trace"]
    elsewhere = {"XDG_STATE_HOME": str(tmp_path)}
    found = trace(site, environment=elsewhere)
    assert (found["trace"]["id"], found["trace"]["commit"]) == (made, commit)
    assert {"prepare", "activate", "verify", "commit", "connect", "soak"} <= {
        one["name"] for one in spans(found["trace"]["root"])
    }
    listed = site.run("trace", "--list", "--json", environment=elsewhere, expect=0).result["traces"]
    assert listed[0]["id"] == made
    assert {one["outcome"] for one in listed} == {"done", "refused"}, "what came to no rollout no server knows"
    kept = site.home / "state" / "traces"
    assert kept.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in kept.iterdir()} == {0o600}


def test_of_deploying_what_is_live_nothing_is_kept_anywhere(site: Site) -> None:
    site.deploy()
    before, known = site.snapshot(), trace(site)["trace"]["id"]
    said = site.deploy()
    assert (said.result["outcome"], said.result["timing"]) == ("nothing", None)
    assert site.snapshot() == before
    assert trace(site)["trace"]["id"] == known


@pytest.mark.parametrize(
    ("point", "outcome", "told"),
    [
        ("order.write", "refused", {"prepare": "failed", "boot": "cut"}),
        ("rollout.activated", "done", {"activate": "done", "flip": "done"}),
    ],
)
def test_an_agent_that_is_killed_in_the_middle_still_leaves_a_trace(
    site: Site, point: str, outcome: str, told: dict[str, str]
) -> None:
    site.change(f"killed at {point}")
    environment = {"LIGHTSHIP_TESTING": "1", "LIGHTSHIP_FAILPOINTS": f"{point}=kill"}
    said = site.deploy(environment=environment, expect=None)
    found = trace(site)
    assert (said.result["outcome"], found["trace"]["outcome"]) == (outcome, outcome)
    assert found["trace"]["id"] == said.result["timing"]["trace"]
    states = {one["name"]: one["state"] for one in spans(found["trace"]["root"])}
    assert {name: states[name] for name in told} == told
    is_whole(said, found)
    site.deploy("--retry")


def test_no_secret_is_in_a_trace(site: Site) -> None:
    site.configure(env={"PLAIN": "1"}, secrets={"KEY": {"env": "THE_KEY"}})
    site.change("v6")
    site.deploy(environment={"THE_KEY": "s3cr3t-in-no-trace"})
    kept = [*(site.home / "state" / "traces").iterdir(), *(site.folder / "state").rglob("*.json")]
    assert kept
    assert all("s3cr3t" not in path.read_text() for path in kept)
    assert json.loads(sorted(kept)[-1].read_text())["id"]


def test_export_that_cannot_be_costs_a_word_and_nothing_else(site: Site) -> None:
    site.change("v7")
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{site.engine.free_port()}",
        "THE_KEY": "s3cr3t",
        "PATH": os.environ["PATH"],
    }
    said = site.deploy(environment=environment)
    assert said.result["outcome"] == "done"
    assert said.stderr.startswith("warning: the trace was not exported to OpenTelemetry: ")
    assert said.stderr.count("\n") == 1
