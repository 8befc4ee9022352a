"""A container deploy behind the proxy, against the same by hand; and what the proxy costs a request.

Both deploy the same image, which is there already, with another variable, to the same application with as many workers
under Supervisor, while 100 requests a second go to the one that is measured. By hand it is what is commonly typed:
``docker stop && docker rm && docker run``. They take turns: A B A B. What counts is the time from the start of the
command (a cold process) until every response is of the new container, as the load saw it.

The proxy's cost: 200 requests a second, each on a connection of its own, to the container's port and to the proxy that
leads there, in turn.
"""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.code_deploy import BY_HAND, OURS, WithLightship, measure
from benchmarks.common import (
    BenchmarkError,
    Figures,
    Options,
    Promise,
    Report,
    machine_facts,
    median,
    of_way,
    ratios,
    say,
    scratch,
)
from support.engine import Engine, ensure
from support.load import Load
from support.proxy import behind, build_proxy_image, remove
from support.site import Site

LIMIT, COST_MS, P99_LIMIT = 1.3, 0.5, 1.2
PAIRS, QUICK_PAIRS = 7, 2
COST_PAIRS, COST_RATE, COST_SECONDS = 9, 200, 8.0
WORKER = 8
DIRECT, PROXIED = "direct", "proxy"

APPLICATION = """
import os


def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [os.environ.get("NUMBER", "none").encode()]
"""
SUPERVISOR = """
[supervisord]
nodaemon=true
user=root
logfile=/dev/null
logfile_maxbytes=0
pidfile=/run/supervisord.pid
[program:uwsgi]
command=/opt/venv/bin/uwsgi --ini /srv/by-hand/uwsgi.ini
stopsignal=TERM
startsecs=0
"""
UWSGI = """
[uwsgi]
http-socket = 0.0.0.0:8000
listen = 1024
master = true
processes = 4
need-app = true
single-interpreter = true
enable-threads = true
uid = app
gid = app
chdir = /srv/code
module = service.wsgi:application
die-on-term = true
disable-logging = true
"""


@dataclass
class Replaced:
    """The service without lightship: a container that is stopped, removed and run anew."""

    engine: Engine
    site: Site
    image: str

    def start(self) -> None:
        """Lay out its files, and run it for the first time."""
        self.port, self.name = self.engine.free_port(), self.engine.name("by-hand")
        self.files = self.site.folder / "by-hand"
        self.files.mkdir()
        (self.files / "supervisord.conf").write_text(SUPERVISOR)
        (self.files / "uwsgi.ini").write_text(UWSGI)
        self.number = "none"
        self.sh(self.run_words())

    def run_words(self) -> list[str]:
        """``docker run``, as it was run before."""
        code = self.site.home / "code" / "releases" / str(self.site.current)
        return [
            *("docker", "run", "--detach", "--name", self.name, "--label", self.engine.label),
            *("--publish", f"127.0.0.1:{self.port}:8000", "--sysctl", "net.core.somaxconn=4096"),
            *("--env", f"NUMBER={self.number}", "--volume", f"{code}:/srv/code:ro"),
            *("--volume", f"{self.files}:/srv/by-hand:ro", self.image),
            *("/opt/venv/bin/supervisord", "-n", "-c", "/srv/by-hand/supervisord.conf"),
        ]

    def sh(self, words: Sequence[str]) -> None:
        """Run a command."""
        done = subprocess.run(words, check=False, capture_output=True, text=True)
        if done.returncode:
            raise BenchmarkError(f"by hand ended with {done.returncode}: {done.stderr[-1000:]}")

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def deploy(self) -> None:
        """What a person types."""
        script = 'docker stop "$1" && docker rm "$1" && shift && "$@"'
        self.sh(["sh", "-c", script, "sh", self.name, *self.run_words()])


@contextlib.contextmanager
def both_ways() -> Iterator[tuple[Site, Replaced]]:
    """The two services, ready to be deployed to; all of it is gone afterwards."""
    engine = Engine(prefix=f"t{secrets.token_hex(3)}i", worker=WORKER, base_image=ensure())
    with scratch("proxied") as folder:
        site = Site(engine, folder / "site", settings={"keep": 2}, files={"service/wsgi.py": APPLICATION})
        try:
            say("container deploy: building the images and starting both services")
            behind(site, build_proxy_image(engine.base_image))
            first = site.run("deploy")
            if first.status:
                raise BenchmarkError(f"the first deploy ended with {first.status}: {first.stderr[-1000:]}")
            by_hand = Replaced(engine, site, engine.docker("inspect", "--format", "{{.Image}}", site.container()))
            by_hand.start()
            yield site, by_hand
        finally:
            remove(site)
            engine.clean()


