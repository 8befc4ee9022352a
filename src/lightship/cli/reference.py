"""Writes ``docs/reference/cli.md`` from the commands themselves: ``python -m lightship.cli.reference > FILE``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from lightship.cli.main import COMMANDS, app, load_command

__all__ = ["missing_help", "reference"]

_HEAD = """\
# The command line

This page is written by `python -m lightship.cli.reference`; a test holds it to the commands.

| exit status | meaning |
| --- | --- |
| 0 | done, or nothing to do |
| 1 | something unexpected |
| 2 | the command line or the configuration is wrong |
| 3 | refused, nothing was changed |
| 4 | the release went live, failed, and the last stable one was restored |
| 5 | degraded: a person is needed, or the servers differ |
| 6 | locked: somebody else is changing the service |
| 130 | interrupted |

`lightship exec` ends with the exit status of the command it ran. With `--json` a command prints one object,
`{"version": 1, "command", "ok", "exit_status", "result", "error"}`, and nothing else; `error` is null or
`{"code", "message", "hint", "detail"}`. `NO_COLOR` turns colours off.
"""


def _commands() -> Iterator[tuple[str, Any]]:
    for name in COMMANDS:
        command = load_command(name)
        yield name, command
        for inner, sub in getattr(command, "commands", {}).items():
            yield f"{name} {inner}", sub


def _options(command: Any) -> Iterator[tuple[str, str]]:
    for param in command.params:
        if param.name == "help":
            continue
        names = ", ".join(f"`{name}`" for name in (*param.opts, *param.secondary_opts))
        if param.param_type_name == "argument":
            names = f"`{(param.metavar or param.name).upper()}`"
        elif not getattr(param, "is_flag", False):
            names += f" {param.metavar or _choices(param) or param.name.upper()}"
        yield names, " ".join((getattr(param, "help", None) or "").split())


def _choices(param: Any) -> str:
    return {"kind": "code, container or full", "on_failure": "revert or stop"}.get(str(param.name), "")


def missing_help() -> list[str]:
    """Commands and options that say nothing of themselves."""
    missing = [name for name, command in _commands() if not (command.help or "").strip()]
    return missing + [f"{name} {names}" for name, one in _commands() for names, text in _options(one) if not text]


def reference() -> str:
    """The page."""
    parts = [_HEAD, "## lightship\n", *(_table(_options(_root())))]
    for name, command in _commands():
        level = "###" if " " in name else "##"
        parts.append(f"\n{level} lightship {name}\n")
        parts.append("\n\n".join(" ".join(part.split()) for part in (command.help or "").strip().split("\n\n")) + "\n")
        if not getattr(command, "commands", {}):
            parts += _table(_options(command))
    return "\n".join(parts).rstrip() + "\n"


def _table(options: Iterator[tuple[str, str]]) -> list[str]:
    rows = [f"| {names} | {text.replace('|', chr(92) + '|')} |" for names, text in options]
    return ["| option | meaning |", "| --- | --- |", *rows] if rows else []


def _root() -> Any:
    import typer  # noqa: PLC0415

    return typer.main.get_command(app)


if __name__ == "__main__":
    sys.stdout.write(reference())
