"""A command's time as a tree of spans, and what is known of the command beside it.

``from_json`` reads what a server or a file says and trusts none of it: it answers with ``None`` for what is no trace.
Times are seconds since the command's process was started.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

from lightship.model import Kind, Outcome
from lightship_agent.records import dataclass, field, replace

__all__ = ["LONGEST", "MOST_SERVERS", "MOST_SPANS", "Grade", "Span", "State", "Trace", "in_order", "is_id", "sane"]

#: What a span is: the whole command, what it does for all servers, a phase or an errand of one server, a step in it.
Grade = Literal["command", "stage", "phase", "step"]
#: ``cut``: nobody told how it ended.
State = Literal["done", "failed", "cut"]

#: More seconds than that no command takes.
LONGEST = 1e9
#: Of more servers than that only the telling ones are kept (``Trace.reduced``).
MOST_SERVERS = 100
MOST_SPANS = 20_000
#: The last moment of the year 9999, in seconds since 1970.
_LATEST = 253402300799.0
_DEEPEST = 8
_NAME = 80
_ID = re.compile(r"[0-9a-f]{32}")
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_GRADES, _STATES = get_args(Grade), get_args(State)
_KINDS, _OUTCOMES = get_args(Kind), get_args(Outcome)


def in_order(spans: Iterable[Span]) -> tuple[Span, ...]:
    """By their start."""
    return tuple(sorted(spans, key=lambda one: (one.start, one.end)))


def is_id(text: object) -> bool:
    """Whether it can be the id of a trace."""
    return isinstance(text, str) and _ID.fullmatch(text) is not None


def sane(seconds: object, longest: float = LONGEST) -> float:
    """A number of seconds, whatever was told: what cannot be one is none."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        return 0.0
    # Comparing first: a whole number may be too large for a float. NaN compares as false.
    return float(seconds) if 0 <= seconds <= longest else 0.0


@dataclass(frozen=True, slots=True)
class Span:
    """Something that took time; ``server`` is empty when it was done for all of them."""

    name: str
    start: float
    end: float
    server: str = ""
    grade: Grade = "step"
    state: State = "done"
    children: tuple[Span, ...] = ()

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.start

    def walk(self) -> Iterator[Span]:
        """The span, and all in it."""
        waiting = [self]
        while waiting:
            span = waiting.pop()
            yield span
            waiting += reversed(span.children)

    def within(self, start: float, end: float) -> Span:
        """The part of it that lies between these times."""
        if start <= self.start and self.end <= end:
            return self
        low, high = min(max(self.start, start), end), max(min(self.end, end), start)
        return replace(self, start=low, end=high, children=tuple(one.within(start, end) for one in self.children))

    def as_dict(self) -> dict[str, Any]:
        """As it is kept; what is as usual is left out."""
        found: dict[str, Any] = {"name": self.name, "start": round(self.start, 4), "end": round(self.end, 4)}
        if self.server:
            found["server"] = self.server
        if self.grade != "step":
            found["grade"] = self.grade
        if self.state != "done":
            found["state"] = self.state
        if self.children:
            found["spans"] = [one.as_dict() for one in self.children]
        return found


