"""What the tests of faults hold a service to: what may not change while something goes wrong, and what works after."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator

from support.load import Load
from support.site import Said, Site

_numbers = itertools.count(1)


def until(look: Callable[[], object], seconds: float = 30.0, what: str = "") -> None:
    """Wait until it is so; fails when it never is."""
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what or look}"
        time.sleep(0.05)


@contextlib.contextmanager
def unchanged(site: Site, *, rate: float = 100, seconds: float = 120) -> Iterator[Load]:
    """In this block every request is answered, by the release that is live now, and ``current`` never moves."""
    before, containers = site.current, site.containers()
    assert before is not None
    with site.observer(seconds) as observer, site.load(rate, seconds) as load:
        assert load.wait_count(10)
        yield load
        assert load.wait_count(20)
    seen, report = observer.seen, load.report
    assert not report.failed, report.errors
    assert report.releases == [before], report.releases
    assert (seen.distinct, seen.missing_count, seen.incomplete) == ([before], 0, ())
    assert site.current == before
    assert site.containers() == containers


def refused(site: Site, said: Said, code: str, status: int = 3) -> None:
    """The command ended as it should, said why in one code, and offers a message and a hint."""
    assert (said.status, said.error.get("code")) == (status, code), (said.status, said.stdout[-3000:], said.stderr)
    assert said.error["message"]


def state_of(site: Site, commit: str) -> str | None:
    """How a release is marked, or none when the server does not have it."""
    listed = site.run("releases", "--json", expect=0).result["servers"][0]["releases"]
    return next((str(one["state"]) for one in listed if one["commit"] == commit), None)


def settled(site: Site) -> str:
    """What a test begins with: the commit that the one before it left live, or else a change that works.

    That the next deploy works is what each test ends with. To begin with another one would prove it twice.
    """
    current = site.current
    if current is not None and current == site.repository.head and site.answers() and site.get()[2] == current:
        return current
    return works(site)


def works(site: Site, *arguments: str) -> str:
    """The next deploy, of a change that is fine, goes through without a failed request; its commit."""
    version = f"fine{next(_numbers)}"
    commit = site.change(version, files=site.code(version))
    with site.load(100) as load:
        assert load.wait_count(5)
        site.deploy(*arguments)
        assert load.wait_for(commit)
    assert not load.report.failed, load.report.errors
    assert site.get()[1:] == (version, commit)
    assert site.run("status", "--json").status == 0
    return commit
