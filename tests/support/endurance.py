"""Endurance: many deploys in a row, good and broken mixed, under load, and nothing that grows.

``python -m support.endurance --deploys 200`` (``make soak``) prints a line a deploy and ends with what was measured.
With ``--proxy`` (``make gapless``) each is a container or a full deploy of a service behind the proxy, in turn, with
visitors on new and on kept connections and such that wait 3 s for their answer. Otherwise every third deploy is a
broken one (an import that fails, a health path that answers 500, a syntax error) and must be refused; the others must
be live at their end.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightship_agent.gitcommand import MANY_PACKS
from support.engine import Engine, ensure
from support.load import LoadReport
from support.proxy import behind, build_proxy_image, remove
from support.site import Site

BROKEN: Sequence[tuple[str, dict[str, Any]]] = (
    ("an import that fails", {"more": "import nothing_of_this_name"}),
    ("a health path that answers 500", {"health": "500 Internal Server Error"}),
    ("a syntax error", {"more": "def :"}),
)
RATE = 100  # requests a second
WARM_UP = 6
REFUSED = 3


@dataclass(frozen=True)
class Footprint:
    """What the service and its deploys take up. Memory is what the container's processes have resident, in KiB."""

    processes: int
    descriptors: int
    memory: int
    files: int
    images: int
    containers: int

    @classmethod
    def of(cls, site: Site) -> Footprint:
        """Measured now."""
        pids = [int(pid) for pid in site.engine.docker("top", site.container(), "-eo", "pid").split()[1:]]
        images = site.engine.docker("image", "ls", "--quiet", "--filter", f"label=lightship.service={site.name}")
        return cls(
            processes=len(pids),
            descriptors=sum(_descriptors(pid) for pid in pids),
            memory=sum(_resident(pid) for pid in pids),
            files=sum(len(files) + len(folders) for _, folders, files in os.walk(site.home)),
            images=len(set(images.split())),
            containers=len(site.containers()),
        )

    def grown(self, before: Footprint) -> list[str]:
        """What has grown beyond what one more release explains."""
        margins = {"processes": 0, "descriptors": 4, "memory": before.memory // 5, "images": 0, "containers": 0}
        # A pack of the mirror is two files, and so many there may be before they are united.
        margins["files"] = 40 + 2 * MANY_PACKS
        return [
            f"{name}: {getattr(before, name)} -> {getattr(self, name)}"
            for name, margin in margins.items()
            if getattr(self, name) > getattr(before, name) + margin
        ]


@dataclass(frozen=True)
class Endured:
    """What came of it."""

    deploys: int
    refused: int
    before: Footprint
    after: Footprint
    report: LoadReport
    seconds: float

    @property
    def problems(self) -> list[str]:
        """What should not be."""
        found = self.after.grown(self.before)
        if self.report.failed:
            found.append(
                f"{len(self.report.failed)} of {self.report.count} requests failed: {dict(self.report.errors)}"
            )
        return found


def _descriptors(pid: int) -> int:
    try:
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))
    except OSError:  # it has just ended
        return 0


