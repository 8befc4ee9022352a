"""A Docker engine of a test's own, in a network of its own, to be killed and started again.

Its networking rules would get in the way of the engine that everybody else uses, hence the network namespace: what
talks to it lives in there too, so the scenario runs as a program of its own (``support.daemon_scenario``).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from support.packages import find


class Daemon:
    """dockerd with its own socket, data and containerd. Runs in the network namespace of whoever starts it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "docker.sock"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, live_restore: bool, timeout: float = 60) -> None:
        """Start it, and wait until it answers."""
        program = find("dockerd")
        assert program is not None
        # The proxy would die with dockerd; the kernel's own forwarding, which does the work for others, does not.
        options = ["--userland-proxy=false", *(["--live-restore"] if live_restore else [])]
        places = [f"--host=unix://{self.socket}", f"--data-root={self.folder / 'data'}", f"--pidfile={self.folder}/pid"]
        # containerd dies with dockerd. Where nobody reaps it, or its number is somebody else's by now, dockerd would
        # take it for alive and wait for its socket in vain.
        (self.folder / "exec/containerd/containerd.pid").unlink(missing_ok=True)
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [program, *places, f"--exec-root={self.folder / 'exec'}", *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + timeout
        while not self.answers():
            assert self._process.poll() is None, (self.folder / "log").read_text()[-3000:]
            assert time.monotonic() < deadline, (self.folder / "log").read_text()[-3000:]
            time.sleep(0.1)

    def answers(self) -> bool:
        """Whether it talks."""
        command = ["docker", "--host", f"unix://{self.socket}", "version", "--format", "{{.Server.Version}}"]
        return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 0

    def kill(self) -> None:
        """SIGKILL to dockerd alone, as the kernel's memory killer does."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._process = None

    def close(self) -> None:
        """End it and all that it started, and remove its files."""
        if self._process is not None:
            self.kill()
        end_all(self.folder)


def end_all(folder: Path) -> None:
    """End every process that belongs to an engine in this folder, its containers too, and remove the folder."""
    for _ in range(5):
        found = _processes(folder)
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not found:
            break
        time.sleep(0.3)
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mount in sorted((mount for mount in mounts if mount.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "--lazy", mount], check=False, capture_output=True)
    shutil.rmtree(folder, ignore_errors=True)


def _processes(folder: Path) -> list[int]:
    """dockerd, containerd and its shims by their arguments, and what descends from them."""
    parents: dict[int, int] = {}
    ours: set[int] = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] == "Z":
            continue
        parents[int(entry.name)] = int(fields[1])
        program = Path(os.fsdecode(command.split(b"\0")[0])).name
        if str(folder).encode() in command and program in ("dockerd", "containerd", "containerd-shim-runc-v2"):
            ours.add(int(entry.name))
    grown = True
    while grown:
        grown = False
        for pid, parent in parents.items():
            if parent in ours and pid not in ours:
                ours.add(pid)
                grown = True
    return sorted(ours)


@contextlib.contextmanager
def network(name: str) -> Iterator[list[str]]:
    """A network namespace with nothing in it but its loopback; the words that run a command in it."""
    subprocess.run(["ip", "netns", "add", name], check=True, capture_output=True)
    try:
        # Not `ip netns exec`, which hides /sys and with it the control groups.
        enter = [find("nsenter") or "nsenter", f"--net=/run/netns/{name}"]
        subprocess.run([*enter, "ip", "link", "set", "lo", "up"], check=True, capture_output=True)
        yield enter
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


@contextlib.contextmanager
def folder(prefix: str) -> Iterator[Path]:
    """A folder for an engine: short, since a socket's path may have 107 characters only."""
    made = Path(tempfile.mkdtemp(prefix=f"{prefix}-"))
    try:
        yield made
    finally:
        end_all(made)
