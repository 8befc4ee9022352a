"""``python -m benchmarks``: measure, print one table, end with 1 when a promise is missed.

Results go to ``.lightship/benchmarks/``; with ``--record`` to ``benchmarks/results/``, which the page
docs/reference/benchmarks.md is made from.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from benchmarks import pictures
from benchmarks.common import RESULTS, ROOT, BenchmarkError, Options, Report, load_reports, say, summary
from benchmarks.page import PAGE, README, page, readme
from benchmarks.plot import PICTURE, picture

# Cheap ones first: a fault of the set-up shows at once.
BENCHMARKS = (
    "startup",
    "tree",
    "fleet_simulated",
    "code_deploy",
    "proxied",
    "ssh_deploy",
    "many_agents",
    "comparison",
    "limits",
    "scale",
    "ansible_deploy",
)
#: What is measured unless more is asked for: what a user would pick instead, in ten minutes.
USUAL = ("startup", "comparison")
LAST_RUN = ROOT / ".lightship" / "benchmarks"
INTERRUPTED = 130


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Hold lightship to its measured promises."
    )
    parser.add_argument("--only", action="append", choices=BENCHMARKS, metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--quick", action="store_true", help="fewer pairs, for trying out; nothing to quote")
    parser.add_argument("--record", action="store_true", help="keep the results, and write the page anew from them")
    parser.add_argument("--page", action="store_true", help="measure nothing; write the page anew from kept results")
    found = parser.parse_args(arguments)
    if found.record and found.quick:
        parser.error("--record is for whole runs: leave out --quick")
    return found


def measure(names: Sequence[str], options: Options, folder: Path) -> list[Report]:
    """Run the benchmarks one after the other, and keep what each measured as soon as it is known."""
    sys.path.insert(0, str(ROOT / "tests"))
    reports = []
    for name in names:
        run: Callable[[Options], Report] = importlib.import_module(f"benchmarks.{name}").run
        report = run(options)
        report.save(folder)
        reports.append(report)
    return reports


def warn_if_busy() -> None:
    """Ratios bear some noise. Without a free core, though, lightship works more slowly and `touch` waits no longer."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > cores / 2:
        say(f"this machine is busy (load {load:.1f} on {cores} cores): what follows says more about that than about us")


def ended(number: int, _frame: FrameType | None) -> None:
    """SIGTERM and SIGHUP clean up as Ctrl-C does."""
    raise KeyboardInterrupt(f"signal {number}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 0 when every promise is kept."""
    wanted = parse(arguments)
    if not wanted.page:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, ended)
        options = Options(quick=wanted.quick, full=os.environ.get("BENCH") == "full")
        chosen = wanted.only or (BENCHMARKS if options.full or wanted.record else USUAL)
        names = [name for name in BENCHMARKS if name in chosen]
        warn_if_busy()
        try:
            reports = measure(names, options, RESULTS if wanted.record else LAST_RUN)
        except BenchmarkError as error:
            say(f"no result: {error}")
            return 1
        except KeyboardInterrupt:
            say("interrupted; all that was made has been removed")
            return INTERRUPTED
        print(summary(reports))
        if not wanted.record:
            return 0 if all(report.kept for report in reports) else 1
    kept = load_reports(RESULTS, BENCHMARKS)
    PAGE.write_text(page(kept), encoding="utf-8")
    say(f"wrote {PAGE.relative_to(ROOT)}")
    README.write_text(readme(README.read_text(encoding="utf-8"), kept), encoding="utf-8")
    for report in kept:
        if report.name == "fleet_simulated":
            PICTURE.write_text(picture(report), encoding="utf-8")
            say(f"wrote {PICTURE.relative_to(ROOT)}")
        for path in pictures.write(report):
            say(f"wrote {path.relative_to(ROOT)}")
    return 0 if all(report.kept for report in kept) else 1


if __name__ == "__main__":
    sys.exit(main())
