"""A release that is kept warm: its slot goes on running after another release took over, its workers parked.

The way back to it is then the flip alone: nothing is booted. It costs the memory of a second set of workers, so it is
only done where some is left.
"""

from __future__ import annotations

import os
from pathlib import Path

from lightship_agent import TYPE_CHECKING, slots
from lightship_agent.paths import ServicePaths
from lightship_agent.slots import SLOT_NAMES, InstanceOrder
from lightship_agent.system import read_trusted

if TYPE_CHECKING:
    from typing import Mapping

    from lightship_agent.requests import PrepareRequest

__all__ = ["memory_left", "too_little_memory", "warm_slot"]

LEAST_LEFT = 0.1
"""The share of the memory that is to be left when a release is kept warm."""

_STANDING = ("ready", "parked")
_MOST = 1024 * 1024
_KIB = 1024


def warm_slot(
    paths: ServicePaths, instance: int, request: PrepareRequest, order: InstanceOrder | None, live: str | None
) -> str | None:
    """The slot in which the wanted release stands ready to serve, booted as it would be booted now; or none."""
    for name in SLOT_NAMES:
        known = order.slots.get(name) if order else None
        if order is None or known is None or name == live or known.release != request.commit:
            continue
        view = slots.read_slot(paths, instance, name)
        if _booted_so(order, request) and view.proven(request.commit, known.generation, _STANDING):
            return name
    return None


def _booted_so(order: InstanceOrder, request: PrepareRequest) -> bool:
    """Whether what was booted is what would be booted now: the same application, tested and laid out the same way."""
    health: Mapping[str, object] | None = request.health_raw
    same_health = (dict(order.health) if order.health else None) == (dict(health) if health else None)
    return (order.app, tuple(order.shared)) == (request.app, tuple(request.shared)) and same_health


def too_little_memory(pid: int) -> str:
    """Why nothing is kept warm beside the processes of this container; empty when it can be."""
    for whose, share in memory_left(pid):
        if share < LEAST_LEFT:
            return f"{share * 100:.0f} % of the {whose}'s memory is left, and it takes {LEAST_LEFT * 100:.0f} %"
    return ""


def memory_left(pid: int) -> list[tuple[str, float]]:
    """The share of memory that is left on the server, and to the container of this process if that has a limit.

    What the kernel would give back (caches) counts as left. What cannot be read sets no limit.
    """
    found = []
    machine = _numbers(read_trusted(Path("/proc/meminfo"), _MOST) or b"", ":")
    total, left = machine.get("MemTotal", 0), machine.get("MemAvailable")
    if total and left is not None:
        found.append(("server", left / total))
    limit, used = _of_container(pid)
    if limit and limit < (total * _KIB or limit + 1):
        found.append(("container", max(0.0, 1 - used / limit)))
    return found


def _of_container(pid: int) -> tuple[int, int]:
    """The limit in bytes and what is used of it, in either version of control groups; zeros without a limit."""
    for line in (_text(f"/proc/{pid}/cgroup") if pid else "").splitlines():
        _, _, rest = line.partition(":")
        kinds, _, path = rest.partition(":")
        if kinds and "memory" not in kinds.split(","):
            continue
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        if not kinds:
            names = ("memory.max", "memory.current", "inactive_file")
        folder = os.path.normpath("/sys/fs/cgroup/" + ("memory/" if kinds else "") + path)
        limit, used = _text(f"{folder}/{names[0]}").strip(), _text(f"{folder}/{names[1]}").strip()
        if limit.isdigit() and used.isdigit():
            caches = _numbers(_text(f"{folder}/memory.stat").encode(), " ").get(names[2], 0)
            return int(limit), max(0, int(used) - caches)
    return 0, 0


def _text(path: str) -> str:
    try:
        return (read_trusted(Path(path), _MOST) or b"").decode("utf-8", "replace")
    except OSError:
        return ""


def _numbers(data: bytes, separator: str) -> dict[str, int]:
    """Lines of a name and a number."""
    found = {}
    for line in data.decode("utf-8", "replace").splitlines():
        name, _, value = line.partition(separator)
        words = value.split()
        if words and words[0].isdigit():
            found[name] = int(words[0])
    return found
