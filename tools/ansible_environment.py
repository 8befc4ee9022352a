#!/usr/bin/env python3
"""Make an environment with another Ansible than that of `.venv`, once, and print where it is.

``oldest``: the oldest ansible-core that the collection is for. ``ec2``: with a mocked EC2 and the inventory of it.
``lint``: ansible-lint. lightship itself is there as it lies here.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from machine import ROOT, STATE, TroubleError, alone, run, say, stop_with, tail
from setup_venv import digest

LOCKS = {
    "oldest": ["ansible-oldest"],
    "ec2": ["ansible-ec2", "ansible-collections"],
    "lint": ["ansible-lint"],
}
COLLECTION = "ansible_collections/amazon/aws/"


def pip(folder: Path, *arguments: str) -> None:
    """Run the environment's pip."""
    done = run([str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", *arguments], timeout=900)
    if done.returncode:
        raise TroubleError(f"pip could not install what the tests of the collection need:\n\n{tail(done.stderr)}")


def lock(name: str) -> Path:
    """A file of the locked versions."""
    return ROOT / "requirements" / f"{name}.lock"


def take_collection(folder: Path, locked: Path) -> None:
    """Of the package ansible, which has a hundred collections, the one that is needed."""
    download = folder / "download"
    pip(folder, "download", "--quiet", "--no-deps", "--require-hashes", "-r", str(locked), "-d", str(download))
    (wheel,) = download.glob("ansible-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith(COLLECTION)]
        archive.extractall(folder / "collections", names)
    shutil.rmtree(download)


def make(folder: Path, locks: list[Path]) -> None:
    """Make it anew."""
    shutil.rmtree(folder, ignore_errors=True)
    done = run([sys.executable, "-m", "venv", str(folder)], timeout=180)
    if done.returncode:
        raise TroubleError(f"`{sys.executable} -m venv` failed:\n\n{tail(done.stdout + done.stderr)}")
    pip(folder, "install", "--quiet", "--require-hashes", "-r", str(locks[0]))
    for locked in locks[1:]:
        take_collection(folder, locked)
    (packages,) = folder.glob("lib/python3.*/site-packages")
    (packages / "lightship.pth").write_text(f"{ROOT / 'src'}\n")


def ensure(name: str) -> Path:
    """The environment of that name, made when it is not there or its lock has changed."""
    locks = [lock(one) for one in LOCKS[name]]
    folder = STATE / f"ansible-{name}"
    stamp, want = folder / "stamp", f"{folder} {digest(*locks)}"
    with alone(f"ansible-{name}"):
        if not stamp.exists() or stamp.read_text() != want:
            say(f"making the environment {folder.name}")
            make(folder, locks)
            stamp.write_text(want)
    return folder


def main() -> int:
    """Make the one that is named."""
    try:
        print(ensure(sys.argv[1]))
    except (TroubleError, subprocess.SubprocessError) as trouble:
        return stop_with(TroubleError(str(trouble)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
