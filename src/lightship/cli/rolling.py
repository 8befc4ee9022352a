"""Runs a deploy or a rollback: shows it, takes note of where its time goes, and sees to what becomes of that."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lightship.cli.common import answer_rollout, context_for, later, run_async, start
from lightship.errors import LightshipError
from lightship.trace.asked import exporter_name
from lightship_agent.records import replace

if TYPE_CHECKING:
    from lightship.operations.context import Context
    from lightship.rollout.events import Emit, Event
    from lightship.rollout.result import RolloutResult
    from lightship.trace.spans import Trace

__all__ = ["Where", "roll_out"]

Operation = Callable[["Context"], Coroutine[Any, Any, "RolloutResult"]]


class Where(NamedTuple):
    """The service that a command is about, as the command line names it."""

    service: str | None
    stage: str | None
    config: Path | None


class _Watch:
    """Passes events on, and remembers whether what serves was about to be changed."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self.live = False

    def __call__(self, event: Event) -> None:
        from lightship.rollout.events import PhaseStarted  # noqa: PLC0415

        self.live = self.live or (isinstance(event, PhaseStarted) and event.phase == "activate")
        self._emit(event)


def roll_out(command: str, where: Where, operation: Operation, *, json: bool, verbose: bool) -> None:
    """Run it from what the command line says to its exit status."""
    from lightship.output.human import make_progress  # noqa: PLC0415
    from lightship.trace.recorder import Recorder, process_began  # noqa: PLC0415

    recorder = Recorder(command, process_began(start()))
    recorder.started(start())
    imported = recorder.took("modules", start())
    context = context_for(where.service, where.config, recorder, stage=where.stage)
    recorder.took("configuration", imported)
    recorder.describe(context.service.name, context.who, len(context.servers))
    shown = replace(context, emit=recorder, parting=recorder.parting)
    try:
        with make_progress(context.service.name, json=json, verbose=verbose, servers=len(context.servers)) as progress:
            watch = _Watch(progress)
            recorder.show = watch
            result = run_async(lambda: operation(shown), live=lambda: watch.live)
    except LightshipError as error:
        # What was refused for how it was asked for, before anybody heard of it, leaves nothing behind.
        if recorder.heard:
            _keep_later(context, recorder.end(error.code))
        raise
    if recorder.idle and not exporter_name():
        # Of a deploy that found nothing to do, as pipelines have many, nobody asks where its time went.
        answer_rollout(command, result, json=json, verbose=verbose)
        return
    from lightship.trace.waits import timing  # noqa: PLC0415

    trace = recorder.end(result.error.code if result.error is not None else "")
    _keep_later(context, trace)
    answer_rollout(command, replace(result, timing=timing(trace)), json=json, verbose=verbose)


def _keep_later(context: Context, trace: Trace) -> None:
    """Once the result stands there the trace is written down and exported; nobody waits for either before."""
    later(lambda: _keep(context, trace.reduced()))


def _keep(context: Context, trace: Trace) -> None:
    from lightship.trace.store import Store  # noqa: PLC0415

    if trace.outcome != "nothing":
        Store.of(context.service.name, context.config.path, context.service.stage).keep(trace)
    name = exporter_name()
    if not name:
        return
    from lightship.trace.export import export  # noqa: PLC0415

    problem = export(trace, name)
    if problem:
        from lightship.output.text import printable  # noqa: PLC0415

        sys.stderr.write(f"warning: the trace was not exported to OpenTelemetry: {printable(problem, 300)}\n")
