"""Roles beside the web workers: a real Celery (worker and beat) under real deploys, with jobs in flight.

Its broker is a folder of the shared volume, so that nothing else has to run. Each job leaves a file that says which
release did it, from beginning to end.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.engine import Engine
from support.load import LoadReport
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
for folder in ("messages", "control", "done", "ticks"):
    (QUEUE / folder).mkdir(exist_ok=True)
app = Celery("service", broker="filesystem://")
app.conf.update(
    broker_transport_options={
        "data_folder_in": str(QUEUE / "messages"),
        "data_folder_out": str(QUEUE / "messages"),
        "control_folder": str(QUEUE / "control"),
        "polling_interval": 0.1,
    },
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
SHORT = {"patience": 30, "settle": 1}


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
    site = Site(
        engine,
        tmp_path_factory.mktemp("roles"),
        name=name,
        settings={"keep": 3, "shared": ["queue"], "soak": 0.2},
        files={
            "requirements.txt": "celery==5.6.0\n",
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
    assert shop.site.run("deploy", "--json", expect=0).result["outcome"] == "nothing"
