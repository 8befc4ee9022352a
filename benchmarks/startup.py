"""How long a command takes that does next to nothing, against the interpreter alone."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import (
    ROOT,
    BenchmarkError,
    Figures,
    Options,
    Promise,
    Report,
    machine_facts,
    median,
    of_way,
    say,
    scratch,
)

LIMIT = 0.25
RUNS, QUICK_RUNS = 21, 7
WARM_UP = 2
EXAMPLE = ROOT / "examples" / "shop" / "lightship.yml"
LIGHTSHIP = str(Path(sys.executable).with_name("lightship"))
COMMANDS: dict[str, Sequence[str]] = {
    "python -c pass": (sys.executable, "-c", "pass"),
    "lightship --help": (LIGHTSHIP, "--help"),
    "lightship config check": (LIGHTSHIP, "config", "check"),
}


def timed(command: Sequence[str], folder: Path) -> float:
    """Seconds from the start of a command until it has ended; one that fails is no measurement."""
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise BenchmarkError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.decode()[-500:]}")
    return seconds


def run(options: Options) -> Report:
    """All three commands in turn, over and over; the difference of the medians is held to the promise."""
    count = options.pairs(RUNS, QUICK_RUNS)
    samples: list[Figures] = []
    with scratch("startup") as folder:
        (folder / "lightship.yml").write_bytes(EXAMPLE.read_bytes())
        say(f"startup: {count} runs of each command")
        for number in range(-WARM_UP, count):
            for way, command in COMMANDS.items():
                seconds = timed(command, folder)
                if number >= 0:
                    samples.append({"pair": number, "way": way, "seconds": round(seconds, 5)})
    return report_of(samples, options.quick)


def report_of(samples: Sequence[Figures], quick: bool) -> Report:
    """The promises, from the measured times."""
    alone, *commands = COMMANDS
    base = of_way(samples, alone, "seconds")
    medians = {way: median(of_way(samples, way, "seconds")) for way in COMMANDS}
    return Report(
        name="startup",
        title="Start of a command",
        promises=[
            Promise(f"`{way}`: more than `{alone}`", medians[way] - medians[alone], LIMIT, "s", len(base))
            for way in commands
        ],
        figures=[{"command": way, "seconds": medians[way]} for way in COMMANDS],
        samples=samples,
        machine=machine_facts(),
        quick=quick,
    )
