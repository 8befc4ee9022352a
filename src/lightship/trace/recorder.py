"""Takes note of a command's events, one more listener beside what shows them, and makes a trace of them at the end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from lightship.rollout.events import (
    Emit,
    Ended,
    Event,
    PhaseDone,
    PhaseStarted,
    PlanMade,
    StepDone,
    StepFailed,
    StepStarted,
    Took,
)

if TYPE_CHECKING:
    from lightship.trace.spans import Trace

__all__ = ["Mark", "Recorder", "process_began"]

What = Literal["step", "step done", "step failed", "phase", "phase done", "phase failed", "took"]

#: An interpreter that needed longer than that did something else before: it is not this command's alone.
_LONGEST_START = 10.0
#: So many beginnings and ends of steps are noted of one server: more than any rollout has, however many its checks.
_MOST_STEPS = 1000
_NAME = 80


class Mark(NamedTuple):
    """What is noted of an event, and when. ``inner`` are the seconds of the application's import within a step.

    What a server says of seconds is noted as it came; ``timeline`` believes none of it.
    """

    at: float
    what: What
    server: str
    name: str
    seconds: float = 0.0
    inner: Any = 0.0


def process_began(moment: float) -> float:
    """When this process was started, by the clock of ``time.perf_counter``; ``moment`` where that is not known.

    The kernel counts in hundredths of a second.
    """
    try:
        fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return moment
    began = time.perf_counter() - age
    return began if 0 <= moment - began <= _LONGEST_START else moment


class Recorder:
    """Notes the times of events and passes them on to ``show``, but for those that are for nobody else."""

    def __init__(self, command: str, began: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self.show: Emit = lambda event: None  # noqa: ARG005
        self.heard = False
        """Whether the command had begun to do something, so that there is something to tell."""
        self._service, self._who, self._servers = "", "", 0
        self._id = os.urandom(16).hex()
        self._command = command
        self._began = began
        self._clock = clock
        self._day = time.time() - (time.perf_counter() - began)
        self._marks: list[Mark] = []
        self._planned: set[str] = set()
        self._steps: dict[str, int] = {}
        self._at_work = False
        self._ended: Ended | None = None
        self._error = ""

    def __call__(self, event: Event) -> None:
        """Take note of one event."""
        at, server, self.heard = self._clock(), event.server, True
        match event:
            case StepStarted(step=step):
                self._step(Mark(at, "step", server, step))
            case StepDone(step=step, seconds=seconds, detail=detail):
                self._step(Mark(at, "step done", server, step, seconds, detail.get("import_seconds")))
            case StepFailed(step=step, seconds=seconds):
                self._step(Mark(at, "step failed", server, step, seconds))
            case PhaseStarted(phase=phase):
                self._at_work = True
                self._marks.append(Mark(at, "phase", server, phase))
            case PhaseDone(phase=phase, failed=failed):
                self._marks.append(Mark(at, "phase failed" if failed else "phase done", server, phase))
            case Took(what=what, seconds=seconds):
                self._marks.append(Mark(at, "took", server, what, seconds))
                return
            case Ended():
                self._ended = event
                return
            case PlanMade():
                self._planned.add(server)
        self.show(event)

    @property
    def size(self) -> int:
        """So many things were noted."""
        return len(self._marks)

    def _step(self, mark: Mark) -> None:
        """Note a step, unless its server has told of more than any rollout has."""
        if self._at_work and mark.what == "step":
            # A server has much to do now, and this process nothing: what is needed at the end is imported here.
            self._at_work = False
            from lightship.trace import store, waits  # noqa: F401, PLC0415
        count = self._steps[mark.server] = self._steps.get(mark.server, 0) + 1
        if count > _MOST_STEPS:
            return
        # What is pushed to a server before there is a plan for it is code, and after that an image to a registry.
        name = "send code" if mark.name == "push" and mark.server not in self._planned else mark.name[:_NAME]
        self._marks.append(mark._replace(name=name))

    def took(self, what: str, since: float) -> float:
        """Note something that was done from ``since`` until now; returns when that is."""
        now = self._clock()
        self._marks.append(Mark(now, "took", "", what, now - since))
        return now

    def started(self, main: float) -> None:
        """Note the start of the interpreter, until the program began at ``main``."""
        if main > self._began:
            self._marks.append(Mark(main, "took", "", "python", main - self._began))

    def describe(self, service: str, who: str, servers: int) -> None:
        """What the command is about, who runs it, and for how many servers."""
        self._service, self._who, self._servers = service, who, servers

    @property
    def idle(self) -> bool:
        """Whether all that the command found was that there is nothing to do."""
        return self._ended is not None and self._ended.outcome == "nothing"

    def end(self, error: str = "") -> Trace:
        """The command is over, with an error of that code or without one."""
        self._error = error
        return self.trace()

    def trace(self) -> Trace:
        """All that was noted up to now."""
        from lightship.trace.spans import Trace  # noqa: PLC0415
        from lightship.trace.timeline import spans_of  # noqa: PLC0415

        ended = self._ended
        failed = bool(self._error) or (ended is not None and ended.outcome not in ("done", "nothing"))
        root = spans_of(self._marks, self._began, self._clock(), self._command, failed=failed)
        return Trace(
            id=self._id,
            command=self._command,
            service=self._service,
            began=self._day,
            who=self._who,
            root=root,
            outcome=ended.outcome if ended else "",
            kind=ended.kind if ended else "",
            ref=ended.ref if ended else "",
            commit=ended.commit if ended else None,
            previous=ended.previous if ended else None,
            error=self._error,
            outcomes=ended.outcomes if ended else {},
            servers=self._servers,
        )

    def parting(self) -> Callable[[str], Mapping[str, Any] | None]:
        """What each server is to keep: nothing where nothing was done."""
        if self._ended is None or self.idle:
            return lambda server: None  # noqa: ARG005
        trace = self.trace()
        of_server = trace.by_server()

        def kept(server: str) -> Mapping[str, Any] | None:
            if trace.outcomes.get(server, "nothing") in ("nothing", "skipped"):
                return None
            return of_server(server).as_dict()

        return kept
