"""Where the servers of one service differ from each other, and from what was deployed. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from lightship.model import short
from lightship.result import Drift, ServerStatus

__all__ = ["drift", "expected_release"]

_V = TypeVar("_V", bound=Hashable)
_DIGITS = 12


def expected_release(servers: Sequence[ServerStatus]) -> str | None:
    """What the fleet is to run: what most servers had deployed last; of equally many the latest deployed."""
    count = Counter(one.expected for one in servers if one.expected)
    return max(count, key=lambda commit: (count[commit], _latest(servers, commit)), default=None)


def _latest(servers: Sequence[ServerStatus], commit: str) -> float:
    times = [
        entry.started
        for one in servers
        if one.facts is not None
        for entry in one.facts.history
        if entry.commit == commit and entry.outcome == "done"
    ]
    return max(times, default=0.0)


def drift(servers: Sequence[ServerStatus]) -> tuple[Drift, ...]:
    """What differs where, from what most servers have. One server alone differs from what was deployed there."""
    there = [one for one in servers if one.facts is not None]
    expected = expected_release(there)
    found: list[Drift] = []
    for one in there:
        if expected is None:
            continue
        if one.on_disk != expected:
            found.append(Drift(one.server, "on disk", short(one.on_disk), short(expected)))
        loaded = [commit for commit in one.loaded if commit != expected]
        if loaded or not one.loaded:
            what = " and ".join(short(commit) for commit in one.loaded) or "nothing"
            found.append(Drift(one.server, "loaded", what, short(expected)))
        elif one.facts is not None:
            found += [
                Drift(one.server, f"role {name}", role.problem, short(expected))
                for name, role in one.facts.roles.items()
                if role.problem
            ]
    found += _others(there, "image", lambda one: one.image, str)
    found += _others(there, "environment", lambda one: one.environment, lambda value: value[:_DIGITS])
    places = {one.server: number for number, one in enumerate(servers)}
    return tuple(sorted(found, key=lambda one: places[one.server]))


def _others(
    servers: Sequence[ServerStatus], what: str, read: Callable[[ServerStatus], _V], show: Callable[[_V], str]
) -> list[Drift]:
    """The servers on which something is not as on most."""
    values = {one.server: read(one) for one in servers if one.on_disk is not None}
    if len(set(values.values())) < 2:  # noqa: PLR2004 - two different ones make a difference
        return []
    usual = Counter(values.values()).most_common(1)[0][0]
    return [
        Drift(server, what, show(value) or "none", show(usual) or "none")
        for server, value in values.items()
        if value != usual
    ]