def _resident(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmRSS:")), 0)


def _settled(site: Site, seconds: float = 15) -> Footprint:
    """The footprint when the slot that left is gone."""
    end = time.monotonic() + seconds
    last = Footprint.of(site)
    while time.monotonic() < end:
        time.sleep(0.5)
        now = Footprint.of(site)
        if now.processes == last.processes and now.descriptors == last.descriptors:
            return now
        last = now
    return last


def endure(site: Site, deploys: int, tell: Callable[[str], None]) -> Endured:
    """Deploy that many times. Raises ``AssertionError`` at the first outcome that is another than it should be."""
    started = time.monotonic()
    site.deploy()
    refused = 0
    before = Footprint.of(site)
    with site.load(rate=RATE, seconds=min(deploys * 20 + 120, 3600)) as load:
        live = site.current
        for number in range(1, deploys + 1):
            if number % 3 == 0:
                name, what = BROKEN[number // 3 % len(BROKEN)]
                site.change(f"broken-{number}", **what)
                said = site.deploy(expect=REFUSED)
                refused += 1
                assert site.current == live, f"deploy {number} ({name}) was refused and changed what is live"
                tell(f"{number:4} {said.seconds:5.2f} s  refused: {name}")
            else:
                live = site.change(f"v{number}")
                said = site.deploy()
                assert site.current == live, f"deploy {number} ended with another release live"
                assert site.get()[1] == f"v{number}", f"deploy {number} is not what the site answers"
                tell(f"{number:4} {said.seconds:5.2f} s  live")
            if number == WARM_UP:
                # Retention is full and both slots have run: from here on nothing may grow.
                before = _settled(site)
        after = _settled(site)
        assert load.running, "the load ended before the deploys did"
    return Endured(deploys, refused, before, after, load.report, time.monotonic() - started)


def replace_containers(site: Site, deploys: int, tell: Callable[[str], None]) -> dict[str, LoadReport]:
    """That many container and full deploys in turn behind the proxy; what the visitors of each kind saw."""
    site.deploy()
    seconds = min(deploys * 30 + 120, 3600)
    kinds: dict[str, dict[str, Any]] = {
        "new connections": {"rate": RATE / 2},
        "kept connections": {"rate": RATE / 2, "keep_alive": True},
        "3 s in flight": {"rate": 0.8, "paths": ["/slow?seconds=3"]},
    }
    with ExitStack() as stack:
        loads = {name: stack.enter_context(site.load(seconds=seconds, **what)) for name, what in kinds.items()}
        for number in range(1, deploys + 1):
            site.configure(env={"NUMBER": str(number)})
            kind = "full" if number % 2 == 0 else "container"
            live = site.change(f"v{number}") if kind == "full" else site.current
            said = site.deploy()
            assert said.result["kind"] == kind
            assert site.current == live, f"deploy {number} ended with another release live"
            assert len(site.containers()) == 1, f"deploy {number} left a container behind"
            tell(f"{number:4} {said.seconds:5.2f} s  {kind}")
        time.sleep(4)
        assert all(load.running for load in loads.values()), "a load ended before the deploys did"
    return {name: load.report for name, load in loads.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it and say what came of it; exit status 1 when something failed or grew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deploys", type=int, default=200)
    parser.add_argument("--proxy", action="store_true", help="replace containers behind the proxy")
    chosen = parser.parse_args(arguments)
    if chosen.proxy:
        return behind_the_proxy(chosen.deploys)
    engine = Engine(prefix=f"soak{os.getpid()}", worker=6, base_image=ensure())
    folder = Path(tempfile.mkdtemp(prefix="lightship-soak-", dir="/var/tmp"))
    try:
        site = Site(engine, folder / "site", settings={"keep": 3, "soak": 0.2})
        found = endure(site, chosen.deploys, print)
    finally:
        engine.clean()
        shutil.rmtree(folder, ignore_errors=True)
    report = found.report
    print(
        f"{found.deploys} deploys ({found.refused} refused) in {found.seconds:.0f} s under {RATE} requests/s: "
        f"{len(report.failed)} of {report.count} requests failed, worst {report.worst:.3f} s, p99 {report.p99:.3f} s"
    )
    print(f"before {found.before}")
    print(f"after  {found.after}")
    for problem in found.problems:
        print(f"grown or failed: {problem}")
    return 1 if found.problems else 0


def behind_the_proxy(deploys: int) -> int:
    """``make gapless``; exit status 1 when a request failed."""
    engine = Engine(prefix=f"gap{os.getpid()}", worker=6, base_image=ensure())
    folder = Path(tempfile.mkdtemp(prefix="lightship-gapless-", dir="/var/tmp"))
    site = behind(Site(engine, folder / "site", settings={"keep": 3}), build_proxy_image(engine.base_image))
    try:
        reports = replace_containers(site, deploys, print)
    finally:
        remove(site)
        engine.clean()
        shutil.rmtree(folder, ignore_errors=True)
    for name, report in reports.items():
        print(
            f"{name}: {len(report.failed)} of {report.count} requests failed {dict(report.errors) or ''}, "
            f"worst {report.worst:.3f} s, p99 {report.p99:.3f} s, "
            f"{sum(one.retried for one in report.records)} found a kept connection closed and asked again"
        )
    return 1 if any(report.failed for report in reports.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
