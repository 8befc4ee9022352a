#!/usr/bin/env python3
"""The Docker engine that the demo and the tests run on.

    engine.py ensure    use the engine that answers; otherwise install and start one (root, Debian packages)
    engine.py stop      stop the engine, if it is one that `ensure` started

An engine that was here before is used and never stopped. One that is started here stays for the next run; its process
ends with the machine or with `make clean`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from machine import STATE, TroubleError, alone, install_packages, is_root, run, say, stop_with, tail

SOCKET = Path("/var/run/docker.sock")
RUN = Path("/var/run")
RECORD = STATE / "engine.json"
LOG = STATE / "engine.log"
READY_WITHIN = 60.0
STOPPED_WITHIN = 30.0
SYSTEMD = Path("/run/systemd/system")
NEEDED = (
    ("git", "git", "fetches the code that is deployed"),
    ("ps", "procps", "the engine's list of a container's processes comes from it"),
)
# Where a non-login shell of root may not look.
SBIN = ("/usr/sbin", "/sbin", "/usr/local/sbin")


def ask() -> tuple[bool, str]:
    """Whether an engine answers, and if not, what the client says."""
    done = run(["docker", "version", "--format", "{{.Server.Version}}"], timeout=20)
    answered = done.returncode == 0 and bool(done.stdout.strip())
    return answered, (done.stderr or done.stdout).strip()


def find_dockerd() -> str | None:
    """The engine's program, if it is installed."""
    return shutil.which("dockerd", path=os.pathsep.join([os.environ.get("PATH", ""), *SBIN]))


def started_at(pid: int) -> str | None:
    """When a process began, in clock ticks since boot: with the number, this names a process once and for all.

    A process that ended is none, even while nobody has collected its status: not every machine's first process does.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return None


def program_of(pid: int) -> str:
    """The name of the program that a process runs; empty when there is no such process."""
    if started_at(pid) is None:
        return ""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def drop_stale_pid_files() -> None:
    """Remove the pid files of an engine that ended: a new one would take any process of that number for it."""
    for path, program in (
        (RUN / "docker.pid", "dockerd"),
        (RUN / "docker" / "containerd" / "containerd.pid", "containerd"),
    ):
        with contextlib.suppress(OSError, ValueError):
            if program_of(int(path.read_text().strip())) != program:
                path.unlink()


def start_by_systemd() -> None:
    """Where a service manager runs, the engine is its service."""
    done = run(["systemctl", "start", "docker"], timeout=90)
    if done.returncode:
        raise TroubleError(
            f"`systemctl start docker` failed:\n\n{tail(done.stderr)}\n\n`journalctl -u docker` says more."
        )
    RECORD.write_text(json.dumps({"manager": "systemd"}))


def start_by_hand(dockerd: str) -> subprocess.Popen[bytes]:
    """Start the engine in a session of its own, so that it outlives this program and its terminal."""
    drop_stale_pid_files()
    path = os.pathsep.join([os.environ.get("PATH", ""), *SBIN])
    with LOG.open("ab") as log:
        process = subprocess.Popen(
            [dockerd, "--host", f"unix://{SOCKET}"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd="/",
            env={**os.environ, "PATH": path},
        )
    record = {"manager": "none", "pid": process.pid, "started": started_at(process.pid)}
    RECORD.write_text(json.dumps(record))
    return process


def wait_until_ready(process: subprocess.Popen[bytes] | None) -> None:
    """Wait for the engine's first answer."""
    deadline = time.monotonic() + READY_WITHIN
    said = ""
    while time.monotonic() < deadline:
        ready, said = ask()
        if ready:
            return
        if process is not None and process.poll() is not None:
            RECORD.unlink(missing_ok=True)
            raise TroubleError(
                f"dockerd ended at once. The end of {LOG}:\n\n{tail(LOG.read_text(errors='replace'), 12)}"
            )
        time.sleep(0.2)
    raise TroubleError(
        f"The Docker engine did not answer within {READY_WITHIN:.0f} s:\n\n{tail(said, 4)}\n\nIts log: {LOG}"
    )


