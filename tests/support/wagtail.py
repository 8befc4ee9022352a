"""A site made by `wagtail start`, with Wagtail from PyPI: made once, kept in .lightship/, copied for each run."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from support.engine import PROJECT

# The one with long-term support that runs on the base image's Python: from 7.2 on it depends on a django-tasks that
# fails on 3.11.2 (Debian 12) whenever something is saved, and from 7.3 on `wagtail start` asks for a newer Django.
WAGTAIL = "wagtail==7.0.10"
CACHE = PROJECT / ".lightship" / f"{WAGTAIL.replace('==', '-')}-mysite"


def start_project(target: Path) -> None:
    """`wagtail start mysite` into ``target``. The virtual environment that does it is needed only the first time."""
    if not CACHE.is_dir():
        CACHE.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE.parent) as folder:
            made = _start(Path(folder))
            made.rename(CACHE)
    shutil.copytree(CACHE, target, dirs_exist_ok=True)


def _start(folder: Path) -> Path:
    run = (
        [sys.executable, "-m", "venv", str(folder / "venv")],
        [str(folder / "venv/bin/pip"), "install", "--quiet", "--disable-pip-version-check", WAGTAIL],
        [str(folder / "venv/bin/wagtail"), "start", "mysite", str(_made(folder / "mysite"))],
    )
    for command in run:
        done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
        if done.returncode:
            raise AssertionError(f"{' '.join(command[:3])} ended with {done.returncode}: {done.stderr[-3000:]}")
    return folder / "mysite"


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
