"""Roles beside the web workers: a real Celery (worker and beat, on Redis) under real deploys, with jobs in flight.

Each job leaves a file that says which release did it, from beginning to end.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.engine import Engine
from support.load import LoadReport
from support.redis import Redis
from support.site import Said, Site

pytestmark = pytest.mark.timeout(600)

WSGI = '''
"""The site, which queues jobs."""
import urllib.parse

from service import version


def application(environ, start_response):
    query = urllib.parse.parse_qs(environ["QUERY_STRING"])
    if environ["PATH_INFO"] == "/queue":
        from service.tasks import job

        job.apply_async((query["name"][0], float(query["seconds"][0])))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [version.VERSION.encode()]
'''
TASKS = '''
"""What the workers do."""
import json
import os
import pathlib
import time

from celery import Celery

from service import version

QUEUE = pathlib.Path("/srv/lightship/shared/queue")
for folder in ("begun", "done", "ticks"):
    (QUEUE / folder).mkdir(exist_ok=True)
app = Celery("service", broker=os.environ["BROKER"])
app.conf.update(
    task_ignore_result=True,
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
    beat_schedule={"tick": {"task": "tick", "schedule": 0.5}},
)


def note(folder, name, **more):
    told = {"version": version.VERSION, "release": os.environ["LIGHTSHIP_RELEASE"], "user": os.getuid(), **more}
    path = QUEUE / folder / name
    path.with_suffix(".new").write_text(json.dumps(told))
    path.with_suffix(".new").rename(path)


@app.task(name="job")
def job(name, seconds):
    begun = time.time()
    note("begun", name)
    time.sleep(seconds)
    note("done", name, begun=begun, ended=time.time())


@app.task(name="tick")
def tick():
    note("ticks", "%d" % time.time_ns())
'''
MAILER = """
[program:mailer]
command=/bin/sh -c 'cd /srv/lightship/code/current && exec python3 -m service.mailer'
autostart=false
autorestart=true
startsecs=1
stopwaitsecs=20
"""
#: The image's own program: it says which release it was started with.
MAILER_CODE = """
import os
import pathlib
import time

out = pathlib.Path("/tmp/mailer")
out.write_text(os.path.basename(os.getcwd()))
while True:
    time.sleep(0.1)
"""
#: A Celery that cannot start needs a while to find that out on a busy machine.
SHORT = {"patience": 30, "settle": 4}


class Shop:
    """A service with Celery, and what its jobs left."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.count = 0

    @property
    def queue_folder(self) -> Path:
        return self.site.home / "shared" / "queue"

    def queue(self, seconds: float = 0.05) -> str:
        """Queue a job; its name."""
        self.count += 1
        name = f"job{self.count}"
        assert self.site.get(f"/queue?name={name}&seconds={seconds}")[0] == 200
        return name

    def done(self, name: str, seconds: float = 40) -> dict[str, Any]:
        """What a job left, once it is done."""
        path = self.queue_folder / "done" / name
        wait(path.exists, seconds, f"{name} was not done")
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    @contextlib.contextmanager
    def queueing(self) -> Iterator[list[str]]:
        """Queue a job every 50 ms for as long as the block lasts."""
        names: list[str] = []
        end = threading.Event()

        def work() -> None:
            while not end.wait(0.05):
                names.append(self.queue())

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield names
        finally:
            end.set()
            thread.join()

    def processes(self, word: str) -> list[int]:
        """Celery's main processes of that kind, in all containers, by their numbers on this machine."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                    if word.encode() in words and any(self.site.name.encode() in one for one in words):
                        found.append(int(entry.name))
        return found

    @contextlib.contextmanager
    def watching_beat(self) -> Iterator[list[int]]:
        """How many beats there were at each moment of the block."""
        counts: list[int] = []
        end = threading.Event()

        def work() -> None:
            while not end.wait(0.03):
                counts.append(len(self.processes("beat")))

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield counts
        finally:
            end.set()
            thread.join()

    def roles(self) -> dict[str, Any]:
        """The roles as `status` tells of them."""
        found: dict[str, Any] = self.site.run("status", "--json").result["servers"][0]["facts"]["roles"]
        return found

    def loaded(self) -> dict[str, set[str]]:
        """What each role's processes run."""
        return {name: {one["release"] for one in role["processes"]} for name, role in self.roles().items()}


