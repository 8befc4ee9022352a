"""A code deploy on one server, against the same by hand: ``git fetch && git reset --hard && touch``.

Both deploy the same commits of the same repository to the same application, in containers of the same image with as
many workers, while 100 requests a second go to the one that is measured. The hand-made way is run as it is known to be
run: uWSGI with ``touch-reload``, no part of lightship's in its container. They take turns: A B A B.

What counts is the time from the start of the command (a cold process) until every response is of the new version, as
the load saw it.
"""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

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
from support.load import Load, LoadReport
from support.repo import ENVIRONMENT, Repository
from support.site import LIGHTSHIP, Site

LIMIT, WORST_LIMIT = 0.6, 3.0
PAIRS, QUICK_PAIRS, SLOW_PAIRS = 9, 3, 5
WARM_UP = 3
RATE = 100
IMPORT, SLOW_IMPORT = 0.1, 2.0
# What has just begun is let settle: the load before the deploy, and the service after it, before the quiet stretch.
SETTLE, AFTER, MARGIN = 1.0, 1.5, 0.5
PATIENCE = 60
OURS, BY_HAND = "lightship", "by hand"
WORKER = 7
CODE, RUN = "/srv/code", "/srv/run"

CLASSIC = f"""
; As such services are commonly run: the code in one folder, and uWSGI watching a file.
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
chdir = {CODE}
module = service.wsgi:application
touch-reload = {RUN}/reload
die-on-term = true
disable-logging = true
"""


@dataclass
class ByHand:
    """The service without lightship: a clone of the repository, and one uWSGI that watches a file."""

    engine: Engine
    repository: Repository
    folder: Path
    image: str

    def start(self) -> None:
        """Clone the code and start the container."""
        self.port = self.engine.free_port()
        self.code, run = self.folder / "code", self.folder / "run"
        run.mkdir(parents=True)
        (run / "uwsgi.ini").write_text(CLASSIC)
        (run / "reload").touch()
        self.command(["git", "clone", "--quiet", str(self.repository.remote), str(self.code)])
        self.engine.run(
            *("--publish", f"127.0.0.1:{self.port}:8000"),
            *("--sysctl", "net.core.somaxconn=4096"),
            *("--volume", f"{self.code}:{CODE}:ro", "--volume", f"{run}:{RUN}:ro"),
            self.image,
            *("/opt/venv/bin/uwsgi", "--ini", f"{RUN}/uwsgi.ini"),
            name=self.engine.name("by-hand"),
        )

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def command(self, words: Sequence[str]) -> None:
        """Run a command, with nobody's git settings."""
        subprocess.run(words, env={"PATH": "/usr/bin:/bin", **ENVIRONMENT}, check=True, capture_output=True)

    def deploy(self) -> None:
        """What a person types."""
        script = "git fetch --quiet && git reset --quiet --hard origin/main && touch ../run/reload"
        self.command(["sh", "-c", f'cd "$1" && {script}', "sh", str(self.code)])


@dataclass
class WithLightship:
    """The service as lightship runs it, deployed by a cold ``lightship deploy``."""

    site: Site

    @property
    def url(self) -> str:
        """Where it answers."""
        return self.site.url

    def deploy(self) -> None:
        """The command, its output into a pipe as in a script."""
        done = subprocess.run([str(LIGHTSHIP), "deploy"], cwd=self.site.folder, capture_output=True, check=False)
        if done.returncode:
            raise BenchmarkError(f"lightship deploy ended with {done.returncode}: {done.stderr.decode()[-1000:]}")


class Way(Protocol):
    """A way to deploy a service."""

    @property
    def url(self) -> str:
        """Where the service answers."""

    def deploy(self) -> None:
        """What a person types."""


def measure(way: Way, version: str) -> Figures:
    """One deploy under load, with a quiet stretch as long right after it."""
    with Load(way.url + "/", rate=RATE, seconds=300, capture=r"\A(.+)\Z") as load:
        time.sleep(SETTLE)
        began = time.monotonic()
        way.deploy()
        ended = time.monotonic()
        if not load.wait_for_mark(version, PATIENCE):
            raise BenchmarkError(f"{way.url} did not answer with version {version} within {PATIENCE} s")
        time.sleep(AFTER + (time.monotonic() - began) + MARGIN)
    return figures_of(load.report, version, began, ended)


def figures_of(report: LoadReport, version: str, began: float, ended: float) -> Figures:
    """What the load saw: of the deploy itself, and of a stretch as long that began a little after its end."""
    since = report.all_marked_after(version)
    if since is None:
        raise BenchmarkError(f"version {version} was never all that answered: {report.timeline()[-5:]}")
    until = max(since, ended)
    length = until - began
    during, after = report.window(began, until), report.window(until + AFTER, until + AFTER + length)
    if report.records[-1].end < until + AFTER + length:
        raise BenchmarkError(f"the load ended before a quiet stretch of {length:.2f} s was over")
    return {
        "command": round(ended - began, 4),
        "all_new": round(since - began, 4),
        "requests": report.count,
        "failed": len(report.failed),
        "worst": round(during.worst, 5),
        "p99": round(during.p99, 5),
        "quiet_worst": round(after.worst, 5),
        "quiet_p99": round(after.p99, 5),
    }


