"""The traces of a service's deploys and rollbacks: those that its servers keep, and those that are kept here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from lightship.errors import LightshipError, UsageError
from lightship.operations.fleet import at_most
from lightship.result import Timing
from lightship.rollout import Session
from lightship.trace.spans import Span, Trace, in_order
from lightship.trace.store import Store
from lightship.trace.waits import critical, timing, what_of
from lightship_agent.records import dataclass, replace

if TYPE_CHECKING:
    from lightship.operations.context import Context

__all__ = [
    "SHOWN",
    "Found",
    "Listed",
    "Stretch",
    "TraceList",
    "TraceResult",
    "choose",
    "explained",
    "listed",
    "merged",
    "store_of",
    "traces",
]

#: So many are listed.
SHOWN = 50
_SECONDS = 30.0
_MOST_OF_ONE = 100


@dataclass(frozen=True, slots=True)
class Found:
    """The traces of a service, newest first, and which servers could not be asked for theirs."""

    service: str
    traces: tuple[Trace, ...]
    unasked: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Stretch:
    """A stretch of a command's time, and what it was waiting for then: one of ``trace.waits.WAITS``."""

    start: float
    end: float
    what: str
    server: str
    span: str


@dataclass(frozen=True, slots=True)
class TraceResult:
    """One trace, and what is to be seen in it."""

    service: str
    number: int
    trace: Trace
    timing: Timing
    critical: tuple[Stretch, ...]
    unasked: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Listed:
    """One trace in the list of them."""

    number: int
    id: str
    command: str
    began: float
    seconds: float
    kind: str
    commit: str | None
    outcome: str
    error: str
    who: str
    servers: int


@dataclass(frozen=True, slots=True)
class TraceList:
    """All traces of a service, newest first."""

    service: str
    traces: tuple[Listed, ...]
    unasked: Mapping[str, str]


def explained(found: Found, wanted: str | None) -> TraceResult:
    """The trace that is meant, with what the command waited for."""
    number, trace = choose(found, wanted)
    stretches = tuple(
        Stretch(part.start, part.end, what_of(part), part.span.server, part.span.name) for part in critical(trace.root)
    )
    return TraceResult(found.service, number, trace, timing(trace), stretches, found.unasked)


def listed(found: Found) -> TraceList:
    """What there is."""
    lines = tuple(
        Listed(
            number=number,
            id=one.id,
            command=one.command,
            began=one.began,
            seconds=one.seconds,
            kind=one.kind,
            commit=one.commit,
            outcome=one.outcome,
            error=one.error,
            who=one.who,
            servers=one.servers,
        )
        for number, one in enumerate(found.traces, 1)
    )
    return TraceList(found.service, lines, found.unasked)


def store_of(context: Context) -> Store:
    """Where the traces of this service are kept here."""
    return Store.of(context.service.name, context.config.path, context.service.stage)


async def traces(context: Context) -> Found:
    """Ask every server for what it keeps, and put it together with what is kept here."""
    asked = await at_most(lambda server: _of_server(context, server), context.names)
    by_server: dict[str, Sequence[Trace]] = {}
    unasked: dict[str, str] = {}
    for name, one in zip(context.names, asked, strict=True):
        if isinstance(one, LightshipError):
            unasked[name] = one.message
        else:
            by_server[name] = one
    found = merged(store_of(context).traces(), by_server)
    return Found(context.service.name, tuple(found[:SHOWN]), unasked)


async def _of_server(context: Context, server: str) -> Sequence[Trace] | LightshipError:
    session = Session(context.connect(server), context.hello(why="trace", lock=False), context.emit)
    try:
        await session.open()
        answer = await session.call("traces", timeout=_SECONDS)
        await session.bye()
    except LightshipError as error:
        await session.close()
        return error
    kept = answer.get("traces") if isinstance(answer, Mapping) else None
    read = [Trace.from_json(one) for one in (kept if isinstance(kept, list) else [])[:_MOST_OF_ONE]]
    return [one for one in read if one is not None]


