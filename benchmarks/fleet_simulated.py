"""What a rollout costs the controller, from one server to ten thousand, with simulated servers.

The agents are simulated (``tests/support/fleet.py``) and speak the real protocol; all else is the program itself,
from planning to the JSON of the result. Delays and failures are drawn. The clock is virtual: nothing waits, so the CPU
time is what the work costs, and the rollout takes what the drawn delays come to. The simulation itself counts
as the controller's, which makes the figures a little worse than they are.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import ROOT, BenchmarkError, Figures, Options, Promise, Report, machine_facts, say
from lightship_agent.records import replace

if TYPE_CHECKING:
    from support.fleet import SimulatedServer

CPU_LIMIT, MEMORY_LIMIT = 60.0, 1024.0
SIZES, QUICK_SIZES = (1, 10, 100, 1000, 10_000), (1, 100)
SEED = 1
#: The median of what each operation takes, in seconds, and how far it is spread (the deviation of its logarithm).
DELAYS = {"open": 0.15, "hello": 0.1, "inspect": 0.7, "prepare": 1.5, "activate": 0.05, "verify": 0.7, "commit": 0.05}
SPREAD = 0.5
CANARY_SOAK = 30.0
#: The shares of servers whose release fails, whose connection is lost after the flip, and that are not there at all.
BROKEN, CUT, DOWN = 0.01, 0.005, 0.002
TIMEOUT = 900

_CONFIG = """\
services:
  shop:
    repository: /srv/git/shop.git
    servers: [web0]
    app: shop.wsgi:application
    image: "shop:1"
    env: {DJANGO_SETTINGS_MODULE: shop.settings, LANG: C.UTF-8}
    checks: [{name: django, command: [python, manage.py, check]}]
    migrate: {command: [python, manage.py, migrate]}
    rollout: {canary: 1, canary_soak: 30, batch: "10%", max_failures: "5%"}
"""


def drawn(count: int, seed: int) -> list[SimulatedServer]:
    """So many servers, each with its delays, some with a fault. The first one, the canary, has none."""
    from support.fleet import NEW, Fault, SimulatedServer  # noqa: PLC0415

    draw = random.Random(seed)

    def pace(canary: bool) -> Callable[[str], float]:
        factor = draw.lognormvariate(0.0, SPREAD)

        def delay(op: str) -> float:
            soak = CANARY_SOAK if canary and op == "verify" else 0.0
            return soak + DELAYS.get(op, 0.02) * factor * draw.lognormvariate(0.0, SPREAD)

        return delay

    servers = []
    for number in range(count):
        luck = draw.random() if number else 1.0
        fault = None
        if luck < DOWN:
            fault = Fault("open", "cut", down=1e9)
        elif luck < DOWN + CUT:
            fault = Fault("verify", "cut", down=draw.uniform(0.0, 20.0))
        broken = frozenset({NEW}) if DOWN + CUT <= luck < DOWN + CUT + BROKEN else frozenset()
        servers.append(SimulatedServer(f"web{number}", delay=pace(number == 0), fault=fault, broken=broken))
    return servers


def roll_out(count: int, seed: int) -> Figures:
    """One deploy to so many servers, and what it cost this process."""
    from lightship.model import Server  # noqa: PLC0415
    from lightship.operations.context import load_context  # noqa: PLC0415
    from lightship.operations.deploy import Wanted, deploy  # noqa: PLC0415
    from lightship.operations.rolling import Rolling  # noqa: PLC0415
    from lightship.output.json import dumps, envelope  # noqa: PLC0415
    from support.fleet import NEW, OLD, run_virtually  # noqa: PLC0415

    with tempfile.TemporaryDirectory(prefix="lightship-bench-fleet-") as folder:
        path = Path(folder) / "lightship.yml"
        path.write_text(_CONFIG, encoding="utf-8")
        loaded = load_context("shop", path, lambda _: None)
    servers = drawn(count, seed)
    by_name = {one.server: one for one in servers}
    machines = tuple(Server(one.server, one.server) for one in servers)
    context = replace(loaded, servers=machines, connect=by_name.__getitem__)
    wanted = Wanted(commit=NEW, kind="code", rolling=Rolling(skip_unreachable=True))
    began = time.process_time()
    result, seconds = run_virtually(lambda: deploy(context, wanted, time.perf_counter()))
    answer = dumps(envelope("deploy", result, error=result.error, exit_status=result.exit_status))
    cpu = time.process_time() - began
    told = {one.server: one.running for one in result.servers}
    wrong = [one.server for one in servers if one.server not in told or told[one.server] not in (one.current, None)]
    # Of those that are down nothing may be claimed, of all others everything is to be known.
    wrong += [one.server for one in servers if (told.get(one.server) is None) != (one.server in unreachable(result))]
    return {
        "servers": count,
        "rollout": round(seconds, 3),
        "cpu": round(cpu, 4),
        "memory": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "json": round(len(answer) / 1024**2, 2),
        "new": sum(one.current == NEW for one in servers),
        "old": sum(one.current == OLD for one in servers),
        "wrong": len(set(wrong)),
    }


def unreachable(result: Any) -> set[str]:
    """The servers that the result says were left out."""
    return {one.server for one in result.servers if one.outcome == "skipped"}


def measured(count: int) -> Figures:
    """One size, in a process of its own: its memory is then that of this size."""
    command = [sys.executable, "-m", "benchmarks.fleet_simulated", str(count), str(SEED)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    if done.returncode:
        raise BenchmarkError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
    found: Figures = json.loads(done.stdout)
    return found


def run(options: Options) -> Report:
    """Each size once: drawn from a seed, it is the same fleet every time."""
    samples = []
    for count in QUICK_SIZES if options.quick else SIZES:
        say(f"fleet_simulated: {count} server{'s' if count > 1 else ''}")
        samples.append(measured(count))
    return report_of(samples, options.quick)


def report_of(samples: Sequence[Figures], quick: bool) -> Report:
    """The promises, from the largest fleet, and the truth of all results."""
    largest = max(samples, key=lambda one: float(one["servers"]))
    fleet = f"{largest['servers']:,} simulated servers"
    return Report(
        name="fleet_simulated",
        title="A rollout over simulated servers",
        promises=[
            Promise(f"{fleet}: CPU time of the controller", largest["cpu"], CPU_LIMIT, "s", 1),
            Promise(f"{fleet}: its memory", largest["memory"], MEMORY_LIMIT, "MiB", 1),
            Promise(
                "simulated servers of which the result is wrong",
                sum(one["wrong"] for one in samples),
                0,
                "servers",
                len(samples),
                "exactly",
            ),
        ],
        figures=[
            {
                "servers": one["servers"],
                "rollout (drawn)": one["rollout"],
                "CPU": one["cpu"],
                "memory, MiB": round(one["memory"]),
                "on the new release": one["new"],
                "on the old one": one["old"],
            }
            for one in samples
        ],
        samples=samples,
        machine=machine_facts(),
        quick=quick,
    )


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests"))
    print(json.dumps(roll_out(int(sys.argv[1]), int(sys.argv[2]))))
