"""What the commands share: their options, and how a result or an error reaches the user.

Only typer is imported here; everything else is imported by the command that needs it, when it needs it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from lightship.errors import LightshipError

if TYPE_CHECKING:
    from lightship.operations.context import Context
    from lightship.output.words import Line
    from lightship.rollout.events import Emit
    from lightship.rollout.result import RolloutResult

__all__ = [
    "INTERRUPTED",
    "ConfigOption",
    "InterruptError",
    "JsonOption",
    "ServerOption",
    "ServiceArgument",
    "ServiceOption",
    "StageOption",
    "VerboseOption",
    "answer",
    "answer_rollout",
    "context_for",
    "fail",
    "later",
    "run_async",
    "run_later",
    "start",
]

INTERRUPTED = 130
_T = TypeVar("_T")

ServiceArgument = Annotated[
    str | None,
    typer.Argument(
        help="The service, as lightship.yml names it. Not needed when there is only one.", show_default=False
    ),
]
ServiceOption = Annotated[
    str | None,
    typer.Option("--service", "-s", help="The service. Not needed when there is only one.", metavar="SERVICE"),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="The configuration file. Default: the nearest lightship.yml.", metavar="FILE"),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object (a versioned envelope) and nothing else.")
]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show the output of what runs, and whole tracebacks of a refusal.")
]

StageOption = Annotated[
    str | None,
    typer.Option(
        "--stage",
        help="The stage of a service that has several, such as staging.",
        metavar="NAME",
        envvar="LIGHTSHIP_STAGE",
    ),
]
ServerOption = Annotated[
    list[str] | None,
    typer.Option("--server", help="Only this server, by its name; may be given several times.", metavar="NAME"),
]

_started = [0.0]
_later: list[Callable[[], None]] = []


class InterruptError(LightshipError):
    """Ctrl-C, SIGTERM or SIGHUP ended the command."""

    exit_status = INTERRUPTED
    default_code = "interrupted"


def start(moment: float | None = None) -> float:
    """When the command began, by ``time.perf_counter``; set once by ``main.run``."""
    if moment is not None:
        _started[0] = moment
    return _started[0]


def later(work: Callable[[], None]) -> None:
    """Do this when all is said: nobody is to wait for it."""
    _later.append(work)


def run_later() -> None:
    """Do what was put off until now."""
    while _later:
        sys.stdout.flush()
        _later.pop(0)()


def context_for(
    service: str | None,
    config: Path | None,
    progress: Emit,
    *,
    stage: str | None = None,
    only: Sequence[str] | None = None,
) -> Context:
    """The service's context, with its events going to the progress."""
    from lightship.operations.context import Connector, load_context  # noqa: PLC0415

    context = load_context(service, config, progress, stage=stage, only=only or ())
    if isinstance(context.connect, Connector):
        later(context.connect.keep)
    return context


def run_async(work: Callable[[], Coroutine[Any, Any, _T]], *, live: Callable[[], bool] = bool) -> _T:
    """Run an operation. The first Ctrl-C (or SIGTERM) lets it end in order, the second one at once.

    ``live`` says whether the operation had begun to change what serves.
    """
    import asyncio  # noqa: PLC0415
    import gc  # noqa: PLC0415

    gc.freeze()
    gc.enable()
    try:
        return asyncio.run(_with_signals(work))
    except (KeyboardInterrupt, asyncio.CancelledError):
        if live():
            raise InterruptError(
                "interrupted after the flip had begun; the servers finish by themselves",
                hint="see what they run: lightship status",
            ) from None
        raise InterruptError("interrupted; what serves was not changed") from None


async def _with_signals(work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    """SIGTERM and SIGHUP mean the same as Ctrl-C; asyncio itself looks after SIGINT."""
    import asyncio  # noqa: PLC0415
    import contextlib  # noqa: PLC0415
    import signal  # noqa: PLC0415

    task = asyncio.current_task()
    if task is not None:
        with contextlib.suppress(ValueError, NotImplementedError, RuntimeError):
            for number in (signal.SIGTERM, signal.SIGHUP):
                asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return await work()


def answer(command: str, result: Any, lines: Callable[[], list[Line]], *, json: bool, exit_status: int = 0) -> None:
    """Print a result, and end with its exit status."""
    if json:
        from lightship.output.json import dumps, envelope  # noqa: PLC0415

        sys.stdout.write(dumps(envelope(command, result, exit_status=exit_status)) + "\n")
    else:
        from lightship.output.human import show  # noqa: PLC0415

        show(lines())
    if exit_status:
        raise typer.Exit(exit_status)


def answer_rollout(command: str, result: RolloutResult, *, json: bool, verbose: bool) -> None:
    """Print how a rollout ended, and end with its exit status."""
    if json:
        from lightship.output.json import dumps, envelope  # noqa: PLC0415

        document = envelope(command, result, error=result.error, exit_status=result.exit_status)
        sys.stdout.write(dumps(document) + "\n")
    else:
        from lightship.output.human import show  # noqa: PLC0415
        from lightship.output.words import error_lines, rollout_lines, timing_lines  # noqa: PLC0415

        if result.error is not None:
            show(error_lines(result.error, verbose=verbose), sys.stderr)
        show(rollout_lines(result))
        if result.timing is not None and result.outcome == "done":
            show(timing_lines(result.timing))
    if result.exit_status:
        raise typer.Exit(result.exit_status)


def fail(command: str, error: LightshipError, *, json: bool, verbose: bool) -> int:
    """Print an error; its exit status."""
    if json:
        from lightship.output.json import dumps, envelope  # noqa: PLC0415

        sys.stdout.write(dumps(envelope(command, error=error)) + "\n")
    else:
        from lightship.output.human import show  # noqa: PLC0415
        from lightship.output.words import error_lines  # noqa: PLC0415

        show(error_lines(error, verbose=verbose), sys.stderr)
    return error.exit_status
