"""What a transport is: it starts an agent on a server and carries lines to and from it.

Nothing here or in ``conversation`` knows where the agent runs.
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["MAX_LINE", "Channel", "Transport"]

#: A line of the protocol is at most this long, in bytes.
MAX_LINE = 8 * 1024 * 1024


class Channel(Protocol):
    """Lines to and from one running agent."""

    async def send(self, line: bytes) -> None:
        """Send one line (without its end). Raises ``TransportError`` when the agent is gone."""

    async def receive(self) -> bytes | None:
        """The next line without its end, ``None`` at the end of the stream; a line over ``MAX_LINE`` is an error."""

    async def close(self, patience: float) -> int | None:
        """End the agent's input, wait up to ``patience`` seconds for it to finish; its exit status when it has.

        An agent that needs longer is left to finish by itself: stopping it in the middle helps nobody.
        """

    def last_words(self) -> str:
        """The last line the agent wrote to its standard error, if any."""


class Transport(Protocol):
    """A way to start an agent on one server."""

    @property
    def server(self) -> str:
        """The server's name, as the configuration has it."""

    async def open(self) -> Channel:
        """Start an agent. Raises ``TransportError`` when it cannot be."""