@dataclass(frozen=True, slots=True)
class Trace:
    """One command with its spans. ``began`` is the time of day in seconds since 1970."""

    id: str
    command: str
    service: str
    began: float
    who: str
    root: Span
    outcome: str = ""
    """What became of the rollout; empty when it did not come to one."""
    kind: str = ""
    ref: str = ""
    commit: str | None = None
    previous: str | None = None
    error: str = ""
    """The code of the error that ended it, if one did."""
    outcomes: Mapping[str, str] = field(default_factory=dict)
    """What became of each server of which something is kept."""
    servers: int = 0
    """So many servers it was for, whether or not something of each is kept."""

    @property
    def seconds(self) -> float:
        """How long the command took."""
        return self.root.seconds

    def by_server(self) -> Callable[[str], Trace]:
        """Gives what concerns one server: its own spans, and those that are of all."""
        own: dict[str, list[Span]] = defaultdict(list)
        common: list[tuple[Span, dict[str, list[Span]]]] = []
        for span in self.root.children:
            if span.server:
                own[span.server].append(span)
                continue
            inner: dict[str, list[Span]] = defaultdict(list)
            for one in span.children:
                inner[one.server].append(one)
            common.append((span, inner))

        def of(server: str) -> Trace:
            shared = [
                replace(span, children=in_order([*inner.get("", ()), *inner.get(server, ())])) for span, inner in common
            ]
            root = replace(self.root, children=in_order([*shared, *own.get(server, ())]))
            return replace(self, root=root, outcomes={server: self.outcomes.get(server, "")})

        return of

    def reduced(self, most: int = MOST_SERVERS) -> Trace:
        """Of very many servers only some: those that a phase waited for longest, and those that went wrong."""
        names = {span.server for span in self.root.walk() if span.server}
        if len(names) <= most:
            return self
        kept = frozenset({"", *self._telling(most)})
        outcomes = {name: outcome for name, outcome in self.outcomes.items() if name in kept}
        return replace(self, root=_only(self.root, kept), outcomes=outcomes)

    def _telling(self, most: int) -> list[str]:
        """Servers in the order in which they are worth keeping: the last of each phase, the failed, the slowest."""
        spans = [span for span in self.root.walk() if span.server and span.grade in ("phase", "stage")]
        last: dict[str, Span] = {}
        total: dict[str, float] = {}
        for span in spans:
            known = last.get(span.name)
            last[span.name] = span if known is None or span.end > known.end else known
            total[span.server] = total.get(span.server, 0.0) + span.seconds
        failed = [span.server for span in spans if span.state != "done"]
        slowest = sorted(total, key=lambda name: -total[name])
        return list(dict.fromkeys([*(span.server for span in last.values()), *failed, *slowest]))[:most]

    def as_dict(self) -> dict[str, Any]:
        """As it is kept, here and on servers."""
        return {
            "id": self.id,
            "command": self.command,
            "service": self.service,
            "began": round(self.began, 3),
            "who": self.who,
            "outcome": self.outcome,
            "kind": self.kind,
            "ref": self.ref,
            "commit": self.commit,
            "previous": self.previous,
            "error": self.error,
            "outcomes": dict(self.outcomes),
            "servers": self.servers,
            "root": self.root.as_dict(),
        }

    @classmethod
    def from_json(cls, data: object) -> Trace | None:
        """What was kept; ``None`` for anything that is no trace."""
        if not isinstance(data, Mapping) or not is_id(data.get("id")):
            return None
        root = _span(data.get("root"), [MOST_SPANS], 0)
        began = sane(data.get("began"), _LATEST)
        if root is None or not began:
            return None
        outcomes, servers = data.get("outcomes"), data.get("servers")
        return cls(
            id=str(data["id"]),
            command=_text(data, "command"),
            service=_text(data, "service"),
            began=began,
            who=_text(data, "who", 200),
            root=root,
            outcome=_one_of(data, "outcome", _OUTCOMES),
            kind=_one_of(data, "kind", _KINDS),
            ref=_text(data, "ref", 250),
            commit=_commit(data, "commit"),
            previous=_commit(data, "previous"),
            error=_text(data, "error"),
            outcomes={
                str(name)[:_NAME]: outcome
                for name, outcome in (outcomes.items() if isinstance(outcomes, Mapping) else ())
                if outcome in _OUTCOMES
            },
            servers=int(sane(servers)),
        )


def _only(span: Span, servers: frozenset[str]) -> Span:
    """The span with only those in it that are of these servers."""
    kept = tuple(_only(one, servers) for one in span.children if one.server in servers)
    return span if kept == span.children else replace(span, children=kept)


def _span(data: object, left: list[int], depth: int) -> Span | None:
    """A span and what is in it, as long as there is room for it; what lies outside of it is cut off."""
    left[0] -= 1
    if not isinstance(data, Mapping) or left[0] < 0 or depth > _DEEPEST:
        return None
    start, end = sane(data.get("start")), sane(data.get("end"))
    end = max(start, end)
    inner = data.get("spans")
    found = [_span(one, left, depth + 1) for one in (inner if isinstance(inner, list) else ())]
    return Span(
        name=_text(data, "name"),
        start=start,
        end=end,
        server=_text(data, "server", 200),
        grade=_one_of(data, "grade", _GRADES) or "step",  # type: ignore[arg-type]
        state=_one_of(data, "state", _STATES) or "done",  # type: ignore[arg-type]
        children=tuple(one.within(start, end) for one in found if one is not None),
    )


def _text(data: Mapping[str, Any], key: str, longest: int = _NAME) -> str:
    value = data.get(key)
    return value[:longest] if isinstance(value, str) else ""


def _one_of(data: Mapping[str, Any], key: str, known: Sequence[str]) -> str:
    value = data.get(key)
    return value if isinstance(value, str) and value in known else ""


def _commit(data: Mapping[str, Any], key: str) -> str | None:
    value = data.get(key)
    return value if isinstance(value, str) and _COMMIT.fullmatch(value) else None
