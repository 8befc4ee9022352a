"""What the slots of an instance are to run (written), and what they say they run (read, and not trusted).

The host writes ``code/instances/<n>.json``, which the container can only read. The container writes announcements and
the statistics socket under ``run/<n>/slots/<slot>/``; those are read with ``system.read_untrusted``, which follows no
links, opens nothing but regular files and reads no more than it is told to.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightship_agent import TYPE_CHECKING
from lightship_agent.errors import AgentFailure
from lightship_agent.failpoints import fail_point, register
from lightship_agent.paths import ServicePaths
from lightship_agent.records import dataclass, field
from lightship_agent.roles import RoleOrder, read_back
from lightship_agent.system import atomic_write, open_directory, read_untrusted

if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "Failure",
    "InstanceOrder",
    "SlotOrder",
    "SlotView",
    "Worker",
    "WorkerStats",
    "read_failure",
    "read_order",
    "read_slot",
    "write_order",
]

register(
    order__write="the keeper is about to be told what the slots and roles are to run",
    order__written="the keeper has been told what the slots and roles are to run",
)

SLOT_NAMES = ("0", "1")
MAIN = "main"
MAX_ANNOUNCEMENT = 128 * 1024
MAX_STATS = 4 * 1024 * 1024
STATS_SECONDS = 1.0
MAX_WORKERS = 1024
LARGEST = 2**53
STATES = ("ready", "serving", "parked")


@dataclass(frozen=True)
class SlotOrder:
    """What one slot is to run. The generation grows with every boot that is asked for, and tells them apart."""

    release: str
    generation: int


@dataclass(frozen=True)
class InstanceOrder:
    """What one instance is to run: the whole of ``instances/<n>.json``. Without ``web`` it runs no uWSGI."""

    app: str
    health: Mapping[str, Any] | None
    patience: float
    shared: Sequence[str]
    slots: Mapping[str, SlotOrder]
    roles: Mapping[str, RoleOrder] = field(default_factory=dict)
    web: bool = True

    def as_dict(self) -> dict[str, Any]:
        """The file's content."""
        return {
            "version": 1,
            "app": self.app,
            "health": dict(self.health) if self.health else None,
            "patience": self.patience,
            "shared": list(self.shared),
            "slots": {
                name: {"release": slot.release, "generation": slot.generation} for name, slot in self.slots.items()
            },
            "roles": {name: role.as_dict() for name, role in self.roles.items()},
            "web": self.web,
        }


@dataclass(frozen=True)
class Worker:
    """One worker's announcement."""

    id: int
    pid: int
    release: str
    generation: int
    state: str
    time: float

    def as_dict(self) -> dict[str, Any]:
        """The worker as facts and results carry it."""
        return {"id": self.id, "pid": self.pid, "release": self.release, "state": self.state, "time": self.time}


@dataclass(frozen=True)
class Failure:
    """Why a slot could not boot its release."""

    error: str
    traceback: str
    release: str = ""


@dataclass(frozen=True)
class WorkerStats:
    """What the statistics socket says of one worker. A number that is none is -1; ``apps`` says that one is loaded."""

    id: int
    pid: int
    status: str
    apps: bool
    respawns: int


@dataclass(frozen=True)
class SlotView:
    """A slot as it was seen: its boot's measurements, its workers' announcements, and the master's own statistics."""

    booted: Mapping[str, Any] | None
    workers: list[Worker]
    stats: list[WorkerStats] | None

    def proven(self, release: str, generation: int | None, states: Any) -> bool:
        """Whether every worker of the master runs ``release`` and is in one of ``states``.

        The announcements alone could be stale and the statistics alone do not know the release, so both must name
        the same processes: every worker that the master has (but for cheaped ones) has an announcement with its pid.
        """
        if not self.stats:
            return False
        announced = {worker.id: worker for worker in self.workers}
        alive = [entry for entry in self.stats if entry.status != "cheap" and entry.pid]
        for entry in alive:
            worker = announced.get(entry.id)
            if worker is None or entry.pid <= 0 or worker.pid != entry.pid or worker.release != release:
                return False
            if worker.state not in states or (generation is not None and worker.generation != generation):
                return False
            if not entry.apps:
                return False
        return bool(alive)


def slot_folder(paths: ServicePaths, instance: int, slot: str) -> Path:
    """Where a slot says what it runs."""
    return paths.run(instance) / "slots" / slot


def write_order(paths: ServicePaths, instance: int, order: InstanceOrder) -> None:
    """Tell the keeper of an instance what its slots are to run."""
    fail_point("order.write")
    data = json.dumps(order.as_dict(), indent=1).encode("utf-8")
    atomic_write(paths.instance_file(instance), data, 0o644)
    fail_point("order.written")


def read_order(paths: ServicePaths, instance: int) -> InstanceOrder | None:
    """What the slots of an instance were told to run, or None when nothing was."""
    try:
        with open(paths.instance_file(instance), encoding="utf-8") as file:
            found = json.load(file)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise AgentFailure("state-damaged", f"{paths.instance_file(instance)} is not JSON: {error}") from None
    slots = {name: SlotOrder(slot["release"], int(slot["generation"])) for name, slot in found["slots"].items()}
    return InstanceOrder(
        app=found["app"],
        health=found.get("health"),
        patience=float(found["patience"]),
        shared=found.get("shared") or (),
        slots=slots,
        roles=read_back(found.get("roles") or {}),
        web=bool(found.get("web", True)),
    )