def explain(said: str) -> TroubleError:
    """Why there is no engine here, and what to do, for somebody who is not root."""
    if "permission denied" in said.lower():
        return TroubleError(
            "A Docker engine runs here, but this user may not use it.\n\n"
            "Either run the same command as root, or let this user use the engine (it is as good as being root):\n\n"
            "    usermod -aG docker USER      as root; then log in again"
        )
    return TroubleError(
        "Missing: a Docker engine. None answers, and only root can install and start one.\n\n"
        f"{tail(said, 3)}\n\n"
        "Either run the same command as root: it installs Debian's docker.io if it must, and starts it.\n"
        "Or start an engine yourself and let this user use it:\n\n"
        "    apt-get install docker.io iptables\n"
        "    systemctl start docker       or: dockerd --host unix:///var/run/docker.sock\n"
        "    usermod -aG docker USER\n\n"
        "`make unit` and `make local` need no engine."
    )


def ensure() -> None:
    """Have an engine that answers."""
    ready, said = ask()
    if ready:
        return
    with alone("engine"):
        ready, said = ask()
        if ready:
            return
        host = os.environ.get("DOCKER_HOST", "")
        if host and host.removeprefix("unix://") != str(SOCKET):
            raise TroubleError(f"DOCKER_HOST names the engine {host}, which does not answer:\n\n{tail(said, 4)}")
        if not is_root():
            raise explain(said)
        dockerd = find_dockerd()
        if dockerd is None:
            install_packages(["docker.io", "iptables"], "the Docker engine")
            dockerd = find_dockerd()
        if dockerd is None or not shutil.which("docker"):
            raise TroubleError("The package docker.io is installed, yet its programs docker and dockerd are not there.")
        begun = time.monotonic()
        say("starting the Docker engine")
        if SYSTEMD.is_dir():
            start_by_systemd()
            wait_until_ready(None)
        else:
            wait_until_ready(start_by_hand(dockerd))
        say(f"the Docker engine answers ({time.monotonic() - begun:.1f} s)")


def ours() -> dict[str, Any] | None:
    """The record of the engine that was started here, if that very process still runs."""
    try:
        record = json.loads(RECORD.read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict):
        return None
    if record.get("manager") == "systemd":
        return record
    pid = int(record.get("pid") or 0)
    alive = pid > 1 and program_of(pid) == "dockerd" and started_at(pid) == record.get("started")
    return record if alive else None


def stop() -> None:
    """Stop the engine that was started here, and no other."""
    record = ours()
    if record is None:
        RECORD.unlink(missing_ok=True)
        return
    say("stopping the Docker engine that was started here")
    if record.get("manager") == "systemd":
        run(["systemctl", "stop", "docker.socket", "docker.service"], timeout=90)
    else:
        pid = int(record["pid"])
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + STOPPED_WITHIN
        while started_at(pid) == record["started"] and program_of(pid) == "dockerd":
            if time.monotonic() > deadline:
                raise TroubleError(f"The Docker engine (process {pid}) did not stop. Its log: {LOG}")
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
            time.sleep(0.1)
    RECORD.unlink(missing_ok=True)


def main() -> int:
    """Parse and act."""
    parser = argparse.ArgumentParser(description="The Docker engine that the demo and the tests run on.")
    parser.add_argument("action", choices=["ensure", "stop", "ours"])
    action = parser.parse_args().action
    try:
        if action == "ours":
            return 0 if ours() else 1
        if action == "ensure":
            for program, package, why in NEEDED:
                if not shutil.which(program):
                    install_packages([package], why)
            ensure()
        else:
            stop()
    except TroubleError as trouble:
        return stop_with(trouble)
    return 0


if __name__ == "__main__":
    sys.exit(main())
