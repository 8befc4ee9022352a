"""``maintenance`` and ``proxy``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
from lightship.errors import UsageError

__all__ = ["app"]

app = typer.Typer(rich_markup_mode=None)


@app.command()
def maintenance(
    state: Annotated[str, typer.Argument(metavar="ON|OFF", help="`on` turns visitors away, `off` lets them in again.")],
    service: ServiceArgument = None,
    message: Annotated[
        str | None, typer.Option("--message", help="What the page says; plain text.", metavar="TEXT")
    ] = None,
    page: Annotated[
        Path | None, typer.Option("--page", help="A page of your own instead: one HTML file.", metavar="FILE")
    ] = None,
    stage: StageOption = None,
    server: ServerOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Turn visitors away with a page (503, with Retry-After), or let them in again.

    The service runs on and deploys go on behind the page; it stays until `off`, whatever is restarted. Needs a proxy.
    `on` once more changes the page.
    """
    del verbose
    from lightship.operations.proxy import maintenance as operation  # noqa: PLC0415
    from lightship.operations.proxy import maintenance_page, read_page  # noqa: PLC0415
    from lightship.output.human import SilentProgress  # noqa: PLC0415
    from lightship.output.proxy import proxy_lines  # noqa: PLC0415

    if state.lower() not in ("on", "off"):
        raise UsageError(f"maintenance is on or off, and not {state[:100]!r}", hint="lightship maintenance --help")
    on = state.lower() == "on"
    if message is not None and page is not None:
        raise UsageError("--message and --page exclude each other")
    if not on and (message is not None or page is not None):
        raise UsageError("there is no page to show when maintenance is turned off")
    text = read_page(page) if page is not None else maintenance_page(message or "")
    context = context_for(service, config, SilentProgress(), stage=stage, only=server)
    result = run_async(lambda: operation(context, on, text))
    answer("maintenance", result, lambda: proxy_lines(result), json=json, exit_status=result.exit_status)


@app.command()
def proxy(
    service: ServiceArgument = None,
    stage: StageOption = None,
    server: ServerOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Bring the servers' proxy in line with lightship.yml: host names, ports, certificates, its image.

    Takes up a renewed certificate, too. What is as it should be is left alone; requests go on meanwhile, unless its
    image changed: then it is started anew, and away for about a second.
    """
    del verbose
    from lightship.operations.proxy import apply_proxy  # noqa: PLC0415
    from lightship.output.human import SilentProgress  # noqa: PLC0415
    from lightship.output.proxy import proxy_lines  # noqa: PLC0415

    context = context_for(service, config, SilentProgress(), stage=stage, only=server)
    result = run_async(lambda: apply_proxy(context))
    answer("proxy", result, lambda: proxy_lines(result), json=json, exit_status=result.exit_status)
