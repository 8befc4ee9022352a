"""What a rollout has begun and done, so that the next conversation can finish or undo what a killed one left.

``state/journal`` holds the last rollout, one JSON object a line. ``doing`` is on the disk before the side effect
happens. ``done`` is written right after it, and reaches the disk with the next line: to lose it in a power cut means to
do the step once more, which each step must bear anyway, because a kill can fall between a step and its ``done``.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping

from lightship_agent import TYPE_CHECKING, failpoints, system
from lightship_agent.failpoints import fail_point
from lightship_agent.paths import ServicePaths
from lightship_agent.records import asdict, dataclass, field, fields

if TYPE_CHECKING:
    from typing import Any

__all__ = ["HISTORY_LIMIT", "LARGEST_TRACE", "TRACES_LIMIT", "Journal", "Past", "Pending", "Step"]

failpoints.register(
    journal__begin="a rollout is about to be written down",
    journal__begun="a rollout is written down",
    journal__doing="a step is about to be written down as begun",
    journal__done="a step is about to be written down as done",
    journal__end="a rollout is about to go to the history",
    journal__ended="a rollout is in the history, and about to be closed in the journal",
    trace__keep="what a rollout's time went for is about to be written down",
)

HISTORY_LIMIT = 200
"""So many rollouts the history keeps."""

TRACES_LIMIT = 20
"""Of so many rollouts it is kept where their time went."""

LARGEST_TRACE = 128 * 1024
"""No trace of one server has more bytes than that."""

_MAX = 64 * 1024 * 1024
_TRACE_NAME = re.compile(r"[0-9]{12}-[0-9a-f]{32}\.json", re.ASCII)


@dataclass(frozen=True)
class Step:
    """One side effect, with what is needed to undo or to finish it. ``result`` is there when it is ``done``."""

    step: str
    data: dict[str, Any]
    started: float
    done: bool = False
    result: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Pending:
    """A rollout that was begun and has not ended."""

    rollout: str
    kind: str
    commit: str
    previous: str | None
    who: str
    started: float
    data: dict[str, Any]
    steps: tuple[Step, ...]

    def last(self, step: str) -> Step | None:
        """The last step of this name, done or only begun."""
        return next((found for found in reversed(self.steps) if found.step == step), None)


@dataclass(frozen=True)
class Past:
    """A rollout that ended."""

    id: str
    kind: str
    commit: str
    previous: str | None
    outcome: str
    started: float
    seconds: float
    who: str = ""
    steps: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """As the history and the facts carry it."""
        return asdict(self)


class Journal:
    """The journal and the history of one service. Written only by the holder of the lock."""

    def __init__(self, paths: ServicePaths, clean: Callable[[Any], Any] = lambda data: data) -> None:
        """``clean`` takes out of a step's data what is not to be kept."""
        self._paths = paths
        self._clean = clean

    # --- the rollout under way

    def begin(
        self,
        rollout: str,
        *,
        kind: str,
        commit: str,
        previous: str | None,
        who: str = "",
        data: Mapping[str, Any] | None = None,
        began: float | None = None,
    ) -> None:
        """A rollout begins, or did so at ``began``. What an ended one left is dropped; a pending one is ended first."""
        if self.pending() is not None:
            raise RuntimeError("the last rollout has not ended")
        fail_point("journal.begin")
        entry: dict[str, Any] = {
            "phase": "begin",
            "rollout": rollout,
            "kind": kind,
            "commit": commit,
            "previous": previous,
        }
        entry.update(who=who, time=began or time.time(), data=dict(data or {}))
        system.atomic_write(self._paths.journal, _line(entry), 0o600)
        fail_point("journal.begun")

    def doing(self, step: str, data: Mapping[str, Any] | None = None) -> None:
        """A side effect is about to happen; this is on the disk before it does."""
        fail_point("journal.doing")
        entry = {"phase": "doing", "step": step, "time": time.time(), "data": self._clean(dict(data or {}))}
        self._append(entry, durable=True)

    def done(self, step: str, result: Mapping[str, Any] | None = None) -> None:
        """The side effect has happened."""
        fail_point("journal.done")
        self._append({"phase": "done", "step": step, "time": time.time(), "data": dict(result or {})}, durable=False)

    def end(self, outcome: str) -> Past | None:
        """The rollout is over: it goes to the history. Nothing happens when none is pending."""
        pending = self.pending()
        if pending is None:
            return None
        past = Past(
            id=pending.rollout,
            kind=pending.kind,
            commit=pending.commit,
            previous=pending.previous,
            outcome=outcome,
            started=pending.started,
            seconds=round(time.time() - pending.started, 3),
            who=pending.who,
            steps=tuple(step.step for step in pending.steps),
        )
        fail_point("journal.end")
        self._remember(past)
        fail_point("journal.ended")
        self._append({"phase": "end", "outcome": outcome, "time": time.time()}, durable=True)
        return past

    def pending(self) -> Pending | None:
        """The rollout that was begun and has not ended, with its steps."""
        entries = _entries(system.read_trusted(self._paths.journal, _MAX))
        if not entries or entries[0].get("phase") != "begin" or entries[-1].get("phase") == "end":
            return None
        first = entries[0]
        steps: list[Step] = []
        for entry in entries[1:]:
            if entry.get("phase") == "doing":
                steps.append(Step(str(entry.get("step")), entry.get("data") or {}, float(entry.get("time") or 0)))
            elif entry.get("phase") == "done":
                _close(steps, entry)
        return Pending(
            rollout=str(first.get("rollout")),
            kind=str(first.get("kind")),
            commit=str(first.get("commit")),
            previous=first.get("previous"),
            who=str(first.get("who") or ""),
            started=float(first.get("time") or 0),
            data=first.get("data") or {},
            steps=tuple(steps),
        )

    def _append(self, entry: Mapping[str, Any], *, durable: bool) -> None:
        line = _line(entry)
        # After a torn line a new one is begun, or the two would be one that nobody can read.
        if not _ends_whole(self._paths):
            line = b"\n" + line
        system.append(self._paths.journal, line, durable=durable)

    # --- the rollouts that ended

    def history(self, limit: int = 20) -> list[Past]:
        """The last rollouts, newest first. One that was written twice (a kill right after) comes once."""
        found: dict[str, Past] = {}
        for entry in _entries(system.read_trusted(self._paths.history, _MAX)):
            past = _past(entry)
            if past is not None:
                found.pop(past.id, None)
                found[past.id] = past
        return list(reversed(found.values()))[:limit]

    def _remember(self, past: Past) -> None:
        # Rewritten whole: it is short, and so it is never torn and never grows.
        kept = [old for old in self.history(HISTORY_LIMIT) if old.id != past.id][: HISTORY_LIMIT - 1]
        lines = [_line(old.as_dict()) for old in (*reversed(kept), past)]
        system.atomic_write(self._paths.history, b"".join(lines), 0o600)

    # --- where their time went

    def keep_trace(self, identity: str, fence: int, trace: Mapping[str, Any]) -> None:
        """Write down where a rollout's time went. The lock's number, which only grows, puts the files in their order.

        To lose one in a power cut does no harm, so nobody waits for the disk.
        """
        data = _line(trace)
        if len(data) > LARGEST_TRACE:
            return
        system.make_directory(self._paths.traces, 0o700)
        for name in self._trace_names()[TRACES_LIMIT - 1 :]:
            fail_point("trace.keep")
            os.unlink(self._paths.traces / name)
        fail_point("trace.keep")
        system.atomic_write(self._paths.traces / f"{fence:012d}-{identity}.json", data, 0o600, durable=False)

    def traces(self) -> list[dict[str, Any]]:
        """Where the time of the last rollouts went, newest first."""
        found = []
        for name in self._trace_names()[:TRACES_LIMIT]:
            found += _entries(system.read_trusted(self._paths.traces / name, LARGEST_TRACE))[:1]
        return found

    def _trace_names(self) -> list[str]:
        try:
            names = os.listdir(self._paths.traces)
        except FileNotFoundError:
            return []
        return sorted(filter(_TRACE_NAME.fullmatch, names), reverse=True)


def _line(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry, separators=(",", ":")).encode() + b"\n"


def _entries(data: bytes | None) -> list[dict[str, Any]]:
    """The whole lines; a torn one, or one of something else, is passed over."""
    found = []
    for line in (data or b"").split(b"\n"):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            found.append(entry)
    return found


def _ends_whole(paths: ServicePaths) -> bool:
    try:
        with paths.journal.open("rb") as file:
            file.seek(-1, 2)
            return file.read(1) == b"\n"
    except OSError:  # missing or empty
        return True


def _close(steps: list[Step], entry: Mapping[str, Any]) -> None:
    for index in range(len(steps) - 1, -1, -1):
        step = steps[index]
        if step.step == entry.get("step") and not step.done:
            steps[index] = Step(step.step, step.data, step.started, True, entry.get("data") or {})
            return


def _past(entry: Mapping[str, Any]) -> Past | None:
    known: Iterable[str] = [item.name for item in fields(Past)]
    try:
        values = {name: entry[name] for name in known if name in entry}
        values["steps"] = tuple(values.get("steps", ()))
        return Past(**values)
    except TypeError:
        return None
