#!/usr/bin/env python3
"""Renew the locks: every dependency with its version and hashes, and no address of a package index.

`pyproject.toml` says what lightship needs to run, `requirements/dev.in` what its checks need beside that. The resolver
lives in an environment of its own, as it is needed here alone.
"""

from __future__ import annotations

import sys

from machine import ROOT, STATE, TroubleError, run, say, stop_with, tail

RESOLVER = STATE / "resolver"
OPTIONS = [
    "--no-config",
    "--universal",
    "--python-version",
    "3.11",
    "--generate-hashes",
    "--upgrade",
    "--quiet",
    "--no-header",
    "--no-emit-index-url",
    "--no-emit-find-links",
    "--annotation-style",
    "line",
]


def checked(*command: str) -> None:
    """Run a command that has to succeed."""
    done = run(command, timeout=300)
    if done.returncode:
        raise TroubleError(f"`{' '.join(command[:4])} ...` failed:\n\n{tail(done.stderr or done.stdout)}")


def main() -> int:
    """Write both locks; the run-time one takes its versions from the other, so the tests run what users run."""
    uv = RESOLVER / "bin" / "uv"
    folder = ROOT / "requirements"
    try:
        if not uv.exists():
            checked(sys.executable, "-m", "venv", str(RESOLVER))
            checked(str(RESOLVER / "bin" / "pip"), "install", "--quiet", "uv")
        dev, runtime = folder / "dev.lock", folder / "runtime.lock"
        resolve = (str(uv), "--directory", str(ROOT), "pip", "compile", *OPTIONS)
        checked(*resolve, "pyproject.toml", "requirements/dev.in", "--output-file", str(dev))
        checked(*resolve, "pyproject.toml", "--constraints", "requirements/dev.lock", "--output-file", str(runtime))
        for name in ("oldest", "ec2"):
            # Each has lightship beside another ansible-core.
            output = str(folder / f"ansible-{name}.lock")
            checked(*resolve, "pyproject.toml", f"requirements/ansible-{name}.in", "--output-file", output)
        output, constraints = str(folder / "ansible-lint.lock"), ("--constraints", "requirements/dev.lock")
        checked(*resolve, "requirements/ansible-lint.in", *constraints, "--output-file", output)
        output = str(folder / "ansible-collections.lock")
        checked(*resolve, "requirements/ansible-collections.in", "--no-deps", "--output-file", output)
    except TroubleError as trouble:
        return stop_with(trouble)
    say(f"renewed {dev.name} and {runtime.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