@contextlib.contextmanager
def both_ways() -> Iterator[tuple[Site, list[tuple[str, Way]]]]:
    """The two services, ready to be deployed to; all of it is gone afterwards."""
    engine = Engine(prefix=f"t{secrets.token_hex(3)}h", worker=WORKER, base_image=ensure())
    with scratch("deploy") as folder:
        try:
            # Two releases are kept, so that after a few deploys each is made from one that goes, as on a real server.
            site = Site(engine, folder / "site", settings={"keep": 2})
            say("code deploy: building the image and starting both services")
            first = site.run("deploy")
            if first.status:
                raise BenchmarkError(f"the first deploy ended with {first.status}: {first.stderr[-1000:]}")
            image = engine.docker("inspect", "--format", "{{.Image}}", site.container())
            by_hand = ByHand(engine, site.repository, folder / "by-hand", image)
            by_hand.start()
            yield site, [(OURS, WithLightship(site)), (BY_HAND, by_hand)]
        finally:
            engine.clean()


def take_turns(
    site: Site, ways: Sequence[tuple[str, Way]], pairs: int, import_seconds: float, samples: list[Figures]
) -> None:
    """So many pairs: one commit each, deployed by the one and then by the other."""
    say(f"code deploy: {pairs} pairs, import {import_seconds:g} s")
    for number in range(pairs):
        version = f"i{import_seconds:g}-{number}"
        site.change(version, import_seconds=import_seconds)
        for name, way in ways:
            found = measure(way, version)
            samples.append({"import": import_seconds, "pair": number, "way": name, **found})
            say(
                f"  {version} {name:9} all new {found['all_new']:.2f} s, worst {found['worst'] * 1000:.0f} ms, "
                f"quiet worst {found['quiet_worst'] * 1000:.0f} ms, failed {found['failed']}"
            )


def run(options: Options) -> Report:
    """Warm both up, then measure them in turn."""
    samples: list[Figures] = []
    with both_ways() as (site, ways):
        for number in range(WARM_UP):
            version = f"warm-{number}"
            site.change(version, import_seconds=IMPORT)
            for _, way in ways:
                measure(way, version)
        take_turns(site, ways, options.pairs(PAIRS, QUICK_PAIRS), IMPORT, samples)
        if options.full:
            take_turns(site, ways, options.pairs(SLOW_PAIRS, QUICK_PAIRS), SLOW_IMPORT, samples)
    return report_of(samples, options.quick)


def report_of(samples: Sequence[Figures], quick: bool) -> Report:
    """The promises, of the usual import; a slow one is told of only."""
    usual = [one for one in samples if one["import"] == IMPORT]
    ours = [one for one in usual if one["way"] == OURS]
    found = ratios(of_way(usual, OURS, "all_new"), of_way(usual, BY_HAND, "all_new"))
    worst = ratios(of_way(ours, OURS, "worst"), of_way(ours, OURS, "quiet_worst"))
    failed = sum(int(one["failed"]) for one in samples if one["way"] == OURS)
    return Report(
        name="code_deploy",
        title="A code deploy",
        promises=[
            Promise(
                "code deploy until every response is new, against by hand", median(found), LIMIT, "times", len(found)
            ),
            Promise("failed requests in all code deploys", failed, 0, "requests", len(ours), "exactly"),
            Promise("worst request during a deploy, against quiet", median(worst), WORST_LIMIT, "times", len(worst)),
        ],
        figures=figures(samples),
        samples=samples,
        machine=machine_facts(),
        quick=quick,
    )


def figures(samples: Sequence[Figures]) -> list[Figures]:
    """The medians of each way, by the application's import time; failed requests are counted."""
    rows: list[Figures] = []
    for seconds in sorted({float(one["import"]) for one in samples}):
        some = [one for one in samples if one["import"] == seconds]
        against = median(ratios(of_way(some, OURS, "all_new"), of_way(some, BY_HAND, "all_new")))
        for way in (OURS, BY_HAND):
            names = ("command", "all_new", "worst", "p99", "quiet_worst")
            medians = {name.replace("_", " "): median(of_way(some, way, name)) for name in names}
            failed = sum(int(number) for number in of_way(some, way, "failed"))
            rows.append(
                {
                    "way": f"{way}, import {seconds:g} s",
                    **medians,
                    "failed": failed,
                    "against by hand": against if way == OURS else 1.0,
                }
            )
    return rows
