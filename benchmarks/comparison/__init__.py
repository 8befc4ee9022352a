"""lightship beside what a user would pick instead, interleaved in one run: same service, same commit, same load.

A round is one commit with one changed line, deployed by each way in turn while 100 requests a second go to the service
that is measured, half of them on new connections and half on connections that the client would keep. At the end each
way is given a commit that cannot be imported.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from benchmarks.code_deploy import IMPORT
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
)
from benchmarks.comparison.ground import Ground, ground
from benchmarks.comparison.ways import ByHand, Lightship, Way, all_ways, broken_words
from benchmarks.cost import Command, Meter, Peak, Traffic, container_pid
from support.load import Load, LoadReport

__all__ = ["report_of", "run"]

ROUNDS, QUICK_ROUNDS = 7, 2
RATE = 100
STALL = 0.1
RATIO, OWN_TIME, P99 = 0.5, 0.9, 1.5
REFUSED = 3
#: Seconds before a deploy, after it until the quiet stretch, and of that.
SETTLE, AFTER, QUIET, MARGIN = 0.7, 0.7, 1.6, 0.2
#: All is new when it has been for so many seconds.
STEADY = 0.5
PATIENCE = 60
_BREAKS = "import nothing_of_this_name"


class TwoLoads:
    """The load: half of it on new connections, half on ones that are kept where the server does."""

    def __init__(self, url: str) -> None:
        self._loads = [
            Load(url, rate=RATE / 2, seconds=300, capture=r"\A(.+)\Z", keep_alive=keep) for keep in (False, True)
        ]

    def __enter__(self) -> TwoLoads:
        for load in self._loads:
            load.start()
        return self

    def __exit__(self, *_: object) -> None:
        for load in self._loads:
            load.stop()

    def wait_for(self, mark: str) -> bool:
        """Wait until all answers of a while have it; False when that does not come to be."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            now = time.monotonic()
            late = [one for load in self._loads for one in load.so_far().records if one.due > now - STEADY]
            if late and all(one.mark == mark for one in late) and late[-1].due > now - STEADY / 2:
                return True
            time.sleep(0.1)
        return False

    @property
    def report(self) -> LoadReport:
        """All requests, in the order in which they were due."""
        records = [record for load in self._loads for record in load.stop().records]
        return LoadReport(tuple(sorted(records, key=lambda record: record.due)))


def measure(way: Way, version: str, traffic: Traffic) -> Figures:
    """One deploy under load, with a quiet stretch after it."""
    words, log = way.command(), way.ground.home / f"log-{way.slug}"
    pids = [container_pid(way.ground.engine, way.container)]
    sshd = way.ground.sshd_pid
    command = Command(words, way.working_directory, way.environment(), log)
    with TwoLoads(way.url) as load, Peak(pids[0]) as peak:
        time.sleep(SETTLE)
        before, sent, beside = Meter.read([*pids, sshd]), traffic.bytes(), way.cpu_beside()
        day, began = time.time(), time.monotonic()
        ended = command.run()
        over = time.monotonic()
        if ended.status:
            raise BenchmarkError(f"{way.name} ended with {ended.status}: {ended.output[-1500:]}")
        if not load.wait_for(version):
            raise BenchmarkError(f"{way.name} did not answer with version {version} within {PATIENCE} s")
        after, sent, beside = Meter.read([*pids, sshd]), traffic.bytes() - sent, way.cpu_beside() - beside
        now = [container_pid(way.ground.engine, way.container)] if isinstance(way, Lightship) else pids
        time.sleep(AFTER)
        rest = Meter.read([*now, sshd])
        time.sleep(QUIET + MARGIN)
        quiet = Meter.read([*now, sshd])
    idle = (quiet.cpu - rest.cpu) / (quiet.moment - rest.moment)
    return {
        **figures_of(load.report, version, began, over),
        "day": day,
        "cpu_command": round(ended.cpu + beside, 3),
        "cpu_server": round(max(0.0, after.cpu - before.cpu - idle * (after.moment - before.moment)), 3),
        "bytes": sent,
        "memory_command": ended.memory,
        "memory_service": peak.more,
    }


def figures_of(report: LoadReport, version: str, began: float, ended: float) -> Figures:
    """What the load saw: of the deploy itself, and of a quiet stretch that began a little after its end."""
    since = report.all_marked_after(version)
    first = min((record.end for record in report.records if record.mark == version), default=None)
    if since is None or first is None:
        raise BenchmarkError(f"version {version} was never all that answered")
    until = max(since, ended)
    during, after = report.window(began, until), report.window(until + AFTER, until + AFTER + QUIET)
    if after.count < RATE * QUIET * 0.9:
        raise BenchmarkError("the load ended before the quiet stretch was over")
    return {
        "command": round(ended - began, 4),
        "first_new": round(first - began, 4),
        "all_new": round(since - began, 4),
        "requests": report.count,
        "failed": len(report.failed),
        "stalled": len(during.stalled(STALL)),
        "worst": round(during.worst, 5),
        "p99": round(during.p99, 5),
        "quiet_worst": round(after.worst, 5),
        "quiet_p99": round(after.p99, 5),
        "timeline": timeline(report, version, began, until),
    }


