"""A container's processes as this server's kernel knows them: what nobody in the container can make up."""

from __future__ import annotations

import os
import time

__all__ = ["processes_of"]

# A tick of the kernel's clock, by which a start may be off.
_TICKS = os.sysconf("SC_CLK_TCK")
_MAX = 64 * 1024


def processes_of(first: int, proc: str = "/proc") -> dict[int, float] | None:
    """The seconds for which each process in the container of the process ``first`` has been up, by its number there.

    None when that process is gone, and the container with it. Zombies are left out.
    """
    try:
        namespace = os.readlink(f"{proc}/{first}/ns/pid")
    except OSError:
        return None
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    found: dict[int, float] = {}
    for name in os.listdir(proc):
        if not name.isdigit():
            continue
        try:
            if os.readlink(f"{proc}/{name}/ns/pid") != namespace:
                continue
            inside = _number_inside(_read(f"{proc}/{name}/status"))
            fields = _read(f"{proc}/{name}/stat").rpartition(")")[2].split()
            if inside and fields[0] != "Z":
                found[inside] = max(0.0, now - int(fields[19]) / _TICKS)
        except (OSError, ValueError, IndexError):  # it ended meanwhile
            continue
    return found


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read(_MAX)


def _number_inside(status: str) -> int | None:
    """The last of ``NSpid``: the number in the innermost namespace."""
    for line in status.splitlines():
        if line.startswith("NSpid:"):
            return int(line.split()[-1])
    return None