def wait(look: Any, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def celery(name: str, *words: str) -> list[str]:
    return ["celery", "-A", "service.tasks", name, "--loglevel=info", *words]


def roles(site_name: str) -> dict[str, Any]:
    return {
        "worker": {"command": celery("worker", "-c", "2", "-n", f"{site_name}@%h"), **SHORT},
        "beat": {"command": celery("beat", "-s", f"/tmp/{site_name}-beat"), "once": True, **SHORT},
        "mailer": {"program": "mailer", "settle": 1},
    }


@pytest.fixture(scope="module")
def first(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Shop, Said]]:
    """A service with roles, and what its first deploy said."""
    name = engine.name("celery")
    redis = Redis(engine)
    site = Site(
        engine,
        tmp_path_factory.mktemp("roles"),
        name=name,
        settings={"keep": 3, "shared": ["queue"], "soak": 0.2, "env": {"BROKER": redis.url}},
        files={
            "requirements.txt": "celery[redis]==5.6.0\n",
            "service/wsgi.py": WSGI,
            "service/tasks.py": TASKS,
            "service/mailer.py": MAILER_CODE,
        },
    )
    try:
        conf = (site.repository.tree / "deploy" / "supervisord.conf").read_text()
        site.repository.commit("With a mailer", {"deploy/supervisord.conf": conf + MAILER})
        site.configure(roles=roles(name))
        yield Shop(site), site.deploy(expect=None)
    finally:
        site.close()
        redis.close()


@pytest.fixture
def shop(first: tuple[Shop, Said]) -> Shop:
    """The service, live with the newest commit, roles and all."""
    made = first[0]
    site = made.site
    site.deploy("--retry")
    return made


def code(shop: Shop, version: str, **more: Any) -> str:
    """Another version; its commit."""
    return shop.site.change(version, **more)


def no_failure(report: LoadReport) -> None:
    assert not report.failed, report.errors


def jobs(shop: Shop, names: list[str]) -> list[dict[str, Any]]:
    """What all these jobs left: none is lost."""
    return [shop.done(name) for name in names]


def begun_long(shop: Shop, seconds: float) -> str:
    """A long job that a worker is at; its name."""
    name = shop.queue(seconds)
    wait((shop.queue_folder / "begun" / name).exists, 20, "nobody took the job")
    return name


def test_the_first_deploy_starts_the_roles(first: tuple[Shop, Said]) -> None:
    shop, said = first
    assert said.status == 0, said.shown
    head = shop.site.repository.head
    server = said.result["servers"][0]
    assert {(one["role"], one["release"], one["state"]) for one in server["processes"]} == {
        (role, head, "RUNNING") for role in ("worker", "beat", "mailer")
    }
    assert [step["name"] for step in server["steps"]].index("roles") > [step["name"] for step in server["steps"]].index(
        "workers"
    )
    job = shop.done(shop.queue())
    assert (job["release"], job["version"]) == (head, "v1")
    assert job["user"] == 10001
    wait(lambda: list((shop.queue_folder / "ticks").iterdir()), 20, "beat does not tick")
    shown = shop.site.run("status", expect=0).stdout
    assert f"{head[:7]} worker 1, pid" in shown
    again = shop.site.run("deploy", "--json", expect=0).result
    assert again["outcome"] == "nothing", again["why"]


def test_a_code_deploy_loses_no_job_and_no_request(shop: Shop) -> None:
    site = shop.site
    old = site.current
    long = begun_long(shop, 4)
    commit = code(shop, "v2", files={"service/other.py": "X = 1\n"})
    with site.load(capture="(v[0-9]+)") as load, shop.queueing() as names, shop.watching_beat() as beats:
        assert load.wait_count(20)
        said = site.deploy()
        ended = time.time()
        time.sleep(1)
    no_failure(load.report)
    assert said.result["kind"] == "code"
    assert set(beats) == {0, 1}
    done = jobs(shop, names)
    assert {one["release"] for one in done} == {old, commit}
    assert {one["release"] for one in done if one["begun"] > ended} == {commit}
    # The one that was in flight at the restart was finished by the worker that had begun it.
    in_flight = shop.done(long)
    assert (in_flight["release"], in_flight["ended"] - in_flight["begun"] >= 4) == (old, True)
    assert shop.loaded() == {"worker": {commit}, "beat": {commit}, "mailer": {commit}}
    assert site.engine.docker("exec", site.container(), "cat", "/tmp/mailer") == commit
    assert len(names) > 30


