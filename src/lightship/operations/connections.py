"""``connections``: which SSH connections are kept open for the next command, and the end of them."""

from __future__ import annotations

from lightship.errors import LightshipError
from lightship.pool import client
from lightship_agent.records import dataclass

__all__ = ["Closed", "Connections", "Kept", "Problem", "close", "connections"]


@dataclass(frozen=True, slots=True)
class Kept:
    """A connection that is kept. ``since`` is when it was made, in seconds of the epoch."""

    server: str
    user: str
    host: str
    since: float
    seconds_left: float
    conversations: int
    in_use: bool


@dataclass(frozen=True, slots=True)
class Problem:
    """A server to which no connection could be kept, and why."""

    server: str
    message: str


@dataclass(frozen=True, slots=True)
class Connections:
    """What is kept, by the servers' names, and the process on this machine that keeps it."""

    connections: tuple[Kept, ...] = ()
    problems: tuple[Problem, ...] = ()
    process: int | None = None


@dataclass(frozen=True, slots=True)
class Closed:
    """How many were closed at once. Those ``in_use`` are closed when the command that uses them has ended."""

    closed: int = 0
    in_use: int = 0


def connections() -> Connections:
    """What is kept for this user, with the SSH configuration of now."""
    found = client.ask({"op": "list"})
    if found is None:
        return Connections()
    try:
        kept = tuple(Kept(**one) for one in found["connections"])
        problems = tuple(Problem(server, text) for server, text in sorted(found["problems"].items()))
    except (KeyError, TypeError, AttributeError) as error:
        raise LightshipError(f"the pool of connections answers something else: {error}", code="pool") from None
    return Connections(tuple(sorted(kept, key=lambda one: one.server)), problems, found.get("process"))


def close() -> Closed:
    """Close all that are not in use, and let nobody have the others afterwards."""
    found = client.ask({"op": "close"}) or {}
    in_use = int(found.get("in_use", 0))
    return Closed(int(found.get("closed", 0)) - in_use, in_use)
