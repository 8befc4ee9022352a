"""The agent of this machine is started ahead, while the command that needs it is still starting itself.

An agent takes 50 ms to start, and a command 150 ms until it knows what its configuration says. They start side by side.
It is only a guess, and costs nothing but those 50 ms when it is wrong: an agent does nothing before it is spoken to,
and ends with its input.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

__all__ = ["looks_local", "start_agent"]

#: The commands that talk with the servers at once.
_COMMANDS = ("deploy", "plan", "releases", "rollback", "status")
_CONFIG = ("--config", "-c")
_HELP = ("--help", "-h")
_FILE = "lightship.yml"
_LARGEST = 256 * 1024


def start_agent() -> None:
    """Start it; the first conversation with this machine takes it."""
    from lightship.transport.launch import ahead  # noqa: PLC0415

    ahead()


def looks_local(words: Sequence[str], folder: Path) -> bool:
    """Whether the command is one that asks servers, and its configuration names none but this machine.

    No configuration is read for that, just the file's text looked at; whatever is wrong with it is told of later.
    """
    if not words or words[0] not in _COMMANDS or any(word in _HELP for word in words):
        return False
    named = [Path(after) for word, after in pairwise(words) if word in _CONFIG]
    places = named or [one / _FILE for one in (folder, *folder.parents)]
    try:
        path = next((one for one in places if one.is_file()), None)
        if path is None:
            return False
        with path.open("rb") as file:
            lines = file.read(_LARGEST).splitlines()
    except OSError:
        return False
    return all(_names_nobody(line.strip()) for line in lines)


def _names_nobody(line: bytes) -> bool:
    """Whether a line says nothing of other servers."""
    if line.startswith(b"#") or not (b"servers" in line or b"inventory" in line):
        return True
    return line.replace(b" ", b"") in (b"servers:[local]", b"servers:local")
