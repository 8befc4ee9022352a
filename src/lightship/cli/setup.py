"""``lightship setup``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from lightship.operations.setup import SetupResult, SetupWays

__all__ = ["setup"]


def setup(
    service: ServiceArgument = None,
    stage: StageOption = None,
    server: ServerOption = None,
    yes: Annotated[
        bool,
        typer.Option(
            "--yes", "-y", help="Do what is to be done without asking; records the host keys that answer, too."
        ),
    ] = False,
    accept_host_key: Annotated[
        list[str] | None,
        typer.Option(
            "--accept-host-key",
            help="Record a host key if it has exactly this fingerprint, and no other; may be given several times.",
            metavar="SHA256:...",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    config: ConfigOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Bring servers to ready: host keys, Docker engine, git, directory. Shows what it will do, and asks.

    Looks first; what is as it should be is left alone, so that a second run changes nothing. On Debian and Ubuntu it
    installs the distribution's own packages; elsewhere it says what is missing. A host key that is not known is shown
    and recorded on a yes; one that has changed never is. Without a terminal it needs --yes; for host keys in a script
    --accept-host-key is the safe way. Exit status 3 or 5 when something is left for a person.
    """
    del verbose
    from lightship.operations.proxy import prepared  # noqa: PLC0415
    from lightship.operations.setup import SetupOptions  # noqa: PLC0415
    from lightship.operations.setup import setup as operation  # noqa: PLC0415
    from lightship.output.human import SilentProgress  # noqa: PLC0415
    from lightship.output.setup import result_lines  # noqa: PLC0415

    options = SetupOptions(dry_run, yes, tuple(accept_host_key or ()))
    context = context_for(service, config, SilentProgress(), stage=stage, only=server)
    ways = _ways(json=json)

    async def work() -> SetupResult:
        done = await operation(context.service.name, context.service.root, context.servers, options, ways)
        return await prepared(context, done)

    result = run_async(work, live=lambda: False)
    answer("setup", result, lambda: result_lines(result), json=json, exit_status=result.exit_status)


def _ways(*, json: bool) -> SetupWays:
    """Talk with whoever sits at the terminal; with ``--json`` nobody does."""
    from lightship.operations.setup import SetupWays  # noqa: PLC0415
    from lightship.output.human import show  # noqa: PLC0415
    from lightship.output.setup import key_lines, plan_lines  # noqa: PLC0415

    async def confirm(question: str) -> bool | None:
        if json or not (sys.stdin and sys.stdin.isatty()):
            return None
        import asyncio  # noqa: PLC0415

        return await asyncio.to_thread(_ask, question)

    if json:
        return SetupWays(confirm, lambda key: None, lambda servers: None)  # noqa: ARG005
    return SetupWays(confirm, lambda key: show(key_lines(key)), lambda servers: show(plan_lines(servers)))


def _ask(question: str) -> bool:
    from lightship.output.text import printable  # noqa: PLC0415

    sys.stdout.write(f"{printable(question)} [y/N] ")
    sys.stdout.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")
