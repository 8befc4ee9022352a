"""What a deploy costs: processor time, bytes between the machines, memory.

Processor time of the command and all that it waited for is what the kernel says when it ends (``wait4``). That of the
server's side is read from the control groups of the containers that work there (the sshd, the service) and from the
engine's processes. Bytes are counted by the kernel's packet filter at the ports of the sshd and the registry, by rules
that count and do nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from benchmarks.common import BenchmarkError
from support.engine import Engine
from support.packages import find

__all__ = [
    "AgentsMemory",
    "Command",
    "Ended",
    "Meter",
    "Peak",
    "Traffic",
    "container_pid",
    "cpu_of",
    "cpu_of_process",
    "memory_of",
]

_CGROUPS = Path("/sys/fs/cgroup")
_ENGINE = ("dockerd", "containerd", "docker-registry")
_TICKS = os.sysconf("SC_CLK_TCK")
_KIB = 1024


@dataclass(frozen=True)
class Ended:
    """A command that ended: its status, its output, and what it and its children used."""

    status: int
    output: str
    cpu: float
    memory: int
    """Bytes of the largest process."""


#: Waits for a word, then runs the command that it was given and says what it used. A small process of its own, since
#: the kernel counts for a command what the process that started it had in memory.
_STARTER = """
import json, os, sys
words, folder, environment, log = json.loads(sys.stdin.readline())
os.chdir(folder)
output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
nothing = os.open("/dev/null", os.O_RDONLY)
actions = [(os.POSIX_SPAWN_DUP2, nothing, 0), (os.POSIX_SPAWN_DUP2, output, 1), (os.POSIX_SPAWN_DUP2, output, 2)]
print("ready", flush=True)
sys.stdin.readline()
pid = os.posix_spawnp(words[0], words, environment, file_actions=actions)
_, status, used = os.wait4(pid, 0)
code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
print(json.dumps([code, used.ru_utime + used.ru_stime, used.ru_maxrss]), flush=True)
"""


class Command:
    """A command that is ready to be started; its output goes to a file."""

    def __init__(self, words: Sequence[str], folder: Path, environment: Mapping[str, str], log: Path) -> None:
        self._log = log
        self._starter = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _STARTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._say(json.dumps([list(words), str(folder), dict(environment), str(log)]))
        self._hear()

    def run(self) -> Ended:
        """Start it, and wait for its end."""
        self._say("go")
        status, cpu, memory = json.loads(self._hear())
        self._starter.communicate()
        return Ended(status, self._log.read_text(errors="replace"), cpu, memory * _KIB)

    def _say(self, line: str) -> None:
        if self._starter.stdin is None:
            raise BenchmarkError("the starter has no input")
        self._starter.stdin.write(f"{line}\n")
        self._starter.stdin.flush()

    def _hear(self) -> str:
        line = self._starter.stdout.readline() if self._starter.stdout else ""
        if not line:
            raise BenchmarkError(f"a command could not be started; see {self._log}")
        return line


# --- the server's side ----------------------------------------------------------------


def _cgroup(pid: int, controller: str) -> Path | None:
    """The folder of a process's control group, in either version."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, kinds, path = line.split(":", 2)
        names = kinds.split(",") if kinds else []
        if controller in names:
            return _CGROUPS / controller / path.lstrip("/")
        if not names and (_CGROUPS / path.lstrip("/") / f"{controller.removesuffix('acct')}.stat").exists():
            return _CGROUPS / path.lstrip("/")
    return None


def container_pid(engine: Engine, name: str) -> int:
    """The first process of a container."""
    return int(engine.docker("inspect", "--format", "{{.State.Pid}}", name))


def cpu_of(pid: int) -> float:
    """Seconds of processor time that the control group of a process has used."""
    folder = _cgroup(pid, "cpuacct")
    if folder is None:
        raise BenchmarkError(f"no control group counts the processor time of process {pid}")
    usage = folder / "cpuacct.usage"
    if usage.exists():
        return int(usage.read_text()) / 1e9
    found = dict(line.split() for line in (folder / "cpu.stat").read_text().splitlines())
    return int(found["usage_usec"]) / 1e6