def _read_json(paths: ServicePaths, instance: int, slot: str, name: str) -> Mapping[str, Any] | None:
    """An announcement; None when it is missing, cannot be opened, is too large, not JSON or not an object."""
    try:
        data = read_untrusted(slot_folder(paths, instance, slot), name, MAX_ANNOUNCEMENT)
    except (AgentFailure, OSError):  # a lease that the container holds on its file lets nobody open it
        return None
    if data is None:
        return None
    try:
        found = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _whole(value: Any) -> int:
    """A whole number that a process may have counted to, or -1: JSON has numbers of any size."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST else -1


def _text(value: Any, longest: int) -> str:
    """A string, cut; anything else is an empty one."""
    return value[:longest] if isinstance(value, str) else ""


def _parse_worker(found: Mapping[str, Any], number: int) -> Worker | None:
    state, moment = found.get("state"), found.get("time")
    if state not in STATES or _whole(found.get("worker")) != number:
        return None
    if not isinstance(moment, (int, float)) or not 0 <= moment <= LARGEST:  # NaN is not, either
        return None
    release = found.get("release")
    if not isinstance(release, str) or not re.fullmatch(r"[0-9a-f]{40}", release):
        return None
    return Worker(number, _whole(found.get("pid")), release, _whole(found.get("generation")), state, float(moment))


def read_failure(paths: ServicePaths, instance: int, slot: str, generation: int | None) -> Failure | None:
    """Why the slot's boot of that generation failed, or None when it has not (yet)."""
    found = _read_json(paths, instance, slot, "failed.json")
    if found is None or (generation is not None and _whole(found.get("generation")) != generation):
        return None
    return Failure(
        _text(found.get("error"), 2000), _text(found.get("traceback"), 65536), _text(found.get("release"), 40)
    )


def read_booted(paths: ServicePaths, instance: int, slot: str, generation: int | None) -> Mapping[str, Any] | None:
    """The measurements of the slot's boot of that generation, or None when it has not booted (yet)."""
    found = _read_json(paths, instance, slot, "booted.json")
    if found is None or (generation is not None and _whole(found.get("generation")) != generation):
        return None
    return found


def worker_count(booted: Mapping[str, Any]) -> int:
    """How many workers a boot says that it has, within reason."""
    return min(max(_whole(booted.get("workers")), 0), MAX_WORKERS)


def read_workers(paths: ServicePaths, instance: int, slot: str) -> list[Worker]:
    """The announcements of a slot's workers, by number; what is not a well-formed one is left out."""
    booted = _read_json(paths, instance, slot, "booted.json") or {}
    workers = []
    for number in range(1, worker_count(booted) + 1):
        found = _read_json(paths, instance, slot, f"worker-{number}.json")
        worker = _parse_worker(found, number) if found else None
        if worker:
            workers.append(worker)
    return workers


def read_counts(paths: ServicePaths, instance: int, slot: str) -> list[tuple[int, int]]:
    """The responses and the server errors that each worker of a slot wrote down."""
    booted = _read_json(paths, instance, slot, "booted.json") or {}
    found = []
    for number in range(1, worker_count(booted) + 1):
        count = _read_json(paths, instance, slot, f"count-{number}.json") or {}
        if count.get("release") == booted.get("release"):
            found.append((max(0, _whole(count.get("responses"))), max(0, _whole(count.get("errors")))))
    return found


def read_stats(paths: ServicePaths, instance: int, slot: str) -> list[WorkerStats] | None:
    """The ``workers`` of the slot's statistics socket, or None when nothing answers there.

    The socket lies where the container can write: the way to it is walked without following links, and what is
    connected to is the very inode that was looked at. Whatever listens there has a second in all, and says no more
    than a few megabytes.
    """
    descriptors: list[int] = []
    try:
        descriptors.append(open_directory(slot_folder(paths, instance, slot)))
        flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptors.append(os.open("stats.sock", flags, dir_fd=descriptors[0]))
        return _ask_stats(f"/proc/self/fd/{descriptors[1]}")
    except (OSError, ValueError, RecursionError, AgentFailure):
        return None
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _ask_stats(path: str) -> list[WorkerStats] | None:
    answer = bytearray()
    deadline = time.monotonic() + STATS_SECONDS
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(STATS_SECONDS)
        connection.connect(path)
        while len(answer) <= MAX_STATS:
            # The limit is for all of it: one byte at a time would keep a limit for each alive for weeks.
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            connection.settimeout(left)
            part = connection.recv(65536)
            if not part:
                break
            answer += part
    found = json.loads(answer)
    workers = found.get("workers") if isinstance(found, dict) else None
    if not isinstance(workers, list):
        return None
    return [_parse_stats(entry) for entry in workers[:MAX_WORKERS] if isinstance(entry, dict)]


def _parse_stats(entry: Mapping[str, Any]) -> WorkerStats:
    return WorkerStats(
        id=_whole(entry.get("id")),
        pid=_whole(entry.get("pid")),
        status=_text(entry.get("status"), 40),
        apps=bool(entry.get("apps")),
        respawns=_whole(entry.get("respawn_count")),
    )


def read_slot(paths: ServicePaths, instance: int, slot: str) -> SlotView:
    """A slot as it is now."""
    return SlotView(
        _read_json(paths, instance, slot, "booted.json"),
        read_workers(paths, instance, slot),
        read_stats(paths, instance, slot),
    )
