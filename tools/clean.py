#!/usr/bin/env python3
"""Remove all that the demo, the tests and the set-up made here.

Containers, networks and images are found by their labels, never by guessing; packages that were installed stay.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import base_image
import engine
from machine import ROOT, STATE, TroubleError, is_root, remove_demo_files, run, say, stop_with

LABELS = ("lightship-demo", "lightship-test", "lightship.test")
# Images that lightship built for the demo and for tests are called after their service.
BUILT = re.compile(r"lightship/(?:shop-demo|t[0-9a-f]{6}[a-j]-[a-z0-9-]+):")
CACHES = (".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", "build", "dist")


def remove_labelled(label: str) -> None:
    """Remove containers first, then what they used."""
    wanted = f"label={label}"
    for kind, listing, removal in (
        ("containers", ["docker", "ps", "--all", "--quiet"], ["docker", "rm", "--force", "--volumes"]),
        ("networks", ["docker", "network", "ls", "--quiet"], ["docker", "network", "rm"]),
        ("images", ["docker", "image", "ls", "--quiet"], ["docker", "image", "rm", "--force"]),
    ):
        ids = sorted(set(run([*listing, "--filter", wanted]).stdout.split()))
        if ids:
            say(f"removing {len(ids)} {kind} labelled {label}")
            run([*removal, *ids], timeout=180)


def remove_built() -> None:
    """Remove the images that lightship built for services of the demo and of the tests."""
    listed = run(["docker", "image", "ls", "--format", "{{.Repository}}:{{.Tag}}"]).stdout.splitlines()
    names = [name for name in listed if BUILT.match(name)]
    if names:
        run(["docker", "image", "rm", "--force", *names], timeout=180)


def byte_code() -> Iterator[Path]:
    """The caches that Python left beside the sources."""
    for folder in ("src", "tests", "tools", "benchmarks", "examples"):
        yield from (ROOT / folder).rglob("__pycache__")
        yield from (ROOT / folder).glob("*.egg-info")


def main() -> int:
    """Containers and images while the engine still answers, then the engine, then files."""
    try:
        answers, _ = engine.ask() if shutil.which("docker") else (False, "")
        if not answers and STATE.exists() and is_root() and engine.find_dockerd():
            # What was made in an engine that has ended since can only be removed through it.
            engine.ensure()
            answers = True
        if answers:
            for label in LABELS:
                remove_labelled(label)
            remove_built()
            base_image.remove()
        engine.stop()
    except TroubleError as trouble:
        return stop_with(trouble)
    remove_demo_files()
    for folder in [STATE, ROOT / ".venv", *(ROOT / name for name in CACHES), *byte_code()]:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
