"""``lightship config``: check the configuration, show what it comes to, describe it for editors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lightship.cli.common import StageOption

if TYPE_CHECKING:
    from lightship.config.load import Config
    from lightship.errors import LightshipError

__all__ = ["app"]

app = typer.Typer(name="config", help="Check and show lightship.yml.", no_args_is_help=True, add_completion=False)

FileOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="The configuration file.  [default: the nearest lightship.yml]"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command()
def check(config: FileOption = None, as_json: JsonOption = False) -> None:
    """Say whether lightship.yml is valid, and all that is wrong with it."""

    def work() -> tuple[dict[str, Any], str]:
        found = _load(config)
        count = "1 service" if len(found.services) == 1 else f"{len(found.services)} services"
        result = {"file": str(found.path), "services": sorted(found.services), "problems": []}
        return result, f"{found.path.name}: {count}, no problems"

    _run("config check", as_json, work)


@app.command()
def show(
    service: Annotated[str | None, typer.Argument(help="One service.  [default: all]")] = None,
    stage: StageOption = None,
    config: FileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the configuration with its defaults merged. Secrets are shown as their sources."""

    def work() -> tuple[dict[str, Any], str]:
        from lightship.config.resolved import plain, yaml_text  # noqa: PLC0415

        found = _load(config)
        if stage is not None:
            result = plain([found.service(service, stage)])
        elif service is None:
            result = plain(found.services.values(), found.stages)
        else:
            result = plain([found.named(service)], found.stages)
        return {"file": str(found.path), **result}, yaml_text(result).rstrip("\n")

    _run("config show", as_json, work)


@app.command()
def schema(config: FileOption = None, as_json: JsonOption = False) -> None:
    """Print the JSON Schema of lightship.yml, for editors."""

    def work() -> tuple[dict[str, Any], str]:
        import json  # noqa: PLC0415

        from lightship.config.schema import json_schema  # noqa: PLC0415

        found = json_schema()
        return found, json.dumps(found, indent=2)

    del config  # taken so that every command of the group takes it; the schema is the same for all files
    _run("config schema", as_json, work)


def _load(path: Path | None) -> Config:
    from lightship.config.load import load  # noqa: PLC0415

    return load(path)


def _run(command: str, as_json: bool, work: Callable[[], tuple[dict[str, Any], str]]) -> None:
    """Runs ``work``, which returns a result and its text, and prints one of them or the error."""
    from lightship.errors import LightshipError  # noqa: PLC0415

    try:
        result, text = work()
    except LightshipError as error:
        _report(command, as_json, error)
        raise typer.Exit(error.exit_status) from None
    if as_json:
        from lightship.output.json import dumps, envelope  # noqa: PLC0415

        text = dumps(envelope(command, result))
    typer.echo(text)


def _report(command: str, as_json: bool, error: LightshipError) -> None:
    if as_json:
        from lightship.output.json import dumps, envelope  # noqa: PLC0415

        typer.echo(dumps(envelope(command, error=error)))
        return
    from lightship.output.text import printable, printable_lines  # noqa: PLC0415

    for line in printable_lines(error.message, most=1000):
        typer.echo(line, err=True)
    if error.hint:
        typer.echo(f"hint: {printable(error.hint)}", err=True)
