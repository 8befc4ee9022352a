"""How long what a user waits for takes, on one server: deploys, refusals, rollbacks, and nothing to do.

Each command is a cold process. It is given from the server itself, over SSH, and over a connection that is kept
(``ssh_deploy`` says how), under a load of 100 requests a second. Where the application has to be imported, the time of
the import is taken off, and the whole is measured again with an application that takes 2 s to import (``BENCH=full``).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.code_deploy import IMPORT, RATE, SLOW_IMPORT
from benchmarks.common import BenchmarkError, Figures, Options, Promise, Report, machine_facts, median, say, scratch
from benchmarks.cost import Command
from benchmarks.ssh_deploy import Deploy, hang_up, kept, this_machine_by_ssh
from support.engine import Engine, ensure
from support.load import Load
from support.site import LIGHTSHIP, Site

ROUNDS, QUICK_ROUNDS, SLOW_ROUNDS = 7, 2, 5
WORKER = 5
REFUSED = 3
SETTLE, STEADY = 0.5, 0.3
KEPT_SETTLE = 1.0
PATIENCE = 30
LOCAL, SSH, KEPT = "on the server", "over SSH", "over SSH, kept"
WAYS = (LOCAL, SSH, KEPT)
DEPLOY, REFUSAL, ROLLBACK, WARM, NOTHING = "deploy", "refusal", "rollback", "rollback, kept warm", "nothing to do"
_BREAKS = "import nothing_of_this_name"
#: Seconds beside the import; what is not promised is told of.
LIMITS: Mapping[tuple[str, str], float] = {
    (DEPLOY, SSH): 0.9,
    (REFUSAL, LOCAL): 0.7,
    (REFUSAL, SSH): 0.7,
    (ROLLBACK, LOCAL): 0.6,
    (WARM, LOCAL): 0.3,
    (NOTHING, LOCAL): 0.35,
    (NOTHING, SSH): 0.6,
    (DEPLOY, KEPT): 0.5,
    (NOTHING, KEPT): 0.35,
}
_IMPORTS = (DEPLOY, REFUSAL, ROLLBACK)


@dataclass
class Service:
    """One service and both ways to it."""

    site: Site
    ways: Mapping[str, tuple[list[str], dict[str, str]]]
    count: int = 0

    def command(self, way: str, word: str) -> Command:
        """A command that is ready to start."""
        options, environment = self.ways[way]
        words = [str(LIGHTSHIP), word, *options]
        return Command(words, self.site.folder, {**os.environ, **environment}, self.site.folder / "log")

    def change(self, import_seconds: float, more: str = "") -> str:
        """Another version, pushed; its mark."""
        self.count += 1
        mark = f"m{self.count}"
        self.site.change(mark, import_seconds=import_seconds, more=more)
        return mark

    def run(self, way: str, word: str, *, expect: int = 0) -> float:
        """Run a command; its seconds."""
        command = self.command(way, word)
        began = time.monotonic()
        ended = command.run()
        seconds = time.monotonic() - began
        if ended.status != expect:
            raise BenchmarkError(f"lightship {word} ended with {ended.status}: {ended.output[-1000:]}")
        return seconds

    def until_new(self, way: str, word: str, mark: str) -> tuple[float, int]:
        """Run a command under load; seconds from its start until every response has the mark, and failed requests."""
        command = self.command(way, word)
        with Load(f"{self.site.url}/", rate=RATE, seconds=300, capture=r"\A(.+)\Z") as load:
            time.sleep(SETTLE)
            began = time.monotonic()
            ended = command.run()
            if ended.status or not load.wait_for_mark(mark, PATIENCE):
                raise BenchmarkError(f"lightship {word} ended with {ended.status}: {ended.output[-1000:]}")
            time.sleep(STEADY)
        since = load.report.all_marked_after(mark)
        if since is None:
            raise BenchmarkError(f"version {mark} was never all that answered")
        return since - began, len(load.report.failed)


@contextlib.contextmanager
def services() -> Iterator[tuple[Service, Service]]:
    """A service as it is usually run, and one that keeps a release warm; all of it is gone afterwards."""
    engine = Engine(prefix=f"t{secrets.token_hex(3)}h", worker=WORKER, base_image=ensure())
    with scratch("limits") as folder:
        made: list[Service] = []
        keeping: list[Deploy] = []
        try:
            for name, settings in (("usual", {}), ("warm", {"keep_warm": 1})):
                site = Site(engine, folder / name, settings={"keep": 3, **settings})
                site.run("deploy", expect=0)
                (folder / f"{name}-ssh").mkdir()
                ssh = this_machine_by_ssh(engine, site, folder / f"{name}-ssh")
                keeping.append(kept(ssh, folder / f"{name}-ssh"))
                ways: dict[str, tuple[list[str], dict[str, str]]] = {LOCAL: ([], {})}
                for way, deploy in ((SSH, ssh), (KEPT, keeping[-1])):
                    ways[way] = (["--config", str(deploy.file)], deploy.environment)
                made.append(Service(site, ways))
            yield made[0], made[1]
        finally:
            for one in keeping:
                hang_up(one)
            engine.clean()


def one_round(usual: Service, warm: Service, seconds: float) -> Iterator[tuple[str, str, float, int]]:
    """What is measured: case, way, seconds, failed requests."""
    for way in WAYS:
        old = usual.change(seconds)
        usual.run(way, "deploy")
        time.sleep(KEPT_SETTLE)  # what is kept is made ready after a command
        new = usual.change(seconds)
        yield (DEPLOY, way, *usual.until_new(way, "deploy", new))
        yield NOTHING, way, usual.run(way, "deploy"), 0
        yield (ROLLBACK, way, *usual.until_new(way, "rollback", old))
        usual.change(seconds, _BREAKS)
        with Load(f"{usual.site.url}/", rate=RATE, seconds=300) as load:
            taken = usual.run(way, "deploy", expect=REFUSED)
        yield REFUSAL, way, taken, len(load.report.failed)
        old = warm.change(seconds)
        warm.run(way, "deploy")
        warm.change(seconds)
        warm.run(way, "deploy")
        yield (WARM, way, *warm.until_new(way, "rollback", old))


def run(options: Options) -> Report:
    """The rounds; the first one warms up and does not count."""
    samples: list[Figures] = []
    plans = [(IMPORT, options.pairs(ROUNDS, QUICK_ROUNDS))]
    if options.full:
        plans.append((SLOW_IMPORT, options.pairs(SLOW_ROUNDS, QUICK_ROUNDS)))
    say("limits: building the image and starting two services")
    with services() as (usual, warm):
        for seconds, rounds in plans:
            for number in range(rounds + 1):
                for case, way, taken, failed in one_round(usual, warm, seconds):
                    if number:
                        samples.append(
                            {"import": seconds, "round": number, "case": case, "way": way, "seconds": round(taken, 4),
                             "failed": failed}
                        )  # fmt: skip
                say(f"  import {seconds:g} s, round {number}")
    return report_of(samples, options.quick)


def beside_import(samples: Sequence[Figures], seconds: float, case: str, way: str) -> list[float]:
    """The seconds of one case, without those of the import."""
    wanted = [one for one in samples if (one["import"], one["case"], one["way"]) == (seconds, case, way)]
    off = seconds if case in _IMPORTS else 0.0
    return [float(one["seconds"]) - off for one in wanted]


def report_of(samples: Sequence[Figures], quick: bool) -> Report:
    """A promise for each limit and import time, and what was measured besides."""
    imports = sorted({float(one["import"]) for one in samples})
    promises = []
    for seconds in imports:
        for (case, way), limit in LIMITS.items():
            found = beside_import(samples, seconds, case, way)
            off = f", beside the {seconds:g} s of the import" if case in _IMPORTS else f" (import {seconds:g} s)"
            promises.append(Promise(f"{case} {way}{off}", round(median(found), 4), limit, "s", len(found)))
    failed = sum(int(one["failed"]) for one in samples)
    promises.append(Promise("requests that failed in all of it", failed, 0, "requests", len(samples), "exactly"))
    cases = (DEPLOY, NOTHING, REFUSAL, ROLLBACK, WARM)
    return Report(
        name="limits",
        title="What a user waits for",
        promises=promises,
        figures=[
            {
                "case": case,
                **{
                    f"{way}, import {seconds:g} s": median(
                        [
                            float(one["seconds"])
                            for one in samples
                            if (one["import"], one["case"], one["way"]) == (seconds, case, way)
                        ]
                    )
                    for seconds in imports
                    for way in WAYS
                },
            }
            for case in cases
        ],
        samples=samples,
        machine=machine_facts(),
        quick=quick,
    )