def timeline(report: LoadReport, version: str, began: float, until: float) -> list[list[float]]:
    """Each request around a deploy: when it was due, how long it took, and 1 for new, 0 for old, -1 for failed."""
    return [
        [round(one.due - began, 3), round(one.seconds, 4), -1 if not one.ok else int(one.mark == version)]
        for one in report.window(began - 0.5, until + 0.5).records
    ]


def break_it(way: Way, last: str) -> Figures:
    """Deploy a commit that cannot be imported, and see what becomes of the site and of the command."""
    command = Command(way.command(), way.working_directory, way.environment(), way.ground.home / f"log-{way.slug}")
    with TwoLoads(way.url) as load:
        time.sleep(SETTLE)
        began = time.monotonic()
        ended = command.run()
        over = time.monotonic()
        time.sleep(3)
    report = load.report
    late = report.window(over + 2, over + 3)
    up = bool(late.count) and all(record.ok and record.mark == last for record in late.records)
    failed = len(report.failed)
    return {
        "way": way.name,
        "kind": "broken",
        "status": ended.status,
        "seconds": round(over - began, 4),
        "failed": failed,
        "up": up,
        "broken": broken_words(ended.status, failed, up),
    }


def run(options: Options) -> Report:
    """Start all ways, warm each up with one deploy, then measure them in turn."""
    samples: list[Figures] = []
    say("comparison: building the image and starting what is compared")
    with ground(IMPORT) as made:
        ways = all_ways(made)
        for way in ways:
            way.start()
        ports = sorted({port for way in ways for port in way.ports})
        traffic = Traffic(f"{made.engine.prefix}-traffic")
        with traffic.counting(ports):
            rounds(made, ways, traffic, options.pairs(ROUNDS, QUICK_ROUNDS), samples)
    return report_of(samples, options.quick)


def rounds(made: Ground, ways: Sequence[Way], traffic: Traffic, count: int, samples: list[Figures]) -> None:
    """The rounds; the first one warms up and does not count. Then the commit that is broken."""
    version = ""
    for number in range(count + 1):
        version = f"n{number}"
        made.site.change(version, import_seconds=IMPORT)
        for way in ways:
            found = measure(way, version, traffic)
            line, day = found.pop("timeline"), found.pop("day")
            if number:
                more = {"timeline": line, "phases": way.phases(day)} if number == (count + 1) // 2 else {}
                samples.append({"kind": "deploy", "round": number, "way": way.name, **found, **more})
            say(f"  {version} {way.name:30} all new {found['all_new']:.2f} s, failed {found['failed']}")
    made.site.change("broken", import_seconds=IMPORT, more=_BREAKS)
    for way in ways:
        samples.append(break_it(way, version))
        say(f"  broken {way.name:27} {samples[-1]['broken']}")


def report_of(samples: Sequence[Figures], quick: bool) -> Report:
    """The promises of lightship's way, and the table of all."""
    deploys = [one for one in samples if one["kind"] == "deploy"]
    broken = {one["way"]: one for one in samples if one["kind"] == "broken"}
    ours, hand = Lightship.name, ByHand.name
    mine = of_way(deploys, ours, "all_new")
    count = len(mine)
    found = ratios(mine, of_way(deploys, hand, "all_new"))
    tails = ratios(of_way(deploys, ours, "p99"), of_way(deploys, ours, "quiet_p99"))
    refused = broken[ours]
    return Report(
        name="comparison",
        title="A code deploy by each way",
        promises=[
            Promise("code deploy over SSH until all is new, against by hand", median(found), RATIO, "times", count),
            Promise("the same, beside the import", round(median(mine) - IMPORT, 4), OWN_TIME, "s", count),
            Promise("requests that failed", sum(of_way(deploys, ours, "failed")), 0, "requests", count, "exactly"),
            Promise(
                "requests held up over 100 ms", sum(of_way(deploys, ours, "stalled")), 0, "requests", count, "exactly"
            ),
            Promise("p99 while deploying, against quiet", median(tails), P99, "times", count),
            Promise("exit status of a broken commit", refused["status"], REFUSED, "", 1, "exactly"),
            Promise("requests that a broken commit costs", refused["failed"], 0, "requests", 1, "exactly"),
        ],
        figures=[row(deploys, broken, way) for way in dict.fromkeys(str(one["way"]) for one in deploys)],
        samples=samples,
        machine=machine_facts(),
        quick=quick,
    )


def row(deploys: Sequence[Figures], broken: dict[str, Figures], way: str) -> Figures:
    """One way's line of the table."""
    middle = {name: median(of_way(deploys, way, name)) for name in ("command", "first_new", "all_new", "worst", "p99")}
    cpu = [
        mine + server
        for mine, server in zip(of_way(deploys, way, "cpu_command"), of_way(deploys, way, "cpu_server"), strict=True)
    ]
    return {
        "way": way,
        **{name.replace("_", " "): value for name, value in middle.items()},
        "failed": int(sum(of_way(deploys, way, "failed"))),
        "stalled": int(sum(of_way(deploys, way, "stalled"))),
        "CPU, command": median(of_way(deploys, way, "cpu_command")),
        "CPU, all": median(cpu),
        "KiB sent": round(median(of_way(deploys, way, "bytes")) / 1024),
        "MiB, command": round(median(of_way(deploys, way, "memory_command")) / 2**20),
        "MiB, service": round(median(of_way(deploys, way, "memory_service")) / 2**20),
        "a broken commit": broken[way]["broken"] if way in broken else None,
    }
