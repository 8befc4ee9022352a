"""The health path over HTTP: one GET, answered as it should be, by the release that should answer."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Mapping, Sequence

from lightship_agent import TYPE_CHECKING
from lightship_agent.records import dataclass

if TYPE_CHECKING:
    from typing import Any

__all__ = ["HealthAnswer", "HealthCheck", "ask", "wait_healthy"]

MAX_BODY = 1024 * 1024


@dataclass(frozen=True)
class HealthCheck:
    """What is asked and what counts as healthy. ``statuses`` are inclusive ranges; ``timeout`` is in seconds."""

    path: str
    host: str
    statuses: Sequence[tuple[int, int]]
    body: str | None
    timeout: float

    @classmethod
    def parse(cls, found: Mapping[str, Any]) -> HealthCheck:
        """From the protocol's JSON: ``status`` holds whole numbers and "low-high" strings."""
        ranges = []
        for entry in found.get("status") or ["200-399"]:
            low, _, high = str(entry).partition("-")
            ranges.append((int(low), int(high or low)))
        body = found.get("body")
        return cls(
            str(found["path"]),
            str(found.get("host") or "localhost"),
            tuple(ranges),
            str(body) if body else None,
            float(found.get("timeout", 5.0)),
        )

    def accepts(self, status: int) -> bool:
        """Whether that status is a healthy one."""
        return any(low <= status <= high for low, high in self.statuses)


@dataclass(frozen=True)
class HealthAnswer:
    """How the health path answered. ``problem`` is empty when that was healthy; ``seconds`` is the request's time."""

    status: int | None
    seconds: float
    release: str
    problem: str


def ask(check: HealthCheck, port: int, release: str) -> HealthAnswer:
    """Send one GET to the port on this server."""
    import http.client  # noqa: PLC0415 - it costs more than all else the agent imports, and looking needs none of it

    started = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=check.timeout)
    # The connection's own limit is for each read: a byte at a time would keep it, for ever.
    watch: threading.Timer | None = None
    try:
        headers = {"Host": check.host, "User-Agent": "lightship-health", "Connection": "close"}
        connection.connect()
        watch = threading.Timer(check.timeout, _hang_up, [connection.sock])
        watch.daemon = True
        watch.start()
        connection.request("GET", check.path, headers=headers)
        response = connection.getresponse()
        body = response.read(MAX_BODY)
    except (OSError, http.client.HTTPException) as error:
        seconds = time.monotonic() - started
        # What we ended ourselves looks like an end by the other side.
        late = seconds >= check.timeout
        problem = _late(check) if late else f"no answer: {type(error).__name__}: {error}"[:300]
        return HealthAnswer(None, seconds, "", problem)
    finally:
        if watch is not None:
            watch.cancel()
        connection.close()
    if time.monotonic() - started > check.timeout:
        return HealthAnswer(response.status, time.monotonic() - started, "", _late(check))
    seen = response.headers.get("X-Release") or ""
    return HealthAnswer(
        response.status, time.monotonic() - started, seen, _problem(check, response.status, body, seen, release)
    )


def _late(check: HealthCheck) -> str:
    return f"{check.path} took longer than {check.timeout:g} s to answer"


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _problem(check: HealthCheck, status: int, body: bytes, seen: str, release: str) -> str:
    if not check.accepts(status):
        return f"{check.path} answered {status}"
    if check.body is not None and check.body not in body.decode("utf-8", "replace"):
        return f"{check.path} answered {status}, but its body does not hold {check.body!r}"
    if seen and seen != release:
        return f"{check.path} was answered by release {seen[:40]!r}"
    return ""


def wait_healthy(check: HealthCheck, port: int, release: str, *, interval: float = 0.1) -> HealthAnswer:
    """Ask until the answer is healthy or ``check.timeout`` seconds are over; returns the last answer."""
    deadline = time.monotonic() + check.timeout
    while True:
        answer = ask(check, port, release)
        if not answer.problem or time.monotonic() + interval > deadline:
            return answer
        time.sleep(interval)
