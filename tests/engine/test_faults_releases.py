"""A release that is broken in whatever way: refused before anybody sees it, or taken back by itself."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.engine import Engine
from support.promises import refused, settled, state_of, unchanged, until, works
from support.site import APPLICATION, Said, Site

# The self test asks with a user agent of its own: these services are well in it, and ill when they serve.
SERVING = 'environ.get("HTTP_USER_AGENT") != "lightship-self-test"'
START = "    start_response(status,"


def with_code(code: str) -> dict[str, str]:
    """The application with more code, which runs before each answer."""
    lines = "".join(f"    {line}\n" for line in code.strip().splitlines())
    assert START in APPLICATION
    return {"service/wsgi.py": APPLICATION.replace(START, lines + START)}


@pytest.fixture(scope="module")
def site(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(
        engine,
        tmp_path_factory.mktemp("releases"),
        settings={"boot_timeout": 30, "soak": 0.1, "patience": 10, "health": {"path": "/health/", "timeout": 2}},
    )
    try:
        made.deploy()
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def soaked(site: Site, seconds: float = 1) -> Iterator[None]:
    """What is deployed in this block is watched for so long; what is deployed elsewhere, only for a moment."""
    site.configure(soak=seconds)
    try:
        yield
    finally:
        site.configure(soak=0.1)


def reverted(site: Site, said: Said, code: str, broken: str, before: str) -> None:
    """Taken back by itself, told with status 4, marked, and not let in again unasked."""
    refused(site, said, code, status=4)
    assert said.result["outcome"] == "reverted"
    assert site.current == before
    assert site.get()[2] == before
    assert state_of(site, broken) == "failed"
    refused(site, site.deploy(expect=None), "failed-before")
    assert site.current == before


# --- before the flip ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "files", "says"),
    [
        ("a syntax error", {"service/wsgi.py": "def application(:\n"}, "SyntaxError"),
        ("an import that fails", {"service/wsgi.py": "import no_such_package\n"}, "no_such_package"),
        ("a module that is gone", {"service/version.py": None}, "ImportError"),
        ("no application in the module", {"service/wsgi.py": "app = None\n"}, "AttributeError"),
        ("a module that ends the process", {"service/wsgi.py": "import sys\nsys.exit(3)\n"}, "SystemExit"),
    ],
)
def test_code_that_does_not_import_never_serves(site: Site, what: str, files: dict[str, str | None], says: str) -> None:
    broken = site.repository.commit(what, files)
    with unchanged(site):
        said = site.deploy(expect=None)
        refused(site, said, "boot-failed")
        assert says in said.error["message"]
        assert said.error["detail"]["traceback"]
        assert state_of(site, broken) == "failed"
        refused(site, site.deploy(expect=None), "failed-before")
    site.repository.write(site.code("whole"))
    works(site)


def test_a_process_that_dies_in_the_import_without_a_word_is_refused_before_the_time_is_over(site: Site) -> None:
    site.repository.commit("dies", {"service/wsgi.py": "import os\nos._exit(7)\n"})
    with unchanged(site):
        said = site.deploy(expect=None)
        refused(site, said, "boot-failed")
        assert said.seconds < 20
    works(site)


def test_a_release_whose_health_path_answers_500_is_refused_by_the_self_test(site: Site) -> None:
    broken = site.change("ill", health="500 Internal Server Error")
    with unchanged(site):
        said = site.deploy(expect=None)
        refused(site, said, "boot-failed")
        assert "/health/ answered 500" in said.error["message"]
        assert state_of(site, broken) == "failed"
    works(site)


def test_a_release_that_does_not_start_in_time_is_refused_and_its_process_ended(site: Site) -> None:
    site.configure(boot_timeout=3)
    try:
        for code in ("import time; time.sleep(3600)", "while True: pass"):
            site.change("never", more=code)
            with unchanged(site):
                said = site.deploy(expect=None)
                refused(site, said, "boot-timeout")
                assert "3 s" in said.error["message"]
                until(lambda: len(uwsgi_masters(site)) == 1, what="the slot of the release that hangs is stopped")
    finally:
        site.configure(boot_timeout=30)
    works(site)


def test_a_health_path_that_hangs_in_the_self_test_is_refused_when_the_time_is_over(site: Site) -> None:
    site.configure(boot_timeout=3)
    try:
        site.change("hangs", files=with_code('if path == "/health/":\n    time.sleep(3600)'))
        with unchanged(site):
            refused(site, site.deploy(expect=None), "boot-timeout")
    finally:
        site.configure(boot_timeout=30)
    works(site)


def test_a_check_that_fails_refuses_and_one_that_only_warns_does_not(site: Site) -> None:
    must = {
        "name": "must",
        "command": ["python3", "-c", "import service.version as v; assert v.VERSION != 'bad', 'NO'"],
    }
    may = {"name": "may", "command": ["python3", "-c", "raise SystemExit('only a WARNING')"], "required": False}
    slow = {"name": "slow", "command": ["sleep", "600"], "timeout": 1}
    site.configure(checks=[may, must])
    try:
        broken = site.change("bad")
        with unchanged(site):
            said = site.deploy(expect=None)
            refused(site, said, "check-failed")
            assert said.error["detail"]["check"] == "must"
            assert "NO" in said.error["detail"]["output"]
            assert state_of(site, broken) == "failed"
        works(site)
        site.configure(checks=[slow])
        site.change("slowly")
        with unchanged(site):
            said = site.deploy(expect=None)
            refused(site, said, "check-failed")
            assert "longer than 1 s" in said.error["message"]
            assert "sleep 600" not in processes(site)
    finally:
        site.configure(checks=[])
    works(site)


# --- after the flip ----------------------------------------------------------------


def test_pages_that_fail_only_when_they_are_served_are_taken_back(site: Site) -> None:
    before = settled(site)
    broken = site.change("pages", fail_pages=True)
    with soaked(site), site.load() as load:
        assert load.wait_count(10)
        said = site.deploy(expect=None)
        assert load.wait_count(20)
    reverted(site, said, "soak-failed", broken, before)
    assert "server errors" in said.error["message"]
    assert set(load.report.errors) == {"status 500"}
    assert load.report.all_new_after(before) is not None
    works(site)


def test_a_release_that_fails_only_under_load_is_taken_back(site: Site) -> None:
    before = settled(site)
    code = """
