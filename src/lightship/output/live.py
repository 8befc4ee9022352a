"""Shows a rollout over several servers while it runs: a table on a terminal, lines elsewhere.

The table has a row a server and a column a phase. Of more servers than fit on the screen it shows how many are where,
and the rows of those that failed or are at work.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TextIO

from lightship.model import short
from lightship.output.fleet import names_words
from lightship.output.human import PlainProgress, colours, plan_words
from lightship.output.text import printable
from lightship.rollout.events import (
    BatchStarted,
    Event,
    LogLine,
    Note,
    PhaseDone,
    PhaseStarted,
    PlanMade,
    StepDone,
    StepStarted,
)
from lightship_agent.records import dataclass, field

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = ["FleetLines", "FleetTable", "FleetView"]

PHASES = ("prepare", "activate", "verify", "commit", "revert")
#: Of more servers than that plain lines tell in numbers.
LINES = 20
_PLANS = 5
_SPARE_LINES = 10
_NAME = 40
State = Literal["", "at work", "done", "failed"]
_DONE_WORDS = {
    "prepare": "prepared",
    "activate": "activated",
    "verify": "verified",
    "commit": "live",
    "revert": "taken back",
}


@dataclass(slots=True)
class Cell:
    """A phase on a server: how it stands, since when, and how long it took."""

    state: State = ""
    started: float = 0.0
    seconds: float = 0.0


@dataclass(slots=True)
class Row:
    """A server: its phases, and what it does right now."""

    server: str
    phases: dict[str, Cell] = field(default_factory=dict)
    step: str = ""

    @property
    def failed(self) -> bool:
        """Whether a phase has failed here."""
        return any(cell.state == "failed" for cell in self.phases.values())

    @property
    def at_work(self) -> bool:
        """Whether it is in the middle of a phase."""
        return any(cell.state == "at work" for cell in self.phases.values())


class FleetView:
    """Where each server is, from the events. Takes the same time for each event, however many servers there are."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.rows: dict[str, Row] = {}
        self.counts: dict[str, Counter[State]] = {phase: Counter() for phase in PHASES}
        self.batch = ""
        self._clock = clock

    def __call__(self, event: Event) -> None:
        """Take one event."""
        match event:
            case PlanMade(server=server):
                self._row(server)
            case BatchStarted(number=number, count=count, servers=servers, canary=canary):
                what = "the canary" if canary else f"batch {number} of {count}"
                self.batch = f"{what}: {names_words(servers)}"
            case PhaseStarted(server=server, phase=phase):
                self._set(server, phase, "at work", 0.0)
            case PhaseDone(server=server, phase=phase, seconds=seconds, failed=failed):
                self._set(server, phase, "failed" if failed else "done", seconds)
                self._row(server).step = ""
            case StepStarted(server=server, step=step) if server:
                self._row(server).step = step
            case _:
                pass

    def _row(self, server: str) -> Row:
        return self.rows.setdefault(server, Row(server))

    def _set(self, server: str, phase: str, state: State, seconds: float) -> None:
        cell = self._row(server).phases.setdefault(phase, Cell())
        if cell.state:
            self.counts[phase][cell.state] -= 1
        self.counts[phase][state] += 1
        cell.state, cell.seconds = state, seconds
        if state == "at work":
            cell.started = self._clock()

    @property
    def phases(self) -> list[str]:
        """The phases worth a column: the way back only when somebody goes it."""
        return [phase for phase in PHASES if phase != "revert" or self.counts[phase].total()]

    def chosen(self, most: int) -> list[Row]:
        """The rows to show: all if they fit, else those that failed and then those at work."""
        if len(self.rows) <= most:
            return list(self.rows.values())
        found = [row for row in self.rows.values() if row.failed][:most]
        for row in self.rows.values():
            if len(found) >= most:
                break
            if row.at_work and not row.failed:
                found.append(row)
        return found

    def summary(self, phase: str) -> str:
        """A phase of all servers in numbers."""
        count = self.counts[phase]
        words = [f"{count['done']} done"]
        words += [f"{count[state]} {state}" for state in ("at work", "failed") if count[state]]
        return ", ".join(words)

    def since(self, cell: Cell) -> float:
        """The seconds of a phase, so far or in all."""
        return self._clock() - cell.started if cell.state == "at work" else cell.seconds


