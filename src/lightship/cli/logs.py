"""``logs`` and ``exec``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lightship.cli.common import (
    INTERRUPTED,
    ConfigOption,
    InterruptError,
    JsonOption,
    ServerOption,
    ServiceArgument,
    ServiceOption,
    StageOption,
    VerboseOption,
    answer,
    context_for,
    run_async,
)

if TYPE_CHECKING:
    from lightship.rollout.events import Event, LogLine

__all__ = ["app"]

app = typer.Typer(rich_markup_mode=None)

LinesOption = Annotated[
    int, typer.Option("--lines", "-n", help="How many of the last lines to show.", min=0, max=100_000, metavar="N")
]
FollowOption = Annotated[
    bool, typer.Option("--follow", "-f", help="Go on showing what is written; with --json an object a line.")
]
CommandArgument = Annotated[
    list[str], typer.Argument(help="The command and its arguments, after --.", show_default=False, metavar="COMMAND...")
]


@app.command()
def logs(
    service: ServiceArgument = None,
    stage: StageOption = None,
    server: ServerOption = None,
    lines: LinesOption = 100,
    follow: FollowOption = False,
    config: ConfigOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Show what the service wrote.

    With several servers the server's name stands in front of each line.
    """
    del verbose
    from lightship.operations.logs import logs as operation  # noqa: PLC0415

    output = _Output(keep=json and not follow, stream=_json_line if json else _write)
    context = context_for(service, config, output, stage=stage, only=server)
    output.several = len(context.servers) > 1
    try:
        run_async(lambda: operation(context, lines=lines, follow=follow))
    except InterruptError:
        # The usual way to stop following.
        raise typer.Exit(INTERRUPTED) from None
    if json and not follow:
        answer("logs", {"service": context.service.name, "lines": output.kept}, list, json=True)


@app.command(name="exec", context_settings={"ignore_unknown_options": True})
def execute(
    command: CommandArgument,
    service: ServiceOption = None,
    stage: StageOption = None,
    server: ServerOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Run a command in the service's container, in the current release.

    The exit status is the command's; of several servers, that of the first one where it is not 0.
    Example: lightship exec -- python manage.py showmigrations
    """
    del verbose
    from lightship.operations.logs import execute as operation  # noqa: PLC0415

    output = _Output(keep=json, stream=_write)
    context = context_for(service, config, output, stage=stage, only=server)
    output.several = len(context.servers) > 1
    result = run_async(lambda: operation(context, command))
    if json:
        found = {"service": result.service, "servers": result.servers, "lines": output.kept}
        answer("exec", found, list, json=True, exit_status=result.exit_status)
    raise typer.Exit(result.exit_status)


class _Output:
    """Takes log lines and writes or keeps them."""

    def __init__(self, *, keep: bool, stream: Callable[[LogLine, bool], None]) -> None:
        self.several = False
        self.kept: list[dict[str, Any]] = []
        self._keep = keep
        self._stream = stream

    def __call__(self, event: Event) -> None:
        from lightship.rollout.events import LogLine, Note  # noqa: PLC0415

        if isinstance(event, Note) and not self._keep:
            _write(LogLine(event.server, "stderr", event.text), True)
        if not isinstance(event, LogLine):
            return
        if self._keep:
            self.kept.append({"server": event.server, "stream": event.stream, "text": event.text})
        else:
            self._stream(event, self.several)


def _write(event: LogLine, several: bool) -> None:
    """To a terminal inert, since a service's output holds what its visitors sent; to a file as it came."""
    from lightship.output.text import printable  # noqa: PLC0415

    stream = sys.stderr if event.stream == "stderr" else sys.stdout
    text = event.text.removesuffix("\n")
    if stream.isatty():
        text = "\n".join(printable(line.replace("\t", "    "), 100_000) for line in text.split("\n"))
    prefix = f"{printable(event.server, 100)}: " if several else ""
    encoding = stream.encoding or "utf-8"
    stream.write((prefix + text).encode(encoding, "backslashreplace").decode(encoding) + "\n")
    stream.flush()


def _json_line(event: LogLine, several: bool) -> None:
    del several
    import json  # noqa: PLC0415

    from lightship.output.json import VERSION  # noqa: PLC0415

    line = {"version": VERSION, "command": "logs", "server": event.server, "stream": event.stream, "text": event.text}
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()
