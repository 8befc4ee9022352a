"""The tree step: bring a retired release's tree forward by 10 files, in a repository of 50,000 files and in one of 500.

The work is to follow the size of the change and not of the repository. A tree that was made quickly and is wrong would
be worthless, so each is held against a fresh checkout made by git alone, byte for byte.
"""

from __future__ import annotations

import os
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import (
    BenchmarkError,
    Figures,
    Options,
    Promise,
    Report,
    machine_facts,
    median,
    of_way,
    ratios,
    say,
    scratch,
)
from lightship_agent import release as releases
from lightship_agent.git import Mirror
from lightship_agent.paths import ServicePaths

LIMIT = 1.3
LARGE, SMALL = 50_000, 500
CHANGED = 10
PAIRS, QUICK_PAIRS = 25, 7
WARM_UP = 2
FILLER = b"# A line of the usual length, so that files are as large as code is.\n" * 20
GIT = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull}


def name_of(number: int) -> bytes:
    """Where a file lies: 20 packages of 25 folders each."""
    return b"app%d/part%d/module%d.py" % (number % 20, number // 20 % 25, number)


def content_of(number: int, version: int) -> bytes:
    """What stands in it. The versions of a file have the same length: only the bytes tell them apart."""
    return b"VALUE = %d\nVERSION = %d\n" % (number, version) + FILLER


def changes(count: int) -> dict[bytes, bytes | None]:
    """The second commit: eight files changed, one removed, one added, all over the tree."""
    spread = [index * count // CHANGED for index in range(CHANGED)]
    found: dict[bytes, bytes | None] = {name_of(number): content_of(number, 2) for number in spread[:-2]}
    found[name_of(spread[-2])] = None
    found[b"app%d/part0/added.py" % (spread[-1] % 20)] = content_of(spread[-1], 2)
    return found


def stream(count: int) -> Iterator[bytes]:
    """Both commits as git's fast-import reads them."""
    head = b"commit refs/heads/main\nmark :%d\ncommitter Ada <ada@example.org> 1700000000 +0000\ndata 1\nx\n"
    yield head % 1
    for number in range(count):
        content = content_of(number, 1)
        yield b"M 100644 inline %s\ndata %d\n%s\n" % (name_of(number), len(content), content)
    yield head % 2 + b"from :1\n"
    for name, changed in changes(count).items():
        yield (
            b"D %s\n" % name
            if changed is None
            else b"M 100644 inline %s\ndata %d\n%s\n" % (name, len(changed), changed)
        )


def git(*words: str, folder: Path) -> str:
    """Run git, with nobody's settings."""
    return subprocess.run(["git", *words], cwd=folder, env=GIT, check=True, capture_output=True, text=True).stdout


def make_repository(folder: Path, count: int) -> list[str]:
    """A repository of so many files with two commits; their names."""
    folder.mkdir(parents=True)
    git("init", "--quiet", "--bare", "--initial-branch=main", ".", folder=folder)
    command = ["git", "fast-import", "--quiet"]
    with subprocess.Popen(command, cwd=folder, env=GIT, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        for part in stream(count):
            process.stdin.write(part)
        process.stdin.close()
        if process.wait():
            raise BenchmarkError("git fast-import failed")
    return git("rev-list", "--reverse", "main", folder=folder).split()


@dataclass
class Place:
    """A server's files with one release, which is brought forward and back again."""

    count: int
    folder: Path
    paths: ServicePaths
    mirror: Mirror
    commits: list[str]
    at: int = 0

    @classmethod
    def make(cls, folder: Path, count: int) -> Place:
        """Make the repository, the mirror, and the first release, afresh."""
        commits = make_repository(folder / "remote.git", count)
        paths = ServicePaths.at(str(folder / "srv"), "shop")
        for directory in (paths.releases, paths.state):
            directory.mkdir(parents=True)
        place = cls(count, folder, paths, Mirror(paths), commits)
        place.mirror.fetch(str(folder / "remote.git"), "main", commits[1])
        releases.make(paths, place.mirror, commits[0], guard=lambda: None)
        return place

    def step(self) -> float:
        """Make the other commit's release out of the one that is there; the seconds it took."""
        old, new = self.commits[self.at], self.commits[1 - self.at]
        began = time.perf_counter()
        made = releases.make(self.paths, self.mirror, new, guard=lambda: None, recycle=[old])
        seconds = time.perf_counter() - began
        if (made.tree, made.changed) != ("moved", CHANGED):
            raise BenchmarkError(f"the tree was made {made.tree}, with {made.changed} changes: {made.note}")
        self.at = 1 - self.at
        return seconds

    def differences(self) -> int:
        """How many files or folders are not as in a fresh checkout by git alone."""
        commit = self.commits[self.at]
        fresh = self.folder / f"fresh-{self.at}"
        git("clone", "--quiet", "--shared", "--no-checkout", "remote.git", fresh.name, folder=self.folder)
        git("checkout", "--quiet", "--detach", commit, folder=fresh)
        wanted, found = listing(fresh), listing(self.paths.release(commit))
        if len(wanted) < self.count:
            raise BenchmarkError(f"the fresh checkout has only {len(wanted)} entries")
        return sum(1 for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))


def listing(top: Path) -> Mapping[str, tuple[int, bytes]]:
    """Everything in a tree, but for git's own folder: its mode and its bytes (a link's are its target)."""
    found: dict[str, tuple[int, bytes]] = {}
    for root, directories, files in os.walk(top):
        base = Path(root)
        if base == top and ".git" in directories:
            directories.remove(".git")
        for name in (*directories, *files):
            path = base / name
            mode = path.lstat().st_mode
            content = b""
            if stat.S_ISLNK(mode):
                content = os.fsencode(path.readlink())
            elif stat.S_ISREG(mode):
                content = path.read_bytes()
            found[str(path.relative_to(top))] = (mode, content)
    return found


def run(options: Options) -> Report:
    """Forward and back in both repositories in turn, then hold both trees against fresh checkouts."""
    pairs = options.pairs(PAIRS, QUICK_PAIRS)
    samples: list[Figures] = []
    with scratch("tree") as folder:
        say(f"tree: making repositories of {SMALL} and {LARGE} files")
        places = [Place.make(folder / str(count), count) for count in (SMALL, LARGE)]
        # What making them left to be written must not be waited for in what is measured.
        os.sync()
        say(f"tree: {pairs} pairs")
        for number in range(-WARM_UP, pairs):
            # Each goes first as often as the other does.
            for place in places if number % 2 else reversed(places):
                seconds = place.step()
                if number >= 0:
                    samples.append({"pair": number, "way": f"{place.count} files", "seconds": round(seconds, 6)})
        say("tree: comparing with fresh checkouts")
        # Each tree has been forward and back many times by now: whatever a step leaves behind is there to be found.
        wrong = sum(place.differences() for place in places)
    return report_of(samples, wrong, options.quick)


def report_of(samples: Sequence[Figures], wrong: int, quick: bool) -> Report:
    """The promises, from the measured times and the comparison."""
    small, large = f"{SMALL} files", f"{LARGE} files"
    found = ratios(of_way(samples, large, "seconds"), of_way(samples, small, "seconds"))
    title = f"tree step, {CHANGED} changes in {LARGE} files against in {SMALL}"
    return Report(
        name="tree",
        title="The tree step",
        promises=[
            Promise(title, median(found), LIMIT, "times", len(found)),
            Promise("entries that differ from a fresh checkout", wrong, 0, "entries", 2, "exactly"),
        ],
        figures=[{"repository": way, "seconds": median(of_way(samples, way, "seconds"))} for way in (small, large)],
        samples=samples,
        machine=machine_facts(),
        quick=quick,
    )