global count
count += 1
if count > 10 and count % 3 == 0:
    raise RuntimeError("too much")
"""
    files = with_code(code)
    broken = site.change("load", files={"service/wsgi.py": files["service/wsgi.py"] + "\n\ncount = 0\n"})
    with soaked(site), site.load() as load:
        assert load.wait_count(10)
        said = site.deploy(expect=None)
        assert load.wait_count(20)
    reverted(site, said, "soak-failed", broken, before)
    assert load.report.all_new_after(before) is not None
    works(site)


def test_a_failed_release_is_tried_again_when_that_is_asked_for(site: Site) -> None:
    site.configure(health={"path": "/health/", "status": [204]})
    broken = site.change("again")
    try:
        refused(site, site.deploy(expect=None), "unhealthy", status=4)
    finally:
        site.configure(health={"path": "/health/", "timeout": 2})
    refused(site, site.deploy(expect=None), "failed-before")
    with site.load() as load:
        site.deploy("--retry")
        assert load.wait_for(broken)
    assert not load.report.failed
    assert state_of(site, broken) == "stable"


def test_a_health_path_that_is_ill_only_when_served_is_taken_back(site: Site) -> None:
    before = settled(site)
    for ill in ('status = "500 Internal Server Error"', "time.sleep(8)"):
        broken = site.change("ill", files=with_code(f'if path == "/health/" and {SERVING}:\n    {ill}'))
        with site.load() as load:
            assert load.wait_count(10)
            said = site.deploy(expect=None)
            assert load.wait_count(20)
        reverted(site, said, "unhealthy", broken, before)
        assert not load.report.failed, load.report.errors
    works(site)


def test_a_body_that_does_not_hold_what_it_should_is_taken_back(site: Site) -> None:
    before = settled(site)
    site.configure(health={"path": "/health/", "timeout": 2, "body": "fine"})
    try:
        broken = site.change("other")
        said = site.deploy(expect=None)
        reverted(site, said, "unhealthy", broken, before)
        works(site)
    finally:
        site.configure(health={"path": "/health/", "timeout": 2})


def test_workers_that_keep_dying_are_taken_back(site: Site) -> None:
    before = settled(site)
    code = f"""
if {SERVING} and not doomed:
    import os, threading
    doomed.append(True)
    threading.Timer(0.5, os._exit, [9]).start()