def test_a_role_that_crashes_when_it_starts_takes_everything_back(shop: Shop) -> None:
    site = shop.site
    old = site.current
    before = {name: [one["pid"] for one in role["processes"]] for name, role in shop.roles().items()}
    broken = TASKS + "\nif os.environ.get('LIGHTSHIP_ROLE') == 'worker':\n    raise RuntimeError('no worker today')\n"
    code(shop, "v3", files={"service/tasks.py": broken})
    with site.load() as load, shop.watching_beat() as beats:
        assert load.wait_count(20)
        said = site.run("deploy", "--json", expect=4)
        person = site.run("deploy", expect=3)
    no_failure(load.report)
    assert said.error["code"] == "role-failed"
    assert "the role worker does not stay up: it ended soon after its start" in said.error["message"]
    assert "RuntimeError: no worker today" in said.error["detail"]["log"]
    assert "failed here before" in person.stderr
    assert set(beats) <= {0, 1}
    assert site.current == old
    assert site.get()[2] == old
    # They were restarted there and back, and run what ran before.
    assert shop.loaded() == {"worker": {old}, "beat": {old}, "mailer": {old}}
    assert before["worker"] != [one["pid"] for one in shop.roles()["worker"]["processes"]]
    assert shop.done(shop.queue())["release"] == old
    code(shop, "v4", files={"service/tasks.py": TASKS})


def test_a_rollback_takes_the_roles_back(shop: Shop) -> None:
    site = shop.site
    old = site.current
    code(shop, "v5")
    site.deploy()
    with shop.queueing() as names:
        said = site.run("rollback", "--json", expect=0)
        ended = time.time()
        time.sleep(0.5)
    assert said.result["kind"] == "code"
    assert shop.loaded() == {"worker": {old}, "beat": {old}, "mailer": {old}}
    assert {one["release"] for one in jobs(shop, names) if one["begun"] > ended} == {old}


def test_a_container_deploy_moves_them_and_never_runs_two(shop: Shop) -> None:
    site = shop.site
    name, old = site.container(), site.current
    long = begun_long(shop, 5)
    site.configure(env={**site.settings["env"], "CHANGE": "1"})
    commit = code(shop, "v6")
    with shop.watching_beat() as beats:
        said = site.deploy()
    assert said.result["kind"] == "full"
    assert site.containers() == [site.container()] != [name]
    assert set(beats) == {0, 1}
    assert shop.loaded() == {"worker": {commit}, "beat": {commit}, "mailer": {commit}}
    assert shop.done(long)["release"] == old
    assert shop.done(shop.queue())["release"] == commit
    # A container that is started again by itself has its roles on the right release.
    before = shop.processes("worker")
    site.engine.docker("kill", site.container())
    site.engine.docker("start", site.container())
    wait(lambda: all(not role["problem"] for role in shop.roles().values()), 40, "the roles did not come back")
    assert shop.loaded() == {"worker": {commit}, "beat": {commit}, "mailer": {commit}}
    assert not set(before) & set(shop.processes("worker"))


def test_a_role_that_does_not_run_is_drift_and_the_next_deploy_repairs_it(shop: Shop) -> None:
    site = shop.site
    [worker] = set(shop.processes("worker")) & top(shop)
    os.kill(worker, signal.SIGKILL)
    wait(lambda: worker not in shop.processes("worker"), 10, "it lives")
    # What is killed comes up again by itself.
    wait(lambda: not shop.roles()["worker"]["problem"], 30, "it did not come up again")
    ctl = ["/opt/venv/bin/supervisorctl", "-c", "/etc/lightship/supervisord.conf"]
    site.engine.docker("exec", site.container(), *ctl, "stop", "role-worker:*")
    wait(lambda: shop.roles()["worker"]["problem"], 10, "nobody sees that it is stopped")
    shown = site.run("status", expect=5).stdout
    assert "0 of 1 processes of the role worker run: it is STOPPED" in shown
    assert "role worker" in site.run("doctor", expect=5).stdout
    plan = site.run("plan", expect=0).stdout
    assert "code deploy: 0 of 1 processes of the role worker run" in plan
    assert "restart worker, beat, mailer on it" in plan
    said = site.deploy()
    assert said.result["kind"] == "code"
    assert shop.loaded()["worker"] == {site.current}
    assert site.run("status", expect=0)


def top(shop: Shop) -> set[int]:
    """The processes that Supervisor itself has started, by their numbers on this machine."""
    first = shop.site.engine.docker("inspect", "--format", "{{.State.Pid}}", shop.site.container())
    return {int(one) for one in Path(f"/proc/{first}/task/{first}/children").read_text().split()}


