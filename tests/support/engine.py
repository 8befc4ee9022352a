"""The Docker engine under the tests: one that answers, a base image, names of this run's own, and a clean end.

Every test process has a prefix that no other has. What it makes is called by it or labelled with it, and all of that
is removed at the end, whether the tests passed or not.
"""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent.parent
TOOLS = PROJECT / "tools"
LABEL = "lightship.test"
# Below the range that the kernel gives outgoing connections, so none of those can take a port first.
FIRST_PORT, PORTS_EACH = 20000, 1000


class MissingEngineError(Exception):
    """There is no engine, and none could be had: the tests fail, they are not skipped."""


@dataclass
class Engine:
    """The engine, and what this test process made in it."""

    prefix: str
    worker: int
    base_image: str
    _count: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _ports: Iterator[int] = field(init=False)

    def __post_init__(self) -> None:
        first = FIRST_PORT + self.worker % 10 * PORTS_EACH
        # Several runs at once on one machine start at different places.
        start = os.getpid() * 7 % PORTS_EACH
        self._ports = itertools.cycle([*range(first + start, first + PORTS_EACH), *range(first, first + start)])

    @property
    def label(self) -> str:
        """What goes behind ``--label`` of everything that a test makes by hand."""
        return f"{LABEL}={self.prefix}"

    @property
    def option(self) -> str:
        """The same for `options:` of a lightship.yml, where keys that begin with lightship. are not allowed."""
        return f"--label=lightship-test={self.prefix}"

    def name(self, word: str = "shop") -> str:
        """A name for a service, container, image or network that nothing else has."""
        return f"{self.prefix}-{word}-{next(self._count)}"

    def free_port(self) -> int:
        """A port that nothing listens on; no other test process of this run is given it."""
        for port in itertools.islice(self._ports, PORTS_EACH):
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("0.0.0.0", port))
                except OSError:
                    continue
                return port
        raise MissingEngineError("no port is free")

    def docker(self, *arguments: str, check: bool = True, timeout: float = 120) -> str:
        """Run a docker command; its output."""
        done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=timeout, check=False)
        if check and done.returncode:
            raise AssertionError(
                f"docker {' '.join(arguments[:3])} ended with {done.returncode}: {done.stderr.strip()}"
            )
        return done.stdout.strip()

    def run(self, *arguments: str, name: str = "") -> str:
        """Start a container in the background, labelled as this run's; its id."""
        named = ["--name", name] if name else []
        return self.docker("run", "--detach", "--label", self.label, *named, *arguments)

    def build(self, folder: Path, tag: str, *arguments: str) -> str:
        """Build an image, labelled as this run's; its tag."""
        base = ["--build-arg", f"BASE_IMAGE={self.base_image}"]
        self.docker("build", "--label", self.label, *base, "--tag", tag, *arguments, str(folder), timeout=600)
        return tag

    def _listed(self, listing: Sequence[str], filters: Sequence[str]) -> list[str]:
        found: list[str] = []
        for wanted in filters:
            found += self.docker(*listing, "--filter", wanted, check=False).split()
        return sorted(set(found))

    def clean(self) -> None:
        """Remove all that this test process made: containers, then networks and images."""
        # lightship's own containers are called after their service, whose name begins with the prefix.
        named, labelled = f"name=^/?{self.prefix}-", f"label={self.label}"
        for listing, removal, filters in (
            (("ps", "--all", "--quiet"), ("rm", "--force", "--volumes"), (labelled, named)),
            (("network", "ls", "--quiet"), ("network", "rm"), (labelled, f"name={self.prefix}-")),
            (("volume", "ls", "--quiet"), ("volume", "rm", "--force"), (labelled, f"name={self.prefix}-")),
        ):
            if found := self._listed(listing, filters):
                self.docker(*removal, *found, check=False)
        images = self._listed(("image", "ls", "--quiet"), (labelled,))
        shown = self.docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}", check=False)
        images += [name for name in shown.splitlines() if f"{self.prefix}-" in name]
        if images:
            self.docker("image", "rm", "--force", *images, check=False)


def _said(program: str, *arguments: str) -> str:
    """What one of the tools says."""
    command = [sys.executable, str(TOOLS / program), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MissingEngineError(done.stderr.strip())
    return done.stdout.strip()


def ensure() -> str:
    """Have an engine and the base image, by the same programs as `make`; the base image's full name."""
    _said("engine.py", "ensure")
    return _said("base_image.py", "ensure")


def server_image() -> str:
    """The image of a machine with sshd, sudo, git and an engine, made once a machine by the program that makes it."""
    return _said("server_image.py")


@pytest.fixture(scope="session")
def engine(testrun_uid: str, worker_id: str) -> Iterator[Engine]:
    """A Docker engine that answers, with the base image in it. Never skips."""
    base = ensure()
    number = int(worker_id.removeprefix("gw")) if worker_id.startswith("gw") else 9
    made = Engine(prefix=f"t{testrun_uid[:6]}{'abcdefghij'[number % 10]}", worker=number, base_image=base)
    try:
        yield made
    finally:
        made.clean()
