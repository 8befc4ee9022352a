"""``export``: what other tools take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lightship.cli.common import ConfigOption, JsonOption, ServiceArgument, StageOption, answer, context_for

if TYPE_CHECKING:
    from lightship.operations.export import Exported
    from lightship.output.words import Line

__all__ = ["app"]

app = typer.Typer(name="export", help="Write what other tools take.", no_args_is_help=True, add_completion=False)


@app.callback()
def group() -> None:
    """Write what other tools take."""


@app.command()
def ansible(
    service: ServiceArgument = None,
    stage: StageOption = None,
    output: Annotated[
        Path, typer.Option("--output", metavar="DIR", help="Where to write.  [default: ansible]", show_default=False)
    ] = Path("ansible"),
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there with other content.")] = False,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Write an inventory of the service's servers and the variables of their group, for the playbooks of the collection
    lightship.deploy."""
    from lightship.operations.export import export_ansible  # noqa: PLC0415
    from lightship.output.human import SilentProgress  # noqa: PLC0415

    context = context_for(service, config, SilentProgress(), stage=stage)
    result = export_ansible(context, output.absolute(), force=force)
    answer("export ansible", result, lambda: _lines(result), json=json)


def _lines(result: Exported) -> list[Line]:
    return [[(f"{'wrote' if path in result.written else 'unchanged'}  {path}", "")] for path in result.files]
