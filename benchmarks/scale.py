"""What a whole code deploy costs against the size of the repository, its history, the releases kept, and the change.

Two services of the same application take turns, a small and a large one, and each pair gives one ratio; the commands
are cold and do not soak, so that nothing hides behind waiting. What grows by right (the change itself, the
application's import) is told of and not promised.
"""

from __future__ import annotations

import contextlib
import secrets
import subprocess
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
from support.engine import Engine, ensure
from support.repo import ENVIRONMENT, Repository, git
from support.site import Site

LIMIT = 1.3
PAIRS, QUICK_PAIRS = 9, 2
WARM_UP = 3
WORKER = 4
SMALL_FILES, FILES, SHORT_HISTORY, HISTORY, FEW_KEPT, KEPT = 500, 50_000, 10, 20_000, 2, 50
CHANGES = (1, 100, 1000)
IMPORTS = (0.1, 0.5, 2.0)
CHANGED_FILES = 2000


@dataclass(frozen=True)
class Size:
    """How large a service is."""

    name: str
    files: int = SMALL_FILES
    commits: int = SHORT_HISTORY
    kept: int = FEW_KEPT


BASE = Size("small")
LARGE = (
    Size(f"{FILES} files", files=FILES),
    Size(f"{HISTORY} commits", commits=HISTORY),
    Size(f"{KEPT} releases kept", kept=KEPT),
)


def lengthen(repository: Repository, commits: int) -> None:
    """A history of so many commits more, each with one changed file."""
    lines = []
    for number in range(commits):
        text = f"N = {number}\n"
        lines.append(
            "commit refs/heads/main\ncommitter Ada <ada@example.org> 1700000000 +0000\ndata 1\nx\n"
            + ("from refs/heads/main^0\n" if number == 0 else "")
            + f"M 100644 inline bulk/history{number % 50}.py\ndata {len(text)}\n{text}\n"
        )
    done = subprocess.run(
        ["git", "-C", str(repository.tree), "fast-import", "--quiet"],
        input="".join(lines).encode(), env={"PATH": "/usr/bin:/bin", **ENVIRONMENT}, capture_output=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise BenchmarkError(f"git fast-import: {done.stderr.decode()[-500:]}")
    git(repository.tree, "reset", "--quiet", "--hard", "main")
    repository.push()


@contextlib.contextmanager
def service(engine: Engine, folder: Path, size: Size) -> Iterator[Site]:
    """A service of that size, deployed as often as it keeps releases, and some more."""
    say(f"scale: {size.name}")
    bulk = {f"bulk/d{number // 200}/f{number}.py": f"N = {number}\n" for number in range(size.files)}
    site = Site(engine, folder / size.name.replace(" ", "-"), files=bulk, settings={"soak": 0, "keep": size.kept})
    try:
        lengthen(site.repository, size.commits)
        for number in range(max(WARM_UP, size.kept + 1 if size.kept > FEW_KEPT else 0)):
            site.change(f"w{number}")
            site.run("deploy", expect=0)
        yield site
    finally:
        site.close()


def deploy(site: Site, version: str, *, files: Mapping[str, str] | None = None, import_seconds: float = 0.0) -> float:
    """One commit and its deploy; the seconds of the command."""
    site.change(version, files, import_seconds=import_seconds)
    return site.run("deploy", expect=0).seconds


def run(options: Options) -> Report:
    """Each large service in turn with the small one; then changes and imports of several sizes on one."""
    samples: list[Figures] = []
    engine = Engine(prefix=f"t{secrets.token_hex(3)}h", worker=WORKER, base_image=ensure())
    pairs = options.pairs(PAIRS, QUICK_PAIRS)
    with scratch("scale") as folder:
        try:
            with service(engine, folder, BASE) as small:
                for size in LARGE:
                    with service(engine, folder, size) as large:
                        for number in range(pairs):
                            for way, site in ((BASE.name, small), (size.name, large)):
                                taken = deploy(site, f"{size.name[:3]}{number}")
                                samples.append({"of": size.name, "way": way, "seconds": round(taken, 4)})
                for count in CHANGES:
                    for number in range(pairs):
                        files = {f"bulk/c{one // 200}/f{one}.py": f"N = {number}\n" for one in range(count)}
                        taken = deploy(small, f"c{count}-{number}", files=files)
                        samples.append({"of": "change", "way": f"{count} files changed", "seconds": round(taken, 4)})
                for seconds in IMPORTS:
                    for number in range(pairs):
                        taken = deploy(small, f"i{seconds}-{number}", import_seconds=seconds)
                        samples.append({"of": "import", "way": f"import {seconds:g} s", "seconds": round(taken, 4)})
        finally:
            engine.clean()
    return report_of(samples, options.quick)


def report_of(samples: Sequence[Figures], quick: bool) -> Report:
    """Flat where it is promised, and the figures."""
    promises = []
    for size in LARGE:
        mine = [one for one in samples if one["of"] == size.name]
        found = ratios(of_way(mine, size.name, "seconds"), of_way(mine, BASE.name, "seconds"))
        name = f"a code deploy with {size.name}, against {_small(size)}"
        promises.append(Promise(name, median(found), LIMIT, "times", len(found)))
    ways = list(dict.fromkeys((str(one["of"]), str(one["way"])) for one in samples))
    return Report(
        name="scale",
        title="A code deploy against the size of things",
        promises=promises,
        figures=[
            {
                "beside": "" if of in ("change", "import") else of,
                "service": way,
                "seconds": median(of_way([one for one in samples if one["of"] == of], way, "seconds")),
            }
            for of, way in ways
        ],
        samples=samples,
        machine=machine_facts(),
        quick=quick,
    )


def _small(size: Size) -> str:
    if size.files != BASE.files:
        return f"{BASE.files}"
    return f"{BASE.commits}" if size.commits != BASE.commits else f"{BASE.kept}"
