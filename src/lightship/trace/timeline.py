"""From what was noted of a command's events to its spans. Pure: the times are in the notes.

Of a step the server says how long it took, and when it ended is when that was heard of: so it is placed backwards from
there, and never before the phase that it lies in. What was begun and never heard of again ends with its phase.
"""

from __future__ import annotations

from collections.abc import Iterable

from lightship.trace.recorder import Mark
from lightship.trace.spans import Grade, Span, State, in_order, sane

__all__ = ["CONTAINERS", "spans_of"]

#: Steps that are done for all servers, and whose parts are told of before they end.
CONTAINERS = frozenset({"connect"})
#: What is told of in the wrong order by less than that was meant to be in order.
_CLOSE = 0.002
_NAME = 80
#: A millionth of a second is all that anybody wants to know of.
_DIGITS = 6
#: So many spans of one server are kept: more than any rollout has, however many checks there are.
_MOST = 1000


class _Phase:
    """A phase that a server is in."""

    def __init__(self, name: str, start: float) -> None:
        self.name = name
        self.start = start
        self.spans: list[Span] = []


class _Server:
    """One server's place in the timeline (and one for what concerns all)."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.phase: _Phase | None = None
        self.begun: dict[str, float] = {}
        self.loose: list[Span] = []
        self.count = 0


class _Builder:
    def __init__(self, began: float, ended: float) -> None:
        self._began = began
        self._ended = ended
        self._servers: dict[str, _Server] = {}
        self._told: list[Span] = []

    def take(self, mark: Mark) -> None:
        server = self._servers.setdefault(mark.server, _Server(mark.server))
        at = round(min(max(sane(mark.at), self._began), self._ended), _DIGITS)
        name = mark.name[:_NAME]
        server.count += 1
        if mark.what == "phase":
            self._close(server, at, "cut")
            server.phase = _Phase(name, at)
        elif mark.what in ("phase done", "phase failed"):
            self._close(server, at, "done" if mark.what == "phase done" else "failed")
        elif server.count > _MOST:
            return
        elif mark.what == "step":
            server.begun[name] = at
        else:
            self._over(server, name, at, mark)

    def _over(self, server: _Server, name: str, at: float, mark: Mark) -> None:
        """A step or an errand has ended."""
        floor = server.phase.start if server.phase is not None else self._began
        begun = server.begun.pop(name, at)
        start = max(floor, round(at - sane(mark.seconds), _DIGITS) if sane(mark.seconds) else begun)
        state: State = "failed" if mark.what == "step failed" else "done"
        imported = max(start, round(at - sane(mark.inner), _DIGITS))
        children: tuple[Span, ...] = (Span("import", imported, at, server.name),) if imported < at else ()
        everybody = name in CONTAINERS and not server.name
        grade: Grade = "stage" if everybody or mark.what == "took" else "step"
        if grade == "stage":
            children = self._adopted(server, start, at, everybody=everybody)
        span = Span(name, start, at, server.name, grade, state, children)
        if server.phase is not None and mark.what != "took":
            server.phase.spans.append(span)
        else:
            server.loose.append(span)

    def _adopted(self, server: _Server, start: float, end: float, *, everybody: bool) -> tuple[Span, ...]:
        """What was told of meanwhile and lies in it: of this server, or of every one."""
        owners = [*self._servers.values()] if everybody else [server]
        found: list[Span] = []
        for owner in owners:
            found += [one.within(start, end) for one in owner.loose if one.start >= start - _CLOSE]
            owner.loose = [one for one in owner.loose if one.start < start - _CLOSE]
        return in_order(found)

    def _close(self, server: _Server, at: float, state: State) -> None:
        phase, server.phase = server.phase, None
        open_steps, server.begun = server.begun, {}
        floor = phase.start if phase is not None else self._began
        cut = [Span(name, max(floor, start), at, server.name, state="cut") for name, start in open_steps.items()]
        if phase is None:
            server.loose += cut
        else:
            children = in_order([*phase.spans, *cut])
            self._told.append(Span(phase.name, phase.start, at, server.name, "phase", state, children))

    def spans(self) -> tuple[Span, ...]:
        for server in self._servers.values():
            self._close(server, self._ended, "cut")
            self._told += server.loose
        return in_order(self._told)


def spans_of(marks: Iterable[Mark], began: float, ended: float, name: str, *, failed: bool = False) -> Span:
    """The whole command as a span; times are counted from ``began``. ``marks`` may be in any order."""
    total = round(sane(ended - began), _DIGITS)
    builder = _Builder(0.0, total)
    for mark in sorted((mark._replace(at=sane(mark.at - began)) for mark in marks), key=lambda mark: mark.at):
        builder.take(mark)
    return Span(name, 0.0, total, "", "command", "failed" if failed else "done", builder.spans())