@pytest.mark.parametrize("point", ["roles.move", "roles.moved", "roles.proven"])
def test_an_agent_that_is_killed_while_the_roles_restart_is_made_good_by_the_next_deploy(
    shop: Shop, point: str
) -> None:
    site = shop.site
    commit = code(shop, f"after {point}")
    log = site.folder / "points"
    # The controller too, which would ask again and so help.
    points = {"LIGHTSHIP_TESTING": "1", "LIGHTSHIP_FAILPOINTS": f"{point}=kill,ask.hello=kill@2",
              "LIGHTSHIP_FAILPOINTS_LOG": str(log)}  # fmt: skip
    with site.load() as load:
        assert load.wait_count(20)
        assert site.run("deploy", "--json", environment=points).status == -9
        assert site.get()[2] == commit
        said = site.deploy()
    no_failure(load.report)
    assert said.result["outcome"] == "nothing"
    assert shop.loaded() == {"worker": {commit}, "beat": {commit}, "mailer": {commit}}
    assert site.run("status", expect=0)


ROLE = """
import os
import pathlib
import signal
import sys
import time

from service import version

if version.VERSION.startswith("bad"):
    sys.exit("this role does not like " + version.VERSION)
signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
out = pathlib.Path("/srv/lightship/run")
while True:
    time.sleep(0.05)
"""


def test_a_server_without_web_deploys_refuses_and_can_become_one_with_it(engine: Engine, tmp_path: Path) -> None:
    """In an image for `touch`, so that roles are shown in one of those too."""
    role = {"command": ["python3", "-m", "service.role"], "processes": 2, "settle": 0.5, "signal": "INT"}
    site = Site(
        engine, tmp_path, variant="touch", files={"service/role.py": ROLE},
        settings={"roles": {"worker": role}, "servers": [{"host": "local", "roles": ["worker"]}]},
    )  # fmt: skip
    shop = Shop(site)
    try:
        head = site.repository.head
        said = site.deploy().result["servers"][0]
        assert (said["workers"], [one["release"] for one in said["processes"]]) == ([], [head, head])
        assert not site.answers()
        assert engine.docker("port", site.container()) == ""
        assert site.run("status", expect=0)
        assert site.run("doctor", "--json", expect=0)
        commit = site.change("v2")
        said = site.deploy()
        assert said.result["kind"] == "code"
        assert shop.loaded() == {"worker": {commit}}
        pids = {one["pid"] for one in shop.roles()["worker"]["processes"]}
        # The application that does not import is refused though nobody here serves it; nothing is restarted.
        site.change("v3", more="import missing_package_of_mine")
        refused = site.deploy(expect=3)
        assert "No module named 'missing_package_of_mine'" in refused.error["message"]
        assert {one["pid"] for one in shop.roles()["worker"]["processes"]} == pids
        # One that only the role cannot stand is taken back.
        site.change("bad")
        back = site.deploy(expect=4)
        assert "this role does not like bad" in back.error["detail"]["log"]
        assert shop.loaded() == {"worker": {commit}}
        assert site.run("rollback", "--json", expect=0).result["commit"] == head
        assert shop.loaded() == {"worker": {head}}
        assert "there" in site.run("exec", "--", "echo", "there", expect=0).stdout
        # It becomes a server with web as well, and from then on it answers.
        site.configure(servers=["local"])
        commit = site.change("v4")
        assert site.deploy().result["kind"] == "full"
        assert site.get() == (200, "v4", commit)
        assert shop.loaded() == {"worker": {commit}}
        commit = site.change("v5")
        assert site.deploy().result["kind"] == "code"
        assert (site.get(), shop.loaded()) == ((200, "v5", commit), {"worker": {commit}})
        # An image that cannot run roles is refused, with what is missing in it.
        conf = (site.repository.tree / "deploy" / "supervisord.conf").read_text()
        bad_mailer = MAILER.replace("autostart=false", "autostart=true")
        for text, code_, words in (
            (conf.partition("[include]")[0], "roles-not-included", "[include]"),
            (conf + bad_mailer, "roles-not-possible", "autostart=false"),
            (conf, "roles-not-possible", "no program or group mailer"),
        ):
            site.configure(roles={"worker": role, "mailer": {"program": "mailer"}})
            site.change("v6", files={"deploy/supervisord.conf": text, "service/mailer.py": MAILER_CODE})
            refused = site.deploy(expect=3)
            assert refused.error["code"] == code_
            assert words in refused.error["message"] + refused.error["hint"]
        assert (site.get(), shop.loaded()) == ((200, "v5", commit), {"worker": {commit}})
    finally:
        site.close()
