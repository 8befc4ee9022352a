"""``connections``."""

from __future__ import annotations

from typing import Annotated

import typer

from lightship.cli.common import JsonOption, VerboseOption, answer

__all__ = ["app"]

app = typer.Typer(rich_markup_mode=None)

CloseOption = Annotated[
    bool, typer.Option("--close", help="Close them. One that is in use goes when that command has ended.")
]


@app.command()
def connections(close: CloseOption = False, json: JsonOption = False, verbose: VerboseOption = False) -> None:
    """Show the SSH connections that are kept open for the next command (`keep_connected`), or close them.

    They are this user's on this machine, whatever the service.
    """
    del verbose
    from lightship.operations import connections as operations  # noqa: PLC0415
    from lightship.output import connections as words  # noqa: PLC0415

    if close:
        closed = operations.close()
        answer("connections", closed, lambda: words.closed_lines(closed), json=json)
        return
    found = operations.connections()
    answer("connections", found, lambda: words.connections_lines(found), json=json)
