"""``trace``."""

from __future__ import annotations

from typing import Annotated

import typer

from lightship.cli.common import (
    ConfigOption,
    JsonOption,
    ServerOption,
    ServiceOption,
    StageOption,
    VerboseOption,
    answer,
    context_for,
    run_async,
)

__all__ = ["app"]

app = typer.Typer(rich_markup_mode=None)

RolloutArgument = Annotated[
    str | None,
    typer.Argument(
        help="Which one: its number in the list, the first digits of its id, or of its commit. Default: the last one.",
        metavar="ROLLOUT",
        show_default=False,
    ),
]
ListOption = Annotated[bool, typer.Option("--list", "-l", help="List the rollouts of which it is known.")]


@app.command()
def trace(
    rollout: RolloutArgument = None,
    service: ServiceOption = None,
    stage: StageOption = None,
    server: ServerOption = None,
    listed: ListOption = False,
    config: ConfigOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Show where the time of a deploy or a rollback went, and what it waited for.

    The servers keep the last 20, whoever deployed; those that were deployed from here are kept here as well.
    --verbose shows every server's steps.
    """
    from lightship.operations import trace as operations  # noqa: PLC0415
    from lightship.output import timeline  # noqa: PLC0415
    from lightship.output.human import SilentProgress  # noqa: PLC0415

    context = context_for(service, config, SilentProgress(), stage=stage, only=server)
    found = run_async(lambda: operations.traces(context))
    if listed:
        every = operations.listed(found)
        answer("trace", every, lambda: timeline.list_lines(every), json=json)
        return
    result = operations.explained(found, rollout)
    answer("trace", result, lambda: timeline.trace_lines(result, timeline.terminal(), whole=verbose), json=json)
