"""Shows results and progress to people.

On a terminal progress is live, with steps ticking; elsewhere it is plain lines. ``NO_COLOR`` and ``TERM=dumb`` are
honoured. rich is imported only for the live view, and only once the agent is at work, so that nobody waits for it.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections import deque
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TextIO

from lightship.model import Plan, short
from lightship.output.text import printable
from lightship.output.words import Line, Style, kind_words
from lightship.rollout.events import Event, LogLine, Note, PlanMade, StepDone, StepFailed, StepStarted

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["LiveProgress", "PlainProgress", "Progress", "SilentProgress", "colours", "is_live", "make_progress", "show"]

_ANSI: Mapping[Style, str] = {
    "": "",
    "bold": "\x1b[1m",
    "dim": "\x1b[2m",
    "good": "\x1b[32m",
    "bad": "\x1b[1;31m",
    "warn": "\x1b[33m",
    "name": "\x1b[36m",
}
_KEPT_LOG = 40
_KILO = 1024
_MOST_BYTES = 1 << 60


def is_live(stream: TextIO, environment: Mapping[str, str] | None = None) -> bool:
    """Whether the stream is a terminal on which lines can be drawn again."""
    environment = os.environ if environment is None else environment
    return stream.isatty() and environment.get("TERM", "") not in ("", "dumb")


def colours(stream: TextIO, environment: Mapping[str, str] | None = None) -> bool:
    """Whether to use colours on the stream (https://no-color.org)."""
    environment = os.environ if environment is None else environment
    return is_live(stream, environment) and not environment.get("NO_COLOR")


def show(lines: Iterable[Line], stream: TextIO | None = None) -> None:
    """Write lines; a closed pipe is not an error.

    `lightship deploy | head -1` leaves nobody to read on in the middle of a deploy, which goes on to its end.
    """
    stream = stream or sys.stdout
    with contextlib.suppress(BrokenPipeError):
        _write(lines, stream)


def _write(lines: Iterable[Line], stream: TextIO) -> None:
    coloured = colours(stream)
    for line in lines:
        text = "".join(f"{_ANSI[style]}{text}\x1b[0m" if coloured and style and text else text for text, style in line)
        # A name that the stream's encoding lacks is shown as an escape rather than ending the command.
        encoding = stream.encoding or "utf-8"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding).rstrip() + "\n")
    stream.flush()


class Progress(Protocol):
    """Takes a rollout's events and shows them. A context manager, so that a live view ends in any case."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End."""

    def __call__(self, event: Event) -> None:
        """Show one event."""


class _Quiet:
    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class SilentProgress(_Quiet):
    """Shows nothing: for ``--json``."""

    def __call__(self, event: Event) -> None:
        """Take an event and leave it."""


def sent_words(detail: Mapping[str, Any]) -> str:
    """How much was sent for a step, if anything was, as ``, 12.3 KiB``."""
    count = detail.get("bytes")
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count < _MOST_BYTES:
        return ""
    size = float(count)
    for unit in ("bytes", "KiB", "MiB"):
        if size < _KILO:
            return f", {size:.1f} {unit}" if unit != "bytes" else f", {count} bytes"
        size /= _KILO
    return f", {size:.1f} GiB"


def plan_words(plan: Plan) -> str:
    """A plan in one line."""
    return f"{kind_words(plan.kind)}: {'; '.join(printable(why) for why in plan.why)}"


class PlainProgress(_Quiet):
    """A line for each step that is done; output of what steps run when ``verbose``, and when a step failed."""

    def __init__(self, service: str, stream: TextIO, *, verbose: bool = False) -> None:
        self._service = service
        self._stream = stream
        self._verbose = verbose
        self._logs: dict[str, deque[str]] = {}

    def __call__(self, event: Event) -> None:
        """Show one event."""
        where = printable(event.server, 100) if event.server else self._service
        match event:
            case PlanMade(plan=plan):
                self._say([(where, "name"), (f": {short(plan.commit)} ", ""), (plan_words(plan), "")])
            case StepStarted(step=step):
                self._logs.pop(event.server, None)
                if self._verbose:
                    self._say([(where, "name"), (f": {printable(step, 40)} ...", "dim")])
            case StepDone(server="", step=step) if not self._verbose:
                pass
            case StepDone(step=step, seconds=seconds, detail=detail):
                self._say([(where, "name"), (f": {printable(step, 40)} {seconds:.2f} s{sent_words(detail)}", "")])
            case StepFailed(step=step, seconds=seconds):
                if not self._verbose:
                    self._replay(event.server)
                self._say(
                    [(where, "name"), (f": {printable(step, 40)} ", ""), (f"failed after {seconds:.2f} s", "bad")]
                )
            case LogLine(text=text):
                self._logs.setdefault(event.server, deque(maxlen=_KEPT_LOG)).append(text)
                if self._verbose:
                    self._say([(f"  {printable(text)}", "dim")])
            case Note(text=text):
                self._say([(where, "name"), (f": {printable(text)}", "")])

    def _replay(self, server: str) -> None:
        for text in self._logs.pop(server, ()):
            self._say([(f"  {printable(text)}", "dim")])

    def _say(self, line: Line) -> None:
        show([line], self._stream)


