"""An agent that waits: for a controller that keeps its connection from one command to the next.

To start and to import costs a program more than most conversations do. So this one has started once, and each
conversation gets a process of its own, forked from it. It holds none itself, and so no conversation finds anything that
an earlier one has left. It ends with its input, and with a controller that does not say any more that it is there.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

from lightship_agent.protocol import ALIVE, MARK, OPEN, SILENCE

__all__ = ["USUAL", "wait"]

#: What a usual deploy imports when it comes to it; loaded here while nobody waits for it.
USUAL = ("base64", "hashlib", "http.client", "shlex", "tempfile", "lightship_agent.proxy", "lightship_agent.receive")


def wait(converse: Callable[[], int]) -> int:
    """Hold one conversation after the other on the standard streams; returns the exit status.

    ``converse`` holds one, in a process of its own; its result is that process's exit status.
    """
    for name in (signal.SIGHUP, signal.SIGPIPE):
        signal.signal(name, signal.SIG_IGN)
    with suppress(OSError):  # nobody hears any more
        _say("waiting")
        for module in USUAL:
            importlib.import_module(module)
        while _opened():
            child = os.fork()
            if not child:
                _in_child(converse)
            _say("opened")
            _, ended = os.waitpid(child, 0)
            _say("waiting", status=os.waitstatus_to_exitcode(ended))
    return 0


def _in_child(converse: Callable[[], int]) -> None:
    """Hold the conversation, and never come back: what is above on the stack belongs to the one that waits."""
    status = 70  # as sysexits(3) has it: it broke within
    try:
        status = converse()
    except BaseException:  # whatever it was, it is told of, and this process ends here
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


def _opened() -> bool:
    """Wait until the controller opens a conversation; False when it is gone."""
    held = b""
    # What comes after the line that opens one is for the conversation; the controller waits for the answer with it.
    while len(held) <= len(OPEN) and select.select([0], [], [], SILENCE)[0]:
        part = os.read(0, 4096)
        *lines, held = (held + part).split(b"\n")
        if OPEN in lines:
            return True
        if not part or any(line != ALIVE for line in lines):
            return False
    return False


def _say(word: str, **more: object) -> None:
    data = json.dumps({MARK: word, **more}, separators=(",", ":")).encode() + b"\n"
    while data:
        data = data[os.write(1, data) :]
