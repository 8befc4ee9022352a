"""``lightship init``: write the files that a project needs, and say what was found and assumed."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lightship.operations.init import InitResult

__all__ = ["init"]


class ReloadWay(str, Enum):  # noqa: UP042 - typer shows its values
    """How a new release takes over."""

    swap = "swap"
    touch = "touch"
    chain = "chain"


def init(
    path: Annotated[Path, typer.Argument(help="The project's directory: the top of its repository.")] = Path(),
    app: Annotated[
        str, typer.Option("--app", metavar="MODULE:CALLABLE", help="The WSGI application, if it is not Django's.")
    ] = "",
    reload: Annotated[ReloadWay, typer.Option("--reload", help="How a new release takes over.")] = ReloadWay.swap,
    port: Annotated[
        int, typer.Option("--port", min=1, max=65535, help="The server's port that the site is on.")
    ] = 8000,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be written.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Write lightship.yml, a Dockerfile and the Supervisor and uWSGI files for a project. Never overwrites anything."""
    from lightship.errors import LightshipError  # noqa: PLC0415 - import what a command needs when it needs it
    from lightship.operations.init import init_project  # noqa: PLC0415
    from lightship.output.json import dumps, envelope  # noqa: PLC0415

    try:
        result = init_project(path, app=app, reload=reload.value, port=port, dry_run=dry_run)
    except LightshipError as error:
        if not as_json:
            raise
        typer.echo(dumps(envelope("init", error=error)))
        raise typer.Exit(error.exit_status) from error
    typer.echo(dumps(envelope("init", result)) if as_json else "\n".join(lines(result)))


def lines(result: InitResult) -> list[str]:
    """The result for people."""
    from lightship.output.text import printable  # noqa: PLC0415

    verb = "would write" if result.dry_run else "written"
    parts = (
        (verb, result.written),
        ("there already, kept", result.kept),
        ("found", result.found),
        ("assumed", result.assumed),
        ("for you to do", result.todo),
    )
    shown: list[str] = []
    for title, texts in parts:
        if texts:
            shown += [f"{title}:", *(f"  {printable(text)}" for text in texts)]
    if not result.written:
        shown.append("nothing to write: all files are there")
    return [*shown, "next: lightship config check, then lightship deploy"]