def merged(here: Iterable[Trace], by_server: Mapping[str, Sequence[Trace]]) -> list[Trace]:
    """One trace for each command, newest first.

    What is kept here is believed first: it was seen here, and it has the end of the conversations too. Of what a server
    keeps only that counts which is of itself, and what is of all where nobody else has told of it.
    """
    found: dict[str, Trace] = {one.id: one for one in here}
    extra: dict[str, list[Span]] = {}
    known = {identity: {span.server for span in one.root.walk()} for identity, one in found.items()}
    outcomes: dict[str, dict[str, str]] = {identity: dict(one.outcomes) for identity, one in found.items()}
    for server, told in by_server.items():
        for one in told:
            own = _of(one.root, frozenset({"", server}))
            if one.id not in found:
                found[one.id] = replace(one, root=own, outcomes={})
                known[one.id], outcomes[one.id] = {server}, {}
            elif server not in known[one.id]:
                extra.setdefault(one.id, []).extend(_only_of(own, server))
            if server in one.outcomes:
                outcomes[one.id].setdefault(server, one.outcomes[server])
    whole = [
        replace(one, outcomes=outcomes[one.id], root=_with(one.root, extra.get(one.id, ()))) for one in found.values()
    ]
    return sorted(whole, key=lambda one: -one.began)


def _of(span: Span, servers: frozenset[str]) -> Span:
    return replace(span, children=tuple(_of(one, servers) for one in span.children if one.server in servers))


def _only_of(root: Span, server: str) -> list[Span]:
    """The spans of one server, taken out of those that are of all."""
    found: list[Span] = []
    for span in root.children:
        found += [span] if span.server == server else [one for one in span.children if one.server == server]
    return found


def _with(root: Span, spans: Sequence[Span]) -> Span:
    """The command with further spans of servers in it: what lies in something that was done for all, there."""
    if not spans:
        return root
    inside: dict[int, list[Span]] = {}
    beside: list[Span] = []
    common = [(index, one) for index, one in enumerate(root.children) if not one.server and one.children]
    for span in spans:
        span = span.within(root.start, root.end)  # noqa: PLW2901
        place = next((index for index, one in common if one.start <= span.start and span.end <= one.end), None)
        (beside if place is None else inside.setdefault(place, [])).append(span)
    children = [
        replace(one, children=in_order([*one.children, *inside[index]])) if index in inside else one
        for index, one in enumerate(root.children)
    ]
    return replace(root, children=in_order([*children, *beside]))


def choose(found: Found, wanted: str | None) -> tuple[int, Trace]:
    """The trace that is meant: the last one, the one of that number in the list, of that id, or of that commit."""
    if not found.traces:
        unasked = f"; {', '.join(list(found.unasked)[:5])} could not be asked" if found.unasked else ""
        raise UsageError(
            f"nothing is known of a deploy of {found.service}{unasked}",
            hint="`lightship deploy` takes note of where its time goes",
            code="no-trace",
        )
    numbered = list(enumerate(found.traces, 1))
    if wanted is None:
        return numbered[0]
    if not re.fullmatch(r"[0-9a-f]{1,64}", wanted):
        raise UsageError(
            f"{wanted[:100]!r} is no number, no id of a rollout and no commit",
            hint="`lightship trace --list` lists what there is",
            code="no-trace",
        )
    if wanted.isdecimal() and 0 < int(wanted[:10]) <= len(numbered) and len(wanted) <= len(str(SHOWN)):
        return numbered[int(wanted) - 1]
    # Of several rollouts of one commit the last one is meant.
    for one in numbered:
        if one[1].id.startswith(wanted) or (one[1].commit or "").startswith(wanted):
            return one
    raise UsageError(
        f"there is no trace of a rollout {wanted}",
        hint="`lightship trace --list` lists what there is",
        code="no-trace",
    )