class _Row:
    """A step of a server in the live view."""

    def __init__(self, server: str, step: str, started: float) -> None:
        self.server = server
        self.step = step
        self.started = started
        self.seconds: float | None = None
        self.failed = False
        self.last = ""
        self.sent = ""


class LiveProgress:
    """Steps ticking on a terminal: done ones with their seconds, the running one with a clock."""

    def __init__(self, service: str, stream: TextIO, *, verbose: bool = False) -> None:
        self._service = service
        self._stream = stream
        self._verbose = verbose
        self._rows: list[_Row] = []
        self._servers: set[str] = set()
        self._titles: dict[str, str] = {}
        self._heads: list[str] = []
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
        import time  # noqa: PLC0415

        if self._live is None:
            self._begin()
        self._servers.add(event.server)
        match event:
            case PlanMade(plan=plan):
                self._titles.update({step.name: step.title for step in plan.steps})
                self._print(f"{short(plan.commit)} {plan_words(plan)}")
            case StepStarted(step=step):
                self._rows.append(_Row(event.server, step, time.monotonic()))
            case StepDone(step=step, seconds=seconds) | StepFailed(step=step, seconds=seconds):
                row = self._row(event.server, step)
                row.seconds, row.failed = seconds, isinstance(event, StepFailed)
                row.sent = sent_words(event.detail)
            case LogLine(text=text):
                if self._verbose:
                    self._print(printable(text), "dim")
                elif running := [row for row in self._rows if row.server == event.server and row.seconds is None]:
                    running[-1].last = printable(text, 100)
            case Note(text=text):
                self._print(printable(text))

    def _begin(self) -> None:
        from rich.console import Console  # noqa: PLC0415
        from rich.live import Live  # noqa: PLC0415

        console = Console(file=self._stream, no_color=not colours(self._stream), highlight=False, markup=False)
        self._live = Live(console=console, refresh_per_second=12, get_renderable=self._table, redirect_stderr=False)
        self._live.start()

    def _print(self, text: str, style: str = "") -> None:
        self._live.console.print(text, style=style or None, soft_wrap=True, emoji=False)

    def _row(self, server: str, step: str) -> _Row:
        for row in reversed(self._rows):
            if row.server == server and row.step == step and row.seconds is None:
                return row
        row = _Row(server, step, 0.0)
        self._rows.append(row)
        return row

    def _table(self) -> Table:
        import time  # noqa: PLC0415

        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        table = Table.grid(padding=(0, 1))
        several = len(self._servers - {""}) > 1
        for row in self._rows:
            running = row.seconds is None
            seconds = time.monotonic() - row.started if row.seconds is None else row.seconds
            mark = "·" if running else "✗" if row.failed else "✓"
            style = "yellow" if running else "red" if row.failed else "green"
            title = printable(self._titles.get(row.step, row.step), 80)
            cells = [
                Text(mark, style),
                Text(title),
                Text(f"{seconds:.2f} s{row.sent}", "dim"),
                Text(row.last if running else "", "dim"),
            ]
            if several:
                cells.insert(1, Text(printable(row.server, 60), "cyan"))
            table.add_row(*cells)
        return table


def make_progress(service: str, *, json: bool, verbose: bool, servers: int = 1) -> Progress:
    """The progress for this command's streams. With ``--json`` it goes to stderr, and only when verbose."""
    if json:
        return PlainProgress(service, sys.stderr, verbose=True) if verbose else SilentProgress()
    if servers > 1:
        from lightship.output.live import FleetLines, FleetTable  # noqa: PLC0415

        if is_live(sys.stdout):
            return FleetTable(service, sys.stdout, servers, verbose=verbose)
        return FleetLines(service, sys.stdout, servers, verbose=verbose)
    if is_live(sys.stdout):
        return LiveProgress(service, sys.stdout, verbose=verbose)
    return PlainProgress(service, sys.stdout, verbose=verbose)
