"""The load generator tells the truth: stalls, failures and changes of release, against a server that does each."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.load import Load, LoadReport, Record

TESTS = Path(__file__).resolve().parent.parent


class Server:
    """A small HTTP server in a thread; ``behave`` says what it does with the next requests."""

    def __init__(self) -> None:
        self.release = "a"
        self.behave = "answer"
        self.connections = 0
        self.hold_until = 0.0
        self._loop = asyncio.new_event_loop()
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._up.wait(5)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = self._server.sockets[0].getsockname()[1]
        self._up.set()
        self._loop.run_forever()
        self._server.close()
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self._loop.close()

    def close(self) -> None:
        if not self._thread.is_alive():
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if (left := self.hold_until - time.monotonic()) > 0:
                    await asyncio.sleep(left)
                if self.behave == "close":
                    break
                writer.write(self._answer())
                await writer.drain()
                if b"Connection: close" in head or self.behave in ("half", "once"):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _answer(self) -> bytes:
        body = b"version: " + self.release.encode() + b"."
        status = {"error": b"500 Oops"}.get(self.behave, b"200 OK")
        head = b"HTTP/1.1 " + status + b"\r\nX-Release: " + self.release.encode() + b"\r\n"
        if self.behave == "chunked":
            return (
                head
                + b"Transfer-Encoding: chunked\r\n\r\n4\r\n"
                + body[:4]
                + b"\r\n7\r\n"
                + body[4:]
                + b"\r\n0\r\n\r\n"
            )
        if self.behave == "half":
            return head + b"Content-Length: 999\r\n\r\n" + body
        return head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


@pytest.fixture
def url(server: Server) -> str:
    return f"http://127.0.0.1:{server.port}/"


def test_keeps_its_rate_and_counts_every_request(url: str) -> None:
    with Load(url, rate=200, seconds=0.5) as load:
        time.sleep(0.7)
    report = load.report
    assert report.count == 100
    assert not report.failed
    assert report.records[-1].due - report.records[0].due == pytest.approx(0.495, abs=1e-6)
    assert report.worst < 0.5
    assert report.p50 <= report.p99 <= report.worst


def test_a_stall_is_the_delay_of_every_request_that_was_due_in_it(server: Server, url: str) -> None:
    with Load(url, rate=100, seconds=5) as load:
        time.sleep(0.2)
        server.hold_until = time.monotonic() + 0.5
        time.sleep(0.8)
    stalled = load.report.stalled(0.1)
    # All that were due in the stall but for its last 0.1 s, and no others. A loaded machine makes a stall longer.
    assert len(stalled) >= 30, "a generator that waits for its answers would see one slow request"
    assert len(stalled) <= 100 * load.report.worst + 5
    assert 0.4 < load.report.worst < 1.0
    assert not load.report.failed


def test_sees_when_every_response_is_new(server: Server, url: str) -> None:
    with Load(url, rate=200, seconds=5, capture=r"version: (\w+)") as load:
        assert load.wait_for("a")
        flipped = time.monotonic()
        server.release = "b"
        assert load.wait_for("b")
        time.sleep(0.1)
    report = load.report
    assert report.releases == ["a", "b"]
    assert report.marks == ["a", "b"]
    since = report.all_new_after("b")
    assert since is not None
    assert 0 <= since - flipped < 0.5
    assert report.all_marked_after("b") == since
    assert report.all_new_after("a") is None
    assert [stretch.release for stretch in report.timeline()] == ["a", "b"]
    assert report.window(since + 0.02, since + 60).releases == ["b"]


@pytest.mark.parametrize(("behave", "error"), [("error", "status 500"), ("close", "closed"), ("half", "incomplete")])
def test_names_each_failure(server: Server, url: str, behave: str, error: str) -> None:
    server.behave = behave
    with Load(url, rate=100, seconds=0.1) as load:
        time.sleep(0.3)
    assert dict(load.report.errors) == {error: 10}


def test_a_refused_connection_and_a_timeout_are_failures(server: Server, url: str) -> None:
    server.hold_until = time.monotonic() + 30
    with Load(url, rate=50, seconds=0.1, timeout=0.2) as load:
        time.sleep(0.5)
    assert dict(load.report.errors) == {"timeout": 5}
    server.close()
    with Load(url, rate=50, seconds=0.1) as load:
        time.sleep(0.3)
    assert dict(load.report.errors) == {"refused": 5}


def test_kept_connections_are_used_again_and_stale_ones_replaced(server: Server, url: str) -> None:
    server.behave = "chunked"
    with Load(url, rate=50, seconds=0.4, keep_alive=True) as load:
        time.sleep(0.6)
    assert not load.report.failed
    assert load.report.count == 20
    assert server.connections < 20
    server.behave = "once"
    with Load(url, rate=50, seconds=0.4, keep_alive=True) as load:
        time.sleep(0.6)
    assert not load.report.failed
    assert any(record.retried for record in load.report.records)


def test_from_the_command_line(url: str) -> None:
    command = [sys.executable, "-m", "support.load", "--url", url, "--rate", "100", "--seconds", "0.2", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=30, check=True)
    said = json.loads(done.stdout)
    assert (said["requests"], said["failed"], said["releases"]) == (20, 0, ["a"])


def test_an_old_response_that_comes_late_moves_the_moment() -> None:
    def record(n: int, end: float, release: str | None, error: str | None = None) -> Record:
        return Record(n, "/", n * 0.1, n * 0.1, end, 0.0, None if error else 200, error, release)

    report = LoadReport((record(0, 0.05, "a"), record(1, 0.9, "a"), record(2, 0.25, "b"), record(3, 1.0, "b")))
    assert report.first_with("b") == 0.25
    assert report.all_new_after("b") == 1.0
    broken = LoadReport((*report.records, record(4, 1.2, None, "reset"), record(5, 1.4, "b")))
    assert broken.all_new_after("b") == 1.4
    assert len(broken.failed) == 1


def test_settled_is_when_all_that_was_due_is_answered(server: Server, url: str) -> None:
    with Load(url, rate=100, seconds=10) as load:
        assert load.wait_count(5)
        server.hold_until = time.monotonic() + 0.5
        time.sleep(0.2)
        began = time.monotonic()
        assert load.settle()
        assert time.monotonic() >= server.hold_until
        records = {record.n: record for record in load.since(0)[0].records}
        assert all(n in records for n in range(int((began - records[0].due) * 100)))
        server.hold_until = time.monotonic() + 1
        time.sleep(0.1)
        assert not load.settle(timeout=0.2)
