"""The other reload ways: `touch` (the classic) and `chain`, for images that already work that way.

Here one uWSGI reloads itself. What can be promised differs: with `chain` nobody notices, with `touch` requests wait
while the application is loaded, and with neither does one fail or broken code come near a worker.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from support.engine import Engine
from support.load import Load, LoadReport
from support.site import Said, Site

WAYS = ("touch", "chain")
# What follows does not depend on how uWSGI reloads; a second container for it would only cost time.
once = pytest.mark.parametrize("first", ["touch"], indirect=True)


@pytest.fixture(scope="module", params=WAYS)
def first(
    request: pytest.FixtureRequest, engine: Engine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Site, Said]]:
    """A service of that reload way, and what its first deploy said."""
    made = Site(engine, tmp_path_factory.mktemp(request.param), variant=request.param, settings={"keep": 3})
    try:
        yield made, made.deploy(expect=None)
    finally:
        made.close()


@pytest.fixture
def site(first: tuple[Site, Said]) -> Site:
    """The service, live with the newest commit of its repository."""
    made = first[0]
    if made.current != made.repository.head or not made.answers():
        made.deploy("--retry")
    return made


@contextmanager
def loaded(site: Site) -> Iterator[tuple[Load, list[LoadReport]]]:
    """A load, from before the block until it has been answered after it."""
    reports: list[LoadReport] = []
    with site.load(capture="(v[0-9]+)") as load:
        assert load.wait_count(20)
        yield load, reports
        assert load.wait_sent(time.monotonic(), 20)
    reports.append(load.report)


def all_new(site: Site, said: Said, report: LoadReport, commit: str, done: float) -> None:
    """No request failed, and what was said to be live was: every response after the command's end is of it."""
    assert not report.failed, report.errors
    later = report.window(done, done + 600)
    assert later.count >= 10
    assert {record.release for record in later.records} == {commit}
    workers = said.result["servers"][0]["workers"]
    assert {(worker["id"], worker["release"], worker["state"]) for worker in workers} == {
        (number, commit, "serving") for number in (1, 2, 3, 4)
    }


def test_the_first_deploy(first: tuple[Site, Said]) -> None:
    site, said = first
    assert said.status == 0, said.shown
    head = site.repository.head
    assert site.get() == (200, "v1", head)
    assert {worker["release"] for worker in said.result["servers"][0]["workers"]} == {head}
    status = site.run("status", "--json", expect=0).result["servers"][0]
    assert (status["expected"], status["on_disk"], status["loaded"]) == (head, head, [head])
    assert status["facts"]["container"]["reload"] == site.variant
    assert list(status["facts"]["slots"]) == ["main"]


def test_a_code_deploy_fails_no_request(site: Site) -> None:
    old, name = site.current, site.container()
    commit = site.change("v2", import_seconds=0.5)
    before = {worker["pid"] for worker in site.workers()}
    with loaded(site) as (_, reports):
        said = site.deploy()
        done = time.monotonic()
    all_new(site, said, reports[0], commit, done)
    assert said.result["kind"] == "code"
    assert site.container() == name
    assert {record.release for record in reports[0].records} == {old, commit}
    assert {(record.release, record.mark) for record in reports[0].records} == {(old, "v1"), (commit, "v2")}
    # Each worker was started anew, and said so itself.
    assert not before & {worker["pid"] for worker in said.result["servers"][0]["workers"]}
    if site.variant == "chain":
        # One worker after the other is away; the other three answer.
        assert reports[0].quantile(0.99) < 1


def test_a_release_that_does_not_import_never_gets_near_a_worker(site: Site) -> None:
    old, before = site.current, site.workers()
    touched = (site.home / "code" / "reload").stat().st_mtime_ns
    site.change("v3", more="import missing_package_of_mine")
    with loaded(site) as (_, reports):
        said = site.run("deploy", expect=3)
        again = site.deploy("--retry", expect=3)
        site.change("v3", health="500 Internal Server Error")
        answer = site.deploy(expect=3)
        site.change("v3", more="a line that is no Python")
        syntax = site.deploy(expect=3)
    assert "ModuleNotFoundError: No module named 'missing_package_of_mine'" in said.stderr
    assert again.error["code"] == "boot-failed"
    assert "answered 500 inside the process" in answer.error["message"]
    assert "SyntaxError" in syntax.error["message"]
    assert not reports[0].failed
    assert {record.release for record in reports[0].records} == {old}
    assert site.workers() == before
    assert (site.home / "code" / "reload").stat().st_mtime_ns == touched
    site.change("v4")


@once
def test_a_release_that_takes_too_long_to_import_is_refused(site: Site) -> None:
    old = site.current
    site.configure(boot_timeout=2)
    try:
        site.change("v5", import_seconds=60)
        said = site.deploy(expect=3)
        assert said.error["code"] == "boot-timeout"
        assert said.seconds < 40
        assert site.get()[2] == old
        # The candidate is not left behind to go on importing.
        listed = site.engine.docker("top", site.container(), "-eo", "pid,args")
        assert "--candidate" not in listed
    finally:
        site.configure(boot_timeout=120)
        site.change("v6")


