"""The agent's process: reads requests from standard input, answers on standard output, ends with its input.

With ``--held`` it does the same on a socket, over one connection after the other (``held``); with ``--wait`` it holds
one conversation after the other (``waiting``).
"""

from __future__ import annotations

import os
import queue
import select
import signal
import sys
import threading
from contextlib import suppress

from lightship_agent import TYPE_CHECKING, VERSION
from lightship_agent.actions import Actions
from lightship_agent.errors import as_failure
from lightship_agent.protocol import ALIVE, MAX_LINE, SILENCE, decode_request, encode

if TYPE_CHECKING:
    from typing import Any, BinaryIO, Dict, Optional

__all__ = ["main"]


class Conversation:
    """Reads lines in a thread of its own, so that the end of the input is noticed while an operation is at work."""

    def __init__(self, reader: int, writer: BinaryIO) -> None:
        self._reader = reader
        self._writer = writer
        # A simple queue can be put to by a signal's handler while the main thread takes from it.
        self._requests: queue.SimpleQueue[Optional[bytes]] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._current = 0
        self._actions = Actions(self.send, self.ended)

    def ended(self) -> bool:
        """Whether the controller is gone."""
        return self._ended.is_set()

    def end(self, *_: Any) -> None:
        """The conversation is over (called by signals, too)."""
        self._ended.set()
        self._actions.left_alone()
        self._requests.put(None)

    def _read(self) -> None:
        # From the descriptor itself: a buffered reader that another thread waits in cannot be closed at the end.
        held = b""
        patience: Optional[float] = None
        while len(held) <= MAX_LINE:
            # A controller that says it is there is gone when it does not say so any more: a network that swallows
            # everything tells neither side that the connection is lost.
            if patience is not None and not select.select([self._reader], [], [], patience)[0]:
                break
            try:
                part = os.read(self._reader, 65536)
            except OSError:
                break
            if not part:
                break
            *lines, held = (held + part).split(b"\n")
            for line in lines:
                if line == ALIVE:
                    patience = SILENCE
                else:
                    self._requests.put(line)
        if len(held) > MAX_LINE:
            self._requests.put(held)  # to be told that it is too long; what comes after it belongs to nothing
        self.end()

    def send(self, message: Dict[str, Any]) -> None:
        """Write one message; when nobody reads any more the conversation is over, and the work goes on."""
        try:
            self._writer.write(encode({"id": self._current, **message}))
            self._writer.flush()
        except (OSError, ValueError):
            self._ended.set()

    def run(self) -> int:
        """Answer requests until ``bye`` or the end of the input; returns the exit status."""
        threading.Thread(target=self._read, daemon=True).start()
        try:
            while True:
                line = self._requests.get()
                if line is None or self._answer(line):
                    return 0
        finally:
            _finish(self._actions)

    def _answer(self, line: bytes) -> bool:
        """Answer one request; True when it was the last one."""
        actions = self._actions
        try:
            request = decode_request(line)
            self._current = request["id"]
            self.send({"result": actions.clean(actions.perform(request["op"], request["args"]))})
            return bool(request["op"] == "bye")
        except Exception as error:
            self.send(actions.clean({"error": as_failure(error).as_dict()}))
        return False


def _finish(actions: Actions) -> None:
    """Undo or finish what is open. What goes wrong stands in the journal, for the next conversation to go on with."""
    try:
        actions.finish()
    except Exception as error:
        told = actions.clean(as_failure(error).as_dict())
        sys.stderr.write(f"lightship-agent: {told['message']!a}\n")


def main() -> int:
    """Hold the conversation on the standard streams."""
    if sys.argv[1:] == ["--version"]:
        sys.stdout.write(f"lightship-agent {VERSION}\n")
        sys.stdout.flush()
        return 0
    os.umask(0o022)
    if sys.argv[1:2] == ["--held"]:
        return _held(*sys.argv[2:])
    if sys.argv[1:2] == ["--wait"]:
        from lightship_agent.waiting import wait  # noqa: PLC0415 - only an agent that waits needs it

        return wait(_on_streams)
    return _on_streams()


def _on_streams() -> int:
    return _converse(Conversation(sys.stdin.fileno(), sys.stdout.buffer))


def _held(descriptor: str, path: str, silence: str) -> int:
    """Hold the conversation on a socket that listens already, and whose file is gone afterwards."""
    import socket  # noqa: PLC0415 - only an agent that is held needs them

    from lightship_agent.held import HeldConversation  # noqa: PLC0415

    try:
        with socket.socket(fileno=int(descriptor)) as listener:
            return _converse(HeldConversation(listener, float(silence)))
    finally:
        with suppress(OSError):
            os.unlink(path)


def _converse(conversation: Conversation) -> int:
    for name in (signal.SIGHUP, signal.SIGPIPE):
        signal.signal(name, signal.SIG_IGN)
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, conversation.end)
    return conversation.run()


if __name__ == "__main__":
    sys.exit(main())
