#!/usr/bin/env python3
"""Make `.venv` with the locked dependencies and the project itself.

Which index the packages come from is the machine's own affair (pip's settings); the lock holds hashes, no address.
A stamp in `.venv` makes every later run free until the lock or pyproject.toml changes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import subprocess
import sys
import time
from pathlib import Path

from machine import ROOT, TroubleError, alone, install_packages, run, say, stop_with, tail

VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "lightship-stamp.json"
LOCK = ROOT / "requirements" / "dev.lock"
NEEDED = (3, 11)


def digest(*paths: Path) -> str:
    """One hash over some files' contents."""
    total = hashlib.sha256()
    for path in paths:
        total.update(path.read_bytes())
    return total.hexdigest()


def wanted() -> dict[str, str]:
    """What a finished environment's stamp says."""
    return {
        "place": str(VENV),
        "lock": digest(LOCK),
        "project": digest(ROOT / "pyproject.toml"),
    }


def found() -> dict[str, str]:
    """What the stamp of the environment that is there says; nothing when it was never finished."""
    try:
        stamp = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) and usable() else {}


def pip(*arguments: str) -> None:
    """Run the environment's own pip; its output is shown only when it fails."""
    done = run([str(PYTHON), "-m", "pip", "--disable-pip-version-check", *arguments], timeout=900)
    if done.returncode:
        raise TroubleError(
            f"pip could not install the project's dependencies:\n\n{tail(done.stderr or done.stdout)}\n\n"
            "It asked the package index of this machine's pip settings (`pip config list`).\n"
            "Check that it answers, and run the same command again."
        )


def make_environment() -> None:
    """Create the environment anew. A broken or moved one is replaced."""
    if importlib.util.find_spec("ensurepip") is None:
        install_packages(["python3-venv"], "makes virtual environments")
    done = run([sys.executable, "-m", "venv", "--clear", str(VENV)], timeout=180)
    if done.returncode:
        raise TroubleError(f"`{sys.executable} -m venv` failed:\n\n{tail(done.stdout + done.stderr)}")


def usable() -> bool:
    """Whether the environment that is there lies where it was made, and its interpreter is still there.

    Which interpreter runs this program does not matter: a machine may have several.
    """
    try:
        config = (VENV / "pyvenv.cfg").read_text()
        script = (VENV / "bin" / "pip").read_text()
    except (OSError, UnicodeDecodeError):
        return False
    match = re.search(r"(?m)^version = (\d+)\.(\d+)", config)
    version = (int(match[1]), int(match[2])) if match else (0, 0)
    library = VENV / "lib" / "python{}.{}".format(*version)
    there = PYTHON.exists() and (PYTHON.resolve().parent / f"python{version[0]}.{version[1]}").exists()
    return version >= NEEDED and there and library.is_dir() and script.startswith(f"#!{VENV}/bin/python")


def compile_sources() -> None:
    """Byte code for what is edited in place, as an installed package has it: without it each command is 65 ms slower.

    Python writes it by itself, unless PYTHONDONTWRITEBYTECODE says not to, as it does on many build machines.
    """
    if PYTHON.exists():
        subprocess.run([PYTHON, "-m", "compileall", "-q", ROOT / "src"], check=False, capture_output=True)


def main() -> int:
    """Bring the environment to what the lock says, if it is not there yet."""
    if sys.version_info < NEEDED:
        return stop_with(TroubleError(f"lightship needs Python 3.11 or later, and {sys.executable} is older."))
    want = wanted()
    if found() == want:
        compile_sources()
        return 0
    started = time.monotonic()
    try:
        with alone("venv"):
            have = found()
            if have == want:
                return 0
            if not usable():
                say("making the virtual environment .venv")
                make_environment()
            STAMP.unlink(missing_ok=True)
            if have.get("lock") != want["lock"]:
                say("installing the locked dependencies")
                pip("install", "--quiet", "--require-hashes", "--requirement", str(LOCK))
            pip("install", "--quiet", "--no-deps", "--no-build-isolation", "--editable", str(ROOT))
            STAMP.write_text(json.dumps(want))
        compile_sources()
    except TroubleError as trouble:
        return stop_with(trouble)
    except subprocess.SubprocessError as error:
        return stop_with(TroubleError(str(error)))
    say(f".venv is ready ({time.monotonic() - started:.0f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
