"""``status`` and ``releases``."""

from __future__ import annotations

import typer

from lightship.cli.common import (
    ConfigOption,
    JsonOption,
    ServerOption,
    ServiceArgument,
    StageOption,
    VerboseOption,
    answer,
    context_for,
    run_async,
)

__all__ = ["app"]

app = typer.Typer(rich_markup_mode=None)


@app.command()
def status(
    service: ServiceArgument = None,
    stage: StageOption = None,
    server: ServerOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Show what is expected, on disk, and loaded by each worker.

    Exit status 5 when they differ.
    """
    del verbose
    from lightship.operations.status import status as operation  # noqa: PLC0415
    from lightship.output.human import SilentProgress  # noqa: PLC0415
    from lightship.output.words import status_lines  # noqa: PLC0415

    context = context_for(service, config, SilentProgress(), stage=stage, only=server)
    result = run_async(lambda: operation(context))
    answer("status", result, lambda: status_lines(result), json=json, exit_status=result.exit_status)


@app.command()
def releases(
    service: ServiceArgument = None,
    stage: StageOption = None,
    server: ServerOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """List the releases that the servers have."""
    del verbose
    from lightship.operations.status import releases as operation  # noqa: PLC0415
    from lightship.output.human import SilentProgress  # noqa: PLC0415
    from lightship.output.words import releases_lines  # noqa: PLC0415

    context = context_for(service, config, SilentProgress(), stage=stage, only=server)
    result = run_async(lambda: operation(context))
    answer("releases", result, lambda: releases_lines(result), json=json)
