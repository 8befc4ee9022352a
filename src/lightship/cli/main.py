"""The command line's entry. Each command's module is imported only when that command is asked for."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperGroup

from lightship.cli import common
from lightship.errors import LightshipError, UsageError

__all__ = ["COMMANDS", "app", "load_command", "main_status", "run"]


class _Lazy(NamedTuple):
    """Where a command lives, and its line in the list of commands."""

    module: str
    help: str


COMMANDS: Mapping[str, _Lazy] = {
    "init": _Lazy("lightship.cli.init", "Write lightship.yml, a Dockerfile and what goes with it for a project."),
    "deploy": _Lazy("lightship.cli.deploy", "Bring a branch, tag or commit to the service's servers."),
    "plan": _Lazy("lightship.cli.deploy", "Show what a deploy would do, and why, without doing it."),
    "build": _Lazy("lightship.cli.build", "Build the image of a commit and push it, without deploying."),
    "rollback": _Lazy("lightship.cli.deploy", "Go back to a release that the servers still have."),
    "status": _Lazy("lightship.cli.status", "Show what is expected, on disk, and loaded by each worker."),
    "releases": _Lazy("lightship.cli.status", "List the releases that the servers have."),
    "trace": _Lazy("lightship.cli.trace", "Show where the time of a deploy went, and what it waited for."),
    "logs": _Lazy("lightship.cli.logs", "Show what the service wrote."),
    "exec": _Lazy("lightship.cli.logs", "Run a command in the service's container, in the current release."),
    "maintenance": _Lazy("lightship.cli.proxy", "Turn visitors away with a page for a while, or let them in again."),
    "proxy": _Lazy(
        "lightship.cli.proxy", "Bring the servers' proxy in line with lightship.yml; renewed certificates, too."
    ),
    "setup": _Lazy("lightship.cli.setup", "Bring servers to ready: host keys, Docker engine, git, directory."),
    "doctor": _Lazy("lightship.cli.doctor", "Check servers and a service from end to end, and say what to do."),
    "connections": _Lazy("lightship.cli.connections", "Show or close the SSH connections kept for the next command."),
    "export": _Lazy("lightship.cli.export", "Write what other tools take: an Ansible inventory."),
    "config": _Lazy("lightship.cli.config", "Check, show and describe lightship.yml."),
}


class LazyGroup(TyperGroup):
    """A group whose commands are imported when they are asked for; the list of commands imports none."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - the signature is typer's
        """The names, in the order in which they are of use."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 - the signature is typer's
        """The command, from its module."""
        return load_command(cmd_name) if cmd_name in COMMANDS else None

    def invoke(self, ctx: Any) -> Any:
        """Run the command. A Ctrl-C that gets here came before the command had begun to talk with a server."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise common.InterruptError("interrupted; nothing was changed") from None

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - the signature is typer's
        """The list of commands for ``--help``, without importing one."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, lazy.help) for name, lazy in COMMANDS.items()])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As typer does, but with the nearest name looked for in the table."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib  # noqa: PLC0415

            close = difflib.get_close_matches(args[0][:80], COMMANDS, n=1)
            raise UsageError(
                f"there is no command {args[0][:80]!r}",
                hint=f"did you mean {close[0]}?" if close else "lightship --help lists the commands",
            )
        return super().resolve_command(ctx, args)


def load_command(name: str) -> Any:
    """The command (or group of commands) of that name."""
    import importlib  # noqa: PLC0415

    module = importlib.import_module(COMMANDS[name].module)
    found = getattr(module, "app", None)
    if not isinstance(found, typer.Typer):
        # A module of one command need not make an application of its own.
        found = typer.Typer(rich_markup_mode=None, add_completion=False)
        found.command(name)(getattr(module, name))
    command: Any = typer.main.get_command(found)
    return getattr(command, "commands", {}).get(name, command)


app = typer.Typer(
    name="lightship",
    cls=LazyGroup,
    help="Ship the code, not the container: deploys Python web services in about a second.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from lightship import __version__  # noqa: PLC0415

        typer.echo(f"lightship {__version__}")
        raise typer.Exit


@app.callback()
def main(
    _version_wanted: Annotated[
        bool, typer.Option("--version", help="Show the version and end.", callback=_version, is_eager=True)
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an unexpected error (as LIGHTSHIP_DEBUG=1 does).")
    ] = False,
) -> None:
    """Ship the code, not the container: deploys Python web services in about a second."""
    if debug:
        os.environ["LIGHTSHIP_DEBUG"] = "1"


def run(started: float) -> None:
    """The program, which began at ``started``.

    It ends at once when all is said: taking the interpreter down in order costs another 25 ms.
    """
    status = 1
    try:
        common.start(started)
        status = main_status(sys.argv[1:])
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        # Whoever read the output has gone; there is nobody to tell. What was done is done, and its status stays.
        pass
    os._exit(status)


def main_status(arguments: Sequence[str]) -> int:
    """Run a command; its exit status. Every error ends here: a message and a hint."""
    try:
        return _status(arguments)
    finally:
        common.run_later()


def _status(arguments: Sequence[str]) -> int:
    words = list(arguments)
    own = words[: words.index("--")] if "--" in words else words
    json, verbose = "--json" in own, bool({"--verbose", "-v"} & set(own))
    command = next((word for word in own if not word.startswith("-")), "")
    try:
        status = app(args=words, prog_name="lightship", standalone_mode=False)
    except LightshipError as error:
        if os.environ.get("LIGHTSHIP_DEBUG") == "1":
            _traceback()
        return common.fail(command, error, json=json, verbose=verbose)
    except BrokenPipeError:
        raise
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            sys.stdout.write(f"{error}\n")
            return UsageError.exit_status
        return common.fail(command, _as_lightship_error(error), json=json, verbose=verbose)
    return status if isinstance(status, int) else 0


def _as_lightship_error(error: Exception) -> LightshipError:
    """A usage error that typer found, or something that nobody foresaw."""
    wording = getattr(error, "format_message", None)
    if callable(wording):
        context = getattr(error, "ctx", None)
        name = getattr(context, "command_path", "lightship")
        return UsageError(str(wording()).rstrip("."), hint=f"{name} --help")
    if os.environ.get("LIGHTSHIP_DEBUG") == "1":
        _traceback()
    return LightshipError(
        f"unexpected {type(error).__name__}: {str(error)[:500]}",
        code="unexpected",
        hint="LIGHTSHIP_DEBUG=1 shows where; `lightship status` shows what the servers run",
    )


def _traceback() -> None:
    import traceback  # noqa: PLC0415

    from lightship.output.text import printable_lines  # noqa: PLC0415

    sys.stderr.write("\n".join(printable_lines(traceback.format_exc(), most=200)) + "\n")