"""
    text = with_code(code)["service/wsgi.py"] + "\n\ndoomed = []\n"
    broken = site.change("dies", files={"service/wsgi.py": text})
    with soaked(site), site.load() as load:
        assert load.wait_count(10)
        said = site.deploy(expect=None)
        back = time.monotonic()
        assert load.wait_count(50)
    reverted(site, said, "soak-failed", broken, before)
    assert "died" in said.error["message"]
    later = load.report.window(back, back + 60)
    assert later.count > 20
    assert not later.failed
    works(site)


# --- slow ones ---------------------------------------------------------------------


def test_a_service_that_takes_20_seconds_to_import_deploys_without_a_stalled_request(site: Site) -> None:
    slow = site.change("slow", import_seconds=20)
    with site.load() as load:
        assert load.wait_count(10)
        said = site.deploy()
        assert load.wait_for(slow)
        assert load.wait_count(20)
    report = load.report
    assert said.seconds > 20
    assert not report.failed, report.errors
    # One that had to wait for the import would have waited for most of it. Shorter ones are the machine's, which other
    # tests keep busy; `make bench` counts those above 0.1 s on one that is quiet.
    assert report.worst < said.seconds / 4
    assert report.releases[-1] == slow
    works(site)


def test_a_request_in_flight_completes_when_its_slot_quits(site: Site) -> None:
    old = settled(site)
    answers: list[tuple[int, str, str]] = []
    asking = threading.Thread(target=lambda: answers.append(site.get("/slow?seconds=5", timeout=30)))
    asking.start()
    time.sleep(0.5)
    new = works(site)
    assert site.get()[2] == new
    asking.join(30)
    assert [(status, release) for status, _, release in answers] == [(200, old)]
    # The slot of the old release is gone after that, and the next deploy finds its place.
    until(lambda: len(uwsgi_masters(site)) == 1)
    works(site)


def test_a_deploy_waits_for_the_slot_that_a_slow_request_still_holds(site: Site) -> None:
    old = settled(site)
    answers: list[tuple[int, str, str]] = []
    asking = threading.Thread(target=lambda: answers.append(site.get("/slow?seconds=4", timeout=30)))
    asking.start()
    time.sleep(0.5)
    works(site)
    works(site)
    asking.join(30)
    assert [(status, release) for status, _, release in answers] == [(200, old)]


def test_a_request_longer_than_all_patience_stands_in_no_deploy_s_way(site: Site) -> None:
    settled(site)
    site.configure(patience=1)
    try:
        works(site)
        ended = threading.Event()

        def ask() -> None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                site.get("/slow?seconds=50", timeout=60)
            ended.set()

        threading.Thread(target=ask, daemon=True).start()
        time.sleep(0.5)
        works(site)
        begun = time.monotonic()
        works(site)
        assert time.monotonic() - begun < 25
        assert ended.wait(5)
    finally:
        site.configure(patience=10)
    works(site)


# --- memory ------------------------------------------------------------------------


def test_a_memory_hog_is_held_by_the_container_s_limit_and_taken_back(engine: Engine, tmp_path: Path) -> None:
    limits = [engine.option, "--memory=160m", "--memory-swap=160m"]
    site = Site(engine, tmp_path, settings={"options": limits, "soak": 3, "boot_timeout": 30})
    try:
        site.deploy()
        before = works(site)
        # In the import: the candidate is what the kernel ends, and the old release does not feel it.
        site.change("hog", more="hoard = bytearray(400 << 20)")
        said = site.deploy(expect=None)
        assert said.status == 3, said.stdout[-2000:]
        assert site.get()[1:] == (site.get()[1], before)
        works(site)
        # After the flip: request by request.
        before = site.current
        code = f'if {SERVING} and path == "/":\n    hoard.append(bytearray(8 << 20))'
        text = with_code(code)["service/wsgi.py"] + "\n\nhoard = []\n"
        broken = site.change("leak", files={"service/wsgi.py": text})
        with site.load(50) as load:
            assert load.wait_count(10)
            said = site.deploy(expect=None)
            back = time.monotonic()
            assert load.wait_count(50)
        assert before is not None
        reverted(site, said, "soak-failed", broken, before)
        assert not load.report.window(back, back + 60).failed
        works(site)
    finally:
        site.close()


def processes(site: Site) -> str:
    """The command lines of all that runs in the container."""
    return site.engine.docker("top", site.container(), "-eo", "pid,ppid,args")


def uwsgi_masters(site: Site) -> list[str]:
    """The process numbers of the slots that run: uWSGI whose parent is no uWSGI."""
    rows = [line.split(None, 2) for line in processes(site).splitlines()[1:]]
    uwsgi = {pid: parent for pid, parent, command in rows if "uwsgi" in command}
    return [pid for pid, parent in uwsgi.items() if parent not in uwsgi]
