"""The words of the conversation between the controller and the agent.

JSON lines in UTF-8, one object a line, a line at most ``MAX_LINE`` bytes. The controller asks, one request at a time::

    {"id": 1, "op": "prepare", "args": {...}}

While it works the agent may tell of steps and of output::

    {"id": 1, "event": "step", "step": "fetch", "state": "start" | "done" | "failed", "seconds": 0.12, "detail": {...}}
    {"id": 1, "event": "log", "stream": "stdout" | "stderr", "text": "..."}
    {"id": 1, "event": "data", "data": "..."}

(``data`` is a part of an image that is given away: compressed by zlib, in base 64; so are those that are sent)
and it ends every request with exactly one of::

    {"id": 1, "result": {...}}
    {"id": 1, "error": {"outcome": "...", "code": "...", "message": "...", "hint": "...", "detail": {...}}}

``receive`` brings the objects of a commit over the conversation itself, where the server is not to ask the git host.
Each request names the commit and a ``part``: ``ask`` (answered with ``has``, and ``commits``: what a pack may build
upon), ``begin`` with the ``size`` of a pack in bytes, ``data`` with the next piece of it in base64 (at most
``MAX_PIECE`` bytes before that), and ``end``, at which the pack is proven and the commit is there. A controller need
not wait for the answer to one part before it sends the next; after a part that failed, all up to the next ``begin``
fail.

``bye`` may bring a ``trace``: where the rollout's time went, as the controller saw it. The agent keeps the last ones as
they came, and ``traces`` gives them back.

``outcome`` is one of ``OUTCOMES``. The end of the input means *abort*: before ``activate`` everything is undone, after
it the agent finishes by itself (verify, then commit or revert) and writes the outcome to its journal.

An agent that waits for more than one conversation (``waiting``) says so by a line of its own, ``{"lightship-agent":
"waiting"}``. Upon the line ``OPEN`` it answers ``{"lightship-agent": "opened"}`` and a conversation begins; when that
has ended it waits again, and says how it ended: ``{"lightship-agent": "waiting", "status": 0}``.

``VERSION`` grows when a word changes its meaning; ``hello`` carries it, and both sides refuse another one.
"""

from __future__ import annotations

import json

from lightship_agent import TYPE_CHECKING
from lightship_agent.errors import ProtocolError
from lightship_agent.names import printable

if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "ALIVE",
    "LOCKING_OPERATIONS",
    "MARK",
    "MAX_LINE",
    "MAX_PIECE",
    "MOST_HAVES",
    "OPEN",
    "OPERATIONS",
    "OUTCOMES",
    "SILENCE",
    "VERSION",
    "decode_request",
    "encode",
]

VERSION = 1
MAX_LINE = 8 * 1024 * 1024
ALIVE = b"alive"
"""A line that asks for nothing: the controller is there. Once it came, so long a silence is the conversation's end:"""
SILENCE = 30.0
OPEN = b"open"
"""A line to an agent that waits: a conversation begins."""
MARK = "lightship-agent"
"""The first key of the lines of such an agent that belong to no conversation."""
DEEPEST = 40

MAX_PIECE = 512 * 1024
"""A piece of a pack has at most so many bytes."""
MOST_HAVES = 200
"""So many commits a server names at most that a pack may build upon."""

OUTCOMES = ("failed", "usage", "refused", "reverted", "degraded", "locked")

LOCKING_OPERATIONS = (
    *("build", "push", "pull", "save", "load"),
    *("prepare", "activate", "verify", "commit", "revert", "abort", "proxy"),
)
"""What needs the service's lock: ``hello`` must have been sent with ``lock: true``."""

OPERATIONS = (
    *("hello", "receive", "inspect", "image", *LOCKING_OPERATIONS),
    *("status", "traces", "logs", "exec", "maintenance", "bye"),
)


def encode(message: dict[str, Any]) -> bytes:
    """One message as one line."""
    return json.dumps(message, separators=(",", ":")).encode("utf-8") + b"\n"


def _too_deep(message: object) -> bool:
    """Whether values lie deeper in one another than in any request; what works on them goes down by calls."""
    level = [message]
    for _ in range(DEEPEST):
        level = [
            inner
            for value in level
            if isinstance(value, (dict, list))
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return False
    return True


def decode_request(line: bytes) -> dict[str, Any]:
    """A request from one line; raises ``ProtocolError`` (code ``bad-request``) for anything that is not one."""
    if len(line) > MAX_LINE:
        raise ProtocolError("bad-request", f"a request is longer than {MAX_LINE} bytes")
    try:
        message = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ProtocolError("bad-request", f"a request is not one line of JSON: {error}"[:300]) from None
    if not isinstance(message, dict):
        raise ProtocolError("bad-request", "a request is not a JSON object")
    if _too_deep(message):
        raise ProtocolError("bad-request", "a request's values lie too deep in one another")
    number, operation, args = message.get("id"), message.get("op"), message.get("args", {})
    if not isinstance(number, int) or isinstance(number, bool):
        raise ProtocolError("bad-request", "a request's id is not a whole number")
    if operation not in OPERATIONS:
        raise ProtocolError("bad-request", f"unknown operation {printable(operation)}")
    if not isinstance(args, dict):
        raise ProtocolError("bad-request", "a request's args are not a JSON object")
    return {"id": number, "op": operation, "args": args}