def take_turns(site: Site, by_hand: Replaced, pairs: int, samples: list[Figures]) -> None:
    """So many pairs, each another value of one variable; the first one warms up and does not count."""
    say(f"container deploy: {pairs} pairs")
    for number in range(pairs + 1):
        mark = f"n{number}"
        site.configure(env={"NUMBER": mark})
        by_hand.number = mark
        for name, way in ((OURS, WithLightship(site)), (BY_HAND, by_hand)):
            found = measure(way, mark)
            if number:
                samples.append({"kind": "deploy", "pair": number, "way": name, **found})
            say(f"  {mark} {name:9} all new {found['all_new']:.2f} s, failed {found['failed']}")


def cost(site: Site, pairs: int, samples: list[Figures]) -> None:
    """So many pairs of a load on the container itself and one on the proxy."""
    say(f"the proxy's cost: {pairs} pairs")
    port = site.engine.docker("port", site.container(), "8000/tcp").split()[0].rpartition(":")[2]
    for number in range(pairs):
        for way, url in ((DIRECT, f"http://127.0.0.1:{port}"), (PROXIED, site.url)):
            with Load(f"{url}/", rate=COST_RATE, seconds=COST_SECONDS) as load:
                time.sleep(COST_SECONDS)
            report = load.report
            found = {"p50": report.p50, "p99": report.p99, "worst": report.worst, "failed": len(report.failed)}
            samples.append({"kind": "cost", "pair": number, "way": way, **found})
        say(f"  {number} " + ", ".join(f"{one['way']} {one['p50'] * 1000:.2f} ms" for one in samples[-2:]))


def run(options: Options) -> Report:
    """Measure both."""
    samples: list[Figures] = []
    with both_ways() as (site, by_hand):
        take_turns(site, by_hand, options.pairs(PAIRS, QUICK_PAIRS), samples)
        cost(site, options.pairs(COST_PAIRS, QUICK_PAIRS), samples)
    return report_of(samples, options.quick)


def report_of(samples: Sequence[Figures], quick: bool) -> Report:
    """The promises, and the figures behind them."""
    deploys = [one for one in samples if one["kind"] == "deploy"]
    costs = [one for one in samples if one["kind"] == "cost"]
    found = ratios(of_way(deploys, OURS, "all_new"), of_way(deploys, BY_HAND, "all_new"))
    failed = sum(int(one["failed"]) for one in deploys if one["way"] == OURS)
    medians = zip(of_way(costs, PROXIED, "p50"), of_way(costs, DIRECT, "p50"), strict=True)
    added = [(proxied - direct) * 1000 for proxied, direct in medians]
    tails = ratios(of_way(costs, PROXIED, "p99"), of_way(costs, DIRECT, "p99"))
    return Report(
        name="proxied",
        title="A container deploy behind the proxy, and the proxy's cost",
        promises=[
            Promise(
                "container deploy until every response is new, against by hand",
                median(found),
                LIMIT,
                "times",
                len(found),
            ),
            Promise("failed requests in all container deploys", failed, 0, "requests", len(found), "exactly"),
            Promise("the proxy's cost to a request, median", round(median(added), 3), COST_MS, "ms", len(added)),
            Promise("the proxy's p99, against direct", median(tails), P99_LIMIT, "times", len(tails)),
        ],
        figures=[*_deploy_rows(deploys), *_cost_rows(costs)],
        samples=samples,
        machine=machine_facts(),
        quick=quick,
    )


def _deploy_rows(samples: Sequence[Figures]) -> list[Figures]:
    return [
        {
            "way": f"deploy, {way}",
            "command": median(of_way(samples, way, "command")),
            "all new": median(of_way(samples, way, "all_new")),
            "p50": None,
            "p99": median(of_way(samples, way, "p99")),
            "worst": median(of_way(samples, way, "worst")),
            "failed": sum(int(number) for number in of_way(samples, way, "failed")),
        }
        for way in (OURS, BY_HAND)
    ]


def _cost_rows(samples: Sequence[Figures]) -> list[Figures]:
    return [
        {
            "way": f"requests, {way}",
            "command": None,
            "all new": None,
            **{name: median(of_way(samples, way, name)) for name in ("p50", "p99", "worst")},
            "failed": sum(int(number) for number in of_way(samples, way, "failed")),
        }
        for way in (DIRECT, PROXIED)
    ]
