"""An agent that is held on a server, for a way there that runs one command at a time and gives its output at the end.

That is Ansible's: whatever its connection plugin, it takes a command and its input, and returns what came out. So the
requests that are ready go together in one command's input, and its output has the answers. The agent itself goes on
between the commands (``lightship_agent.held``), under a token that later ones name.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

from lightship.errors import LightshipError, RefusedError, TransportError
from lightship.transport import bootstrap
from lightship.transport.base import MAX_LINE, Channel
from lightship.transport.shell import Ran
from lightship_agent.records import dataclass

__all__ = ["SILENCE", "HeldTransport", "Run", "new_token", "python_for"]

#: So many seconds a held agent waits for the next word.
SILENCE = 600.0
_PYTHON = re.compile(r"(/[A-Za-z0-9._+-]+)+|python3(\.\d{1,2})?")
_KNOWN = ("have", "need", "error")

#: Runs a command (for the shell there) with an input. Raises ``LightshipError`` when the server cannot be reached.
Run = Callable[[str, bytes], Ran]


def new_token() -> str:
    """The name of an agent that is about to be held; who does not know it does not find it."""
    return secrets.token_hex(16)


def python_for(configured: object) -> str:
    """The interpreter for the agent: as it is configured, if that is a plain path or name, or else ``python3``."""
    return configured if isinstance(configured, str) and _PYTHON.fullmatch(configured) else "python3"


@dataclass(slots=True)
class HeldTransport:
    """The way to one server. It opens a new agent under its token, or finds the one again that was ``started``."""

    server: str
    run: Run
    agent: bytes
    token: str
    python: str = "python3"
    silence: float = SILENCE
    started: bool = False

    async def open(self) -> Channel:
        """Nothing is done before there is something to ask."""
        return _HeldChannel(self)

    def exchange(self, lines: list[bytes]) -> list[bytes]:
        """Send requests; all that came back."""
        requests = b"".join(line + b"\n" for line in lines)
        if self.started:
            return self._ran(None, requests, sent=False)[1]
        known = (bootstrap.digest_of(self.agent), len(self.agent))
        word, answers = self._ran(known, requests, sent=False)
        if word == "need":
            _, answers = self._ran(known, self.agent + requests, sent=True)
        self.started = True
        return answers

    def _ran(
        self, agent: tuple[str, int] | None, data: bytes, *, sent: bool
    ) -> tuple[Literal["have", "need"], list[bytes]]:
        command = bootstrap.held_command(self.python, self.token, agent, silence=self.silence, sent=sent)
        ran = self.run(command, bootstrap.SOURCE.encode() + data)
        lines = ran.out.split(b"\n")
        for index, line in enumerate(lines):
            word = _word(line)
            if word is None:
                continue
            if word[bootstrap.MARK] == "error":
                raise self._failed(word)
            return word[bootstrap.MARK], [one for one in lines[index + 1 :] if one]
        raise self._did_not_start(ran)

    def _failed(self, word: dict[str, Any]) -> LightshipError:
        code, text = str(word.get("code")), str(word.get("text"))[:500]
        if code == "agent-gone":
            return TransportError(f"{self.server}: {text}", hint="run the playbook again", code="agent-gone")
        if code == "python-old":
            oldest = ".".join(map(str, bootstrap.OLDEST_PYTHON))
            return RefusedError(
                f"{self.server} has {text} as {self.python}, and the agent needs {oldest} or later",
                hint="name a newer one by ansible_python_interpreter",
                code=code,
            )
        return RefusedError(f"{self.server}: {text}", code=code)

    def _did_not_start(self, ran: Ran) -> LightshipError:
        said = ran.errors or ran.out[-500:].decode("utf-8", "replace")
        return RefusedError(
            f"{self.server}: the agent did not start (exit status {ran.status}): {said.strip()[-500:]}",
            hint="does Ansible become root there (become, become_user), and is Python 3.9 or later there?",
            code="agent-start",
        )


def _word(line: bytes) -> dict[str, Any] | None:
    """The bootstrap's line; what a login shell prints before it is passed over."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and found.get(bootstrap.MARK) in _KNOWN else None


class _HeldChannel:
    """Requests that wait to be sent together, and answers that wait to be read."""

    def __init__(self, transport: HeldTransport) -> None:
        self._transport = transport
        self._waiting: list[bytes] = []
        self._answers: deque[bytes] = deque()
        self._ready = asyncio.Event()

    async def send(self, line: bytes) -> None:
        """Put it with those that go next."""
        self._waiting.append(line)
        self._ready.set()

    async def receive(self) -> bytes | None:
        """The next answer. When there is none left the requests that wait are sent."""
        if not self._answers:
            await self._ready.wait()
            await asyncio.sleep(0)  # what is asked at the same time goes with it
            lines, self._waiting = self._waiting, []
            self._ready.clear()
            self._answers.extend(self._transport.exchange(lines))
        line = self._answers.popleft() if self._answers else None
        if line is not None and len(line) > MAX_LINE:
            raise TransportError(f"the agent sent a line of more than {MAX_LINE // 1024**2} MiB", code="protocol")
        return line

    async def close(self, patience: float) -> int | None:  # noqa: ARG002 - the agent is held, and goes on
        """Leave the agent as it is."""
        return None

    def last_words(self) -> str:
        """What it writes to its standard error nobody hears."""
        return ""