class FleetTable:
    """The table on a terminal, drawn anew some times a second."""

    def __init__(self, service: str, stream: TextIO, servers: int, *, verbose: bool = False) -> None:
        self.view = FleetView()
        self._service = service
        self._stream = stream
        self._count = servers
        self._verbose = verbose
        self._plans: Counter[str] = Counter()
        self._live: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.refresh()
            self._live.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if self._live is None:
            self._begin()
        self.view(event)
        match event:
            case PlanMade(plan=plan):
                self._tell_plan(f"{short(plan.commit)} {plan_words(plan)}")
            case LogLine(server=server, text=text) if self._verbose:
                self._print(f"{printable(server, _NAME)}: {printable(text)}", "dim")
            case Note(server=server, text=text):
                where = f"{printable(server, _NAME)}: " if server else ""
                self._print(f"{where}{printable(text)}")

    def _tell_plan(self, words: str) -> None:
        """Each plan once, however many servers share it."""
        self._plans[words] += 1
        if self._plans[words] == 1 and len(self._plans) <= _PLANS:
            self._print(words)

    def _begin(self) -> None:
        from rich.console import Console  # noqa: PLC0415
        from rich.live import Live  # noqa: PLC0415

        console = Console(file=self._stream, no_color=not colours(self._stream), highlight=False, markup=False)
        self._live = Live(
            console=console,
            refresh_per_second=8 if self._count < 1000 else 2,  # noqa: PLR2004 - drawing is not to cost much of the time
            get_renderable=lambda: self.table(console),
            redirect_stderr=False,
        )
        self._live.start()

    def _print(self, text: str, style: str = "") -> None:
        self._live.console.print(text, style=style or None, soft_wrap=True, emoji=False)

    def table(self, console: Console) -> RenderableType:
        """What is drawn: never more lines than the screen has."""
        from rich.console import Group  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        view, most = self.view, max(3, console.size.height - _SPARE_LINES)
        table = Table.grid(padding=(0, 2))
        table.add_row(Text("server", "dim"), *(Text(phase, "dim") for phase in view.phases), "")
        for row in view.chosen(most):
            cells = [self._cell(row.phases.get(phase, Cell())) for phase in view.phases]
            table.add_row(Text(printable(row.server, _NAME), "cyan"), *cells, Text(printable(row.step, 40), "dim"))
        parts: list[RenderableType] = [table]
        if len(view.rows) > most:
            numbers = Table.grid(padding=(0, 2))
            for phase in view.phases:
                numbers.add_row(Text(phase), Text(view.summary(phase)))
            parts = [Text(f"{len(view.rows)} servers", "bold"), numbers, table]
        if view.batch:
            parts.append(Text(view.batch, "dim"))
        return Group(*parts)

    def _cell(self, cell: Cell) -> RenderableType:
        from rich.text import Text  # noqa: PLC0415

        marks = {"": ("", ""), "at work": ("·", "yellow"), "done": ("✓", "green"), "failed": ("✗", "red")}
        mark, style = marks[cell.state]
        return Text(f"{mark} {self.view.since(cell):.2f} s" if mark else "", style)


class FleetLines(PlainProgress):
    """Lines for several servers: one for each phase of each, or of very many one for each batch and each failure."""

    def __init__(self, service: str, stream: TextIO, servers: int, *, verbose: bool = False) -> None:
        super().__init__(service, stream, verbose=verbose)
        self.view = FleetView()
        self._many = servers > LINES
        self._plans: Counter[str] = Counter()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        self.view(event)
        for text in self._words(event):
            self._say([(printable(event.server, 100) if event.server else self._service, "name"), (f": {text}", "")])
        if isinstance(event, (PlanMade, StepStarted, StepDone)) and not self._verbose:
            if isinstance(event, StepStarted):
                self._logs.pop(event.server, None)
            return
        super().__call__(event)

    def _words(self, event: Event) -> Iterator[str]:
        match event:
            case PlanMade(plan=plan):
                words = f"{short(plan.commit)} {plan_words(plan)}"
                self._plans[words] += 1
                if not self._verbose and (not self._many or (self._plans[words] == 1 and len(self._plans) <= _PLANS)):
                    yield words
            case BatchStarted(number=1):
                if self._many:
                    yield f"prepared: {self.view.summary('prepare')}"
                yield self.view.batch
            case BatchStarted():
                yield self.view.batch
            case PhaseDone(phase=phase, seconds=seconds, failed=failed) if failed or not self._many:
                yield f"{phase} failed after {seconds:.2f} s" if failed else f"{_DONE_WORDS[phase]} in {seconds:.2f} s"
