"""What a command and the pool say to each other, over a socket that is their user's alone.

One line of JSON asks, one answers. After ``open`` was answered with ``{"kept": true}`` the same connection carries the
conversation with the agent, line by line; at its end the pool says ``{"lightship-pool": "ended", ...}`` and closes it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightship import __version__
from lightship.cache import is_ours, user_directory
from lightship.errors import LightshipError
from lightship.model import Server
from lightship_agent.records import dataclass

__all__ = ["ENDED", "LONGEST_PATH", "MARK", "MOST", "Wanted", "answer_of", "encode", "place", "socket_path"]

MARK = "lightship-pool"
"""The first key of the pool's own lines in a conversation."""
ENDED = f'{{"{MARK}"'.encode()
"""What they begin with. The lines of a conversation begin with the key ``id``."""

MOST = 500
"""So many connections a pool keeps at most."""
LONGEST_PATH = 100
"""Bytes of a socket's path: the least that a system allows, less the end."""
_ENVIRONMENT = ("LIGHTSHIP_SSH_CONFIG", "SSH_AUTH_SOCK", "HOME")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A connection: to whom, and with which agent at its end."""

    server: str
    host: str
    user: str | None
    port: int | None
    key_file: str | None
    sudo: bool | None
    agent: str

    @classmethod
    def of(cls, server: Server, agent: Path) -> Wanted:
        """The connection that a server's configuration means."""
        return cls(server.name, server.host, server.user, server.port, server.key_file, server.sudo, str(agent))

    @property
    def way(self) -> tuple[object, ...]:
        """What makes two connections the same, whatever runs at their end and the server is called."""
        return (self.host, self.user, self.port, self.key_file, self.sudo)

    @property
    def login(self) -> Server:
        """The server to log in to."""
        return Server(self.server, self.host, user=self.user, port=self.port, sudo=self.sudo, key_file=self.key_file)


def place() -> Path:
    """The socket's path, below ``$XDG_RUNTIME_DIR`` or in the user's cache.

    Raises ``LightshipError`` where no pool can be: the path would be too long, or others could write there.

    What decides how a connection is made is part of the name: another SSH configuration or agent has another pool, and
    so has another version of lightship.
    """
    path = socket_path(user_directory("XDG_RUNTIME_DIR", ".cache"), os.environ)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        ours = is_ours(path.parent)
    except OSError as error:
        raise _no_place(path.parent, error.strerror or str(error)) from None
    if not ours:
        raise _no_place(path.parent, "others can write there")
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise _no_place(path.parent, "its path is too long for a socket")
    return path


def _no_place(directory: Path, why: str) -> LightshipError:
    return LightshipError(
        f"no connection can be kept with a socket in {directory}: {why}",
        hint="set XDG_RUNTIME_DIR to a directory of your own with a short path",
        code="pool-place",
    )


def socket_path(directory: Path, environment: Mapping[str, str]) -> Path:
    """The path of the socket for an environment."""
    parts = [__version__, *(environment.get(name, "") for name in _ENVIRONMENT)]
    return directory / f"pool-{hashlib.sha256(chr(0).join(parts).encode('utf-8', 'surrogateescape')).hexdigest()[:16]}"


def encode(words: Mapping[str, Any]) -> bytes:
    """One line."""
    return json.dumps(words, separators=(",", ":")).encode() + b"\n"


def answer_of(line: bytes) -> dict[str, Any]:
    """What a line says; nothing when it says nothing that can be understood."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
