"""The collection as a user has it: built, installed, and run by the real ansible-playbook."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
BIN = Path(sys.executable).parent
_RECAP = re.compile(
    r"^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+).*rescued=(\d+)", re.MULTILINE
)


@functools.cache
def built() -> Path:
    """The collection's file, by the command that `make collection` runs."""
    folder = Path(tempfile.mkdtemp(prefix="lightship-collection-"))
    _checked([str(BIN / "ansible-galaxy"), "collection", "build", str(ROOT / "ansible"), "--output-path", str(folder)])
    (found,) = folder.glob("lightship-deploy-*.tar.gz")
    return found


@functools.cache
def installed(program: str = str(BIN / "ansible-galaxy")) -> Path:
    """A folder of collections that has it installed from its file."""
    folder = built().parent / "collections"
    if not folder.exists():
        _checked([program, "collection", "install", "--offline", str(built()), "--collections-path", str(folder)])
    return folder


@functools.cache
def environment(name: str) -> Path:
    """The programs of another Ansible (see tools/ansible_environment.py)."""
    return Path(_checked([sys.executable, str(ROOT / "tools" / "ansible_environment.py"), name]).strip()) / "bin"


def _checked(command: list[str], **environment: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **environment}, timeout=600
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Ran:
    """What a run of ansible-playbook did and said."""

    status: int
    output: str
    seconds: float

    @property
    def recap(self) -> dict[str, dict[str, int]]:
        """By host, how its tasks ended."""
        names = ("ok", "changed", "unreachable", "failed", "rescued")
        return {
            found[1]: dict(zip(names, map(int, found.groups()[1:]), strict=True))
            for found in _RECAP.finditer(self.output)
        }

    def count(self, name: str) -> dict[str, int]:
        """One of the recap's columns."""
        return {host: one[name] for host, one in self.recap.items()}

    @property
    def changed(self) -> dict[str, int]:
        """By host, how many of its tasks changed something."""
        return self.count("changed")


@dataclass
class Playbooks:
    """Runs playbooks on an inventory."""

    folder: Path
    inventory: Path
    environment: Mapping[str, str]
    bin: Path = BIN
    variables: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, str]:
        """Ansible's settings, as variables of the environment."""
        return {
            "ANSIBLE_COLLECTIONS_PATH": f"{installed()}:{self.bin.parent / 'collections'}",
            "ANSIBLE_HOME": str(self.folder / "ansible-home"),
            "ANSIBLE_LOCAL_TEMP": str(self.folder / "ansible-tmp"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_RETRY_FILES_ENABLED": "0",
            "ANSIBLE_PIPELINING": "1",
            **self.environment,
        }

    def run(
        self, playbook: str, *arguments: str, expect: int | None = 0, env: Mapping[str, str] | None = None, **more: Any
    ) -> Ran:
        """Run a playbook with further variables."""
        began = time.monotonic()
        done = subprocess.run(
            self.command(playbook, *arguments, **more),
            cwd=self.folder,
            env={**os.environ, **self.settings, **(env or {})},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        ran = Ran(done.returncode, done.stdout + done.stderr, time.monotonic() - began)
        assert expect is None or ran.status == expect, f"{playbook} ended with {ran.status}\n{ran.output[-8000:]}"
        return ran

    def command(self, playbook: str, *arguments: str, **more: Any) -> list[str]:
        """The command that runs it."""
        variables = json.dumps({**self.variables, **more})
        inventory = str(self.inventory)
        return [str(self.bin / "ansible-playbook"), "-i", inventory, "-e", variables, *arguments, playbook]

    def start(self, playbook: str, *arguments: str, **more: Any) -> subprocess.Popen[str]:
        """Start one and go on."""
        return subprocess.Popen(
            self.command(playbook, *arguments, **more),
            cwd=self.folder,
            env={**os.environ, **self.settings},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
