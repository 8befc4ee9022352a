"""What the programs in this folder share: running commands, one program at a time, Debian packages, plain messages.

They run before the virtual environment exists, so nothing here needs more than Python's standard library.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STATE = ROOT / ".lightship"
# Where the demo keeps its service's files. Below /srv as a real one's, since a checkout may lie where no such files
# may be, as in root's home. Whoever may not write there has the demo keep them in the checkout.
DEMO_FILES = Path("/srv/lightship-demo") if os.geteuid() == 0 else STATE / "demo" / "srv"
DEMO_MARK = ".made-by-make-demo"
SCREEN_ROWS = 16


class TroubleError(Exception):
    """Something a person has to put right. The text says what is missing and what to do about it."""


def say(text: str) -> None:
    """Tell what is being done, on standard error: standard output is for results."""
    print(f"-- {text}", file=sys.stderr, flush=True)


def stop_with(trouble: TroubleError) -> int:
    """Show what is missing, and give the exit status that goes with it."""
    print(f"\n{trouble}\n", file=sys.stderr, flush=True)
    return 1


def is_root() -> bool:
    """Whether packages can be installed and an engine can be started."""
    return os.geteuid() == 0


def run(
    command: Sequence[str], *, timeout: float = 60, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and keep what it said. A missing program or a timeout is a status of its own."""
    environment = {**os.environ, **env} if env else None
    try:
        return subprocess.run(
            list(command),
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            env=environment,
        )
    except FileNotFoundError as error:
        return subprocess.CompletedProcess(list(command), 127, "", str(error))
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(list(command), 124, "", f"no answer within {timeout:.0f} s")


def remove_demo_files() -> None:
    """Remove the files of the demo's service; a folder of that name that the demo did not make stays."""
    if (DEMO_FILES / DEMO_MARK).is_file() and not DEMO_FILES.is_symlink():
        shutil.rmtree(DEMO_FILES, ignore_errors=True)


def tail(text: str, rows: int = SCREEN_ROWS) -> str:
    """The last rows of a program's output, indented: as much as a screen has room for."""
    return "\n".join("    " + row[:160] for row in text.strip().splitlines()[-rows:])


@contextlib.contextmanager
def alone(name: str, timeout: float = 900) -> Iterator[None]:
    """One program at a time: the others wait, as test processes do that start side by side."""
    STATE.mkdir(exist_ok=True)
    with (STATE / f"{name}.lock").open("a") as handle:
        deadline = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TroubleError(
                        f"Another program holds {STATE / name}.lock for {timeout:.0f} s already."
                    ) from None
                time.sleep(0.05)
        yield


def install_packages(packages: Sequence[str], why: str) -> None:
    """Install Debian packages; the package lists are fetched only when the first try fails for want of them."""
    names = " ".join(packages)
    by_hand = f"    apt-get update && apt-get install --no-install-recommends {names}"
    if not shutil.which("apt-get"):
        raise TroubleError(f"Missing: {names} ({why}).\nThis machine has no apt-get, so install them in its own way.")
    if not is_root():
        raise TroubleError(f"Missing: {names} ({why}).\nAs root:\n\n{by_hand}\n\nThen run the same command again.")
    say(f"installing {names} ({why})")
    command = ["apt-get", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120", "install", *packages]
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    done = run(command, timeout=900, env=quiet)
    if done.returncode:
        run(["apt-get", "-o", "DPkg::Lock::Timeout=120", "update"], timeout=300, env=quiet)
        done = run(command, timeout=900, env=quiet)
    if done.returncode:
        raise TroubleError(
            f"Missing: {names} ({why}), and apt-get could not install them:\n\n{tail(done.stderr or done.stdout)}\n\n"
            f"Put the machine's package sources right, check with\n\n{by_hand}\n\nand run the same command again."
        )