def cpu_of_process(pid: int) -> float:
    """Seconds of processor time that one process has used, without its children."""
    return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13])) / _TICKS


def memory_of(pid: int) -> int:
    """Bytes that the control group of a process uses now, without what the kernel would give back."""
    folder = _cgroup(pid, "memory")
    if folder is None:
        raise BenchmarkError(f"no control group counts the memory of process {pid}")
    old = folder / "memory.usage_in_bytes"
    used = int((old if old.exists() else folder / "memory.current").read_text())
    stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    return used - int(stat["total_inactive_file" if old.exists() else "inactive_file"])


def engine_cpu() -> float:
    """Seconds of processor time of the engine's processes and of the children that they waited for."""
    total = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                name, _, rest = (entry / "stat").read_text().partition("(")[2].rpartition(")")
                if name in _ENGINE:
                    total += sum(int(ticks) for ticks in rest.split()[11:15])
    return total / _TICKS


class _Most:
    """The most that was seen of something while the block runs, looked at again and again."""

    pause = 0.05

    def __init__(self) -> None:
        self.most = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def look(self) -> int:
        """How much it is now."""
        raise NotImplementedError

    def _watch(self) -> None:
        while not self._end.wait(self.pause):
            with contextlib.suppress(OSError, BenchmarkError, KeyError, ValueError):  # what was looked at is gone
                self.most = max(self.most, self.look())


class Peak(_Most):
    """The most memory that a container's control group has used, more than before it."""

    def __init__(self, pid: int) -> None:
        super().__init__()
        self._pid = pid
        self._before = self.most = memory_of(pid)

    @property
    def more(self) -> int:
        """Bytes more than before."""
        return max(0, self.most - self._before)

    def look(self) -> int:
        """What it uses now."""
        return memory_of(self._pid)


class AgentsMemory(_Most):
    """The most memory that one of the agents behind an sshd has had, in bytes."""

    pause = 0.1

    def __init__(self, pid: int) -> None:
        super().__init__()
        self._space = Path(f"/proc/{pid}/ns/pid").readlink()

    def look(self) -> int:
        """The largest of those that run now."""
        return max(map(self._of, Path("/proc").glob("[0-9]*")), default=0)

    def _of(self, entry: Path) -> int:
        with contextlib.suppress(OSError, ValueError):
            if (entry / "comm").read_text() == "python3\n" and (entry / "ns/pid").readlink() == self._space:
                line = (entry / "status").read_text().partition("VmHWM:")[2].split()
                return int(line[0]) * _KIB if line else 0
        return 0


# --- bytes ---------------------------------------------------------------------------


class Traffic:
    """Counts the bytes from and to ports of this machine's loopback."""

    def __init__(self, name: str) -> None:
        self._chain = name[:28]

    @contextlib.contextmanager
    def counting(self, ports: Sequence[int]) -> Iterator[None]:
        """Have the kernel count; afterwards the rules are gone."""
        self._do("-N", self._chain)
        try:
            for port in ports:
                for side in ("--dport", "--sport"):
                    self._do("-A", self._chain, "-p", "tcp", side, str(port))
            self._do("-I", "OUTPUT", "1", "-o", "lo", "-j", self._chain)
            yield
        finally:
            with contextlib.suppress(BenchmarkError):
                self._do("-D", "OUTPUT", "-o", "lo", "-j", self._chain)
            self._do("-F", self._chain)
            self._do("-X", self._chain)

    def bytes(self) -> int:
        """What was counted until now."""
        lines = self._do("-nvxL", self._chain).splitlines()[2:]
        return sum(int(line.split()[1]) for line in lines)

    def _do(self, *words: str) -> str:
        program = find("iptables") or "iptables"
        done = subprocess.run([program, "--wait", *words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchmarkError(f"iptables {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout


@dataclass(frozen=True)
class Meter:
    """What the server's side has used until a moment."""

    moment: float
    cpu: float

    @classmethod
    def read(cls, pids: Sequence[int]) -> Meter:
        """Now, of these control groups and the engine."""
        total = engine_cpu()
        for pid in pids:
            with contextlib.suppress(OSError):  # a container that was replaced meanwhile
                total += cpu_of(pid)
        return cls(time.monotonic(), total)
