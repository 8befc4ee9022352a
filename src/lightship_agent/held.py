"""A conversation that outlives the connections it is held by: for a controller that cannot keep one open.

Ansible runs a command for each task, and a rollout takes several. So the agent listens on a Unix socket in a directory
of its own user alone; each task's command is a relay that passes request lines in, closes its side, and takes the
answers out. One that is gone before all is answered is the end of the conversation, as is a silence that lasts too
long: before the flip everything is undone, after it the agent finishes by itself.
"""

import os
import select
import socket
import threading
from contextlib import suppress
from typing import List, Optional

from lightship_agent.__main__ import Conversation
from lightship_agent.protocol import MAX_LINE

__all__ = ["HeldConversation"]


class _Outlet:
    """What answers are written to: whoever is connected now."""

    def __init__(self) -> None:
        self.connection: Optional[socket.socket] = None

    def write(self, data: bytes) -> int:
        """Send it all; an ``OSError`` when nobody is there."""
        if self.connection is None:
            raise BrokenPipeError("nobody is connected")
        self.connection.sendall(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is kept back."""


class HeldConversation(Conversation):
    """Takes one connection after the other, until ``bye``, a broken one, or ``silence`` seconds without any."""

    def __init__(self, listener: socket.socket, silence: float) -> None:
        self._outlet = _Outlet()
        super().__init__(-1, self._outlet)  # type: ignore[arg-type]
        self._listener = listener
        self._silence = silence
        self._under_way = 0
        self._count = threading.Lock()
        self._heard, self._tell = os.pipe()

    def _answer(self, line: bytes) -> bool:
        last = super()._answer(line)
        with self._count:
            self._under_way -= 1
        os.write(self._tell, b".")
        return last

    def _read(self) -> None:
        with suppress(OSError):
            while not self.ended():
                if not select.select([self._listener], [], [], self._silence)[0]:
                    break
                connection, _ = self._listener.accept()
                with connection:
                    self._outlet.connection = connection
                    if not (self._take(connection) and self._all_answered(connection)):
                        break
                    self._outlet.connection = None
        self.end()

    def _take(self, connection: socket.socket) -> bool:
        """Read the requests of one connection, up to its end; whether they were whole."""
        held = b""
        while len(held) <= MAX_LINE:
            part = connection.recv(65536)
            if not part:
                return not held
            *lines, held = (held + part).split(b"\n")
            self._put(lines)
        self._put([held])  # to be told that it is too long
        return True

    def _put(self, lines: List[bytes]) -> None:
        with self._count:
            self._under_way += len(lines)
        for line in lines:
            self._requests.put(line)

    def _all_answered(self, connection: socket.socket) -> bool:
        """Wait until all is answered; False when the relay is gone before that."""
        watched = select.poll()
        watched.register(connection, 0)  # says when the other side is gone; that it has said all is no event
        watched.register(self._heard, select.POLLIN)
        while True:
            with self._count:
                if self._under_way == 0:
                    return True
            for descriptor, _ in watched.poll():
                if descriptor != self._heard:
                    return self._under_way == 0
                os.read(self._heard, 65536)