def test_two_deploys_within_a_second_are_two_reloads(site: Site) -> None:
    """uWSGI compares whole seconds, and takes a touch for news only when it is later than the last one."""
    reload = site.home / "code" / "reload"
    commits, touches = [], []
    with loaded(site) as (_, reports):
        for version in ("v7", "v8", "v9"):
            commits.append(site.change(version))
            said = site.deploy()
            touches.append(int(reload.stat().st_mtime))
            assert site.get()[1:] == (version, commits[-1])
        done = time.monotonic()
    all_new(site, said, reports[0], commits[-1], done)
    assert touches == sorted(set(touches))
    assert [release for release in reports[0].releases if release in commits] == commits


@once
def test_a_clock_that_was_set_back_makes_no_difference(site: Site) -> None:
    """The last touch lies an hour ahead, as after a clock was put right."""
    reload = site.home / "code" / "reload"
    commit = site.change("v10")
    ahead = int(time.time()) + 3600
    # uWSGI sees this touch and reloads what is live.
    os.utime(reload, (ahead, ahead))
    time.sleep(1.5)
    site.deploy()
    assert site.get()[1:] == ("v10", commit)
    assert int(reload.stat().st_mtime) > ahead


def test_a_rollback(site: Site) -> None:
    old = site.current
    commit = site.change("v11")
    site.deploy()
    assert site.get()[2] == commit
    away = site.repository.remote.with_suffix(".away")
    with loaded(site) as (_, reports):
        site.repository.remote.rename(away)
        said = site.run("rollback", "--json", expect=0)
        done = time.monotonic()
        away.rename(site.repository.remote)
    assert said.result["kind"] == "code"
    all_new(site, said, reports[0], str(old), done)


@once
def test_what_was_loaded_before_is_gone(site: Site) -> None:
    """A module that moves, one that goes, and a package that becomes a module: nothing old is found."""
    site.change("v12", {"service/gone.py": "X = 1\n", "service/kind/__init__.py": "KIND = 'package'\n"},
                more="from service import gone\nfrom service.kind import KIND")  # fmt: skip
    site.deploy()
    files = {"service/gone.py": None, "service/kind/__init__.py": None, "service/kind.py": "KIND = 'module'\n"}
    look = (
        "from service.kind import KIND\nimport importlib.util\n"
        "VERSION = KIND + str(importlib.util.find_spec('service.gone'))"
    )
    commit = site.change("v13", files, more=look)
    site.deploy()
    assert site.get() == (200, "moduleNone", commit)
    site.change("v14")


@once
def test_a_container_that_was_stopped_is_started(site: Site) -> None:
    site.engine.docker("stop", "-t", "1", site.container())
    site.deploy()
    assert site.get()[::2] == (200, site.current)
    site.engine.docker("stop", "-t", "1", site.container())
    commit = site.change("v15")
    site.deploy()
    assert site.get() == (200, "v15", commit)


def test_a_container_deploy(site: Site) -> None:
    name = site.container()
    text = (site.repository.tree / "requirements.txt").read_text()
    commit = site.change("v16", {"requirements.txt": f"{text}# changed\n"})
    said = site.deploy()
    assert said.result["kind"] == "full"
    assert site.containers() == [site.container()] != [name]
    assert site.get() == (200, "v16", commit)
    # The new container reloads as the old one did.
    commit = site.change("v17")
    assert site.deploy().result["kind"] == "code"
    assert site.get() == (200, "v17", commit)


@once
def test_a_container_deploy_of_broken_code_leaves_the_old_one(site: Site) -> None:
    old, name = site.current, site.container()
    text = (site.repository.tree / "requirements.txt").read_text()
    site.change("v18", {"requirements.txt": f"{text}# again\n"}, more="import missing_package_of_mine")
    with loaded(site) as (_, reports):
        said = site.deploy(expect=3)
    assert not reports[0].failed
    assert {record.release for record in reports[0].records} == {old}
    assert "missing_package_of_mine" in json.dumps(said.json["error"])
    assert (site.containers(), site.current) == ([name], old)
    site.change("v19", {"requirements.txt": text})


@once
def test_the_reload_way_itself_can_be_changed(site: Site) -> None:
    """From uWSGI's own ways to the swap: other files of the image, so a container deploy."""
    site.variant = "swap"
    files = {name: text for name, text in site.infrastructure().items() if not name.startswith("service/")}
    commit = site.change("v20", files)
    site.configure()
    said = site.deploy()
    assert said.result["kind"] == "full"
    assert site.get() == (200, "v20", commit)
    slots: dict[str, Any] = site.run("status", "--json", expect=0).result["servers"][0]["facts"]["slots"]
    assert list(slots) == ["0"]
    commit = site.change("v21")
    with loaded(site) as (_, reports):
        said = site.deploy()
        done = time.monotonic()
    all_new(site, said, reports[0], commit, done)
    # And back across it: the container, and with it the way, that the release ran with.
    said = site.run("rollback", "--to", str(said.result["previous"]), "--json", expect=0)
    assert said.result["kind"] == "code"
