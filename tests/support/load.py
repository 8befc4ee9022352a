"""An open-loop HTTP load: requests go out on schedule, whether or not the earlier ones were answered.

    with Load("http://127.0.0.1:8000/", rate=100) as load:
        deploy()
    report = load.report
    assert not report.failed and report.worst < 0.2

Latency is counted from the moment a request was *due*. A generator that waits for answers before it goes on would
send few requests during a stall and so hide it. It runs in a process of its own (``support.child``), and is bounded
in time and in number always. By hand: ``PYTHONPATH=tests python -m support.load --url URL --rate 100 --seconds 10``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import math
import os
import re
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlsplit

from support.child import Child, report

HEAD_LIMIT = 64 * 1024
BODY_LIMIT = 8 * 1024 * 1024
IN_FLIGHT_LIMIT = 4000


@dataclass(frozen=True)
class Record:
    """One request. ``due``, ``start`` and ``end`` are of the machine's monotonic clock, ``wall`` is epoch seconds."""

    n: int
    path: str
    due: float
    start: float
    end: float
    wall: float
    status: int | None = None
    error: str | None = None
    release: str | None = None
    mark: str | None = None
    retried: int = 0

    @property
    def ok(self) -> bool:
        """Whether it was answered, and not with an error."""
        return self.error is None and self.status is not None and 200 <= self.status < 400

    @property
    def seconds(self) -> float:
        """How long whoever sent it had to wait, from when it was due."""
        return self.end - self.due


@dataclass(frozen=True)
class Stretch:
    """Responses in a row that carried the same release."""

    release: str | None
    since: float
    until: float
    count: int


@dataclass(frozen=True)
class LoadReport:
    """All requests of a load, in the order they were due."""

    records: Sequence[Record]

    @classmethod
    def of(cls, lines: Iterable[dict[str, Any]]) -> LoadReport:
        """From what the generator reported."""
        records = [Record(**line) for line in lines if "n" in line]
        return cls(tuple(sorted(records, key=lambda record: record.n)))

    @property
    def count(self) -> int:
        """How many requests there were."""
        return len(self.records)

    @property
    def failed(self) -> list[Record]:
        """Requests with no answer, or an answer that is an error."""
        return [record for record in self.records if not record.ok]

    @property
    def errors(self) -> Counter[str]:
        """How they failed."""
        return Counter(record.error or f"status {record.status}" for record in self.failed)

    @property
    def worst(self) -> float:
        """The longest wait, failed requests included."""
        return max((record.seconds for record in self.records), default=0.0)

    def quantile(self, share: float) -> float:
        """The wait that this share of all requests did not exceed."""
        waits = sorted(record.seconds for record in self.records)
        return waits[max(0, math.ceil(share * len(waits)) - 1)] if waits else 0.0

    @property
    def p50(self) -> float:
        """The median wait."""
        return self.quantile(0.50)

    @property
    def p99(self) -> float:
        """The wait that 99 of 100 requests did not exceed."""
        return self.quantile(0.99)

    @property
    def releases(self) -> list[str]:
        """The releases that answered, in the order they were first seen."""
        ended = sorted(self.records, key=lambda record: record.end)
        return list(dict.fromkeys(record.release for record in ended if record.release))

    @property
    def marks(self) -> list[str]:
        """What ``capture`` found in the bodies, in the order it was first seen."""
        ended = sorted(self.records, key=lambda record: record.end)
        return list(dict.fromkeys(record.mark for record in ended if record.mark))

    def first_with(self, release: str) -> float | None:
        """When the first response of this release came in."""
        return min((record.end for record in self.records if record.release == release), default=None)

    def all_new_after(self, release: str) -> float | None:
        """From when on every response carried this release; none if that never came to be.

        A failed request after that time counts against it, and so does a request that was sent earlier and
        answered by old code later.
        """
        return self._all_after(lambda record: record.release == release)

    def all_marked_after(self, mark: str) -> float | None:
        """The same, by what ``capture`` found in the body."""
        return self._all_after(lambda record: record.mark == mark)

    def _all_after(self, new: Callable[[Record], bool]) -> float | None:
        since: float | None = None
        for record in sorted(self.records, key=lambda record: record.end):
            if not (record.ok and new(record)):
                since = None
            elif since is None:
                since = record.end
        return since

    def stalled(self, over: float) -> list[Record]:
        """Requests that waited longer than this."""
        return [record for record in self.records if record.seconds > over]

    def window(self, begin: float, end: float) -> LoadReport:
        """Only what was due in this time."""
        return LoadReport(tuple(record for record in self.records if begin <= record.due < end))

    def gap(self) -> float:
        """The longest time in which no request that was due could be answered: how long the site was away."""
        longest, since = 0.0, None
        for record in self.records:
            if record.ok:
                since = None
                continue
            since = record.due if since is None else since
            longest = max(longest, record.due - since)
        return longest

    def timeline(self) -> list[Stretch]:
        """Which release answered when."""
        stretches: list[Stretch] = []
        for record in sorted(self.records, key=lambda record: record.end):
            last = stretches[-1] if stretches else None
            if last is not None and last.release == record.release:
                stretches[-1] = Stretch(last.release, last.since, record.end, last.count + 1)
            else:
                stretches.append(Stretch(record.release, record.end, record.end, 1))
        return stretches

    def as_dict(self) -> dict[str, Any]:
        """The figures, without the single requests."""
        return {
            "requests": self.count,
            "failed": len(self.failed),
            "errors": dict(self.errors),
            "worst": round(self.worst, 4),
            "p50": round(self.p50, 4),
            "p99": round(self.p99, 4),
            "releases": self.releases,
            "timeline": [asdict(stretch) for stretch in self.timeline()],
        }


class Load:
    """A load that runs while the block does. Its report is there after the block, or from ``stop``."""

    def __init__(
        self,
        url: str,
        rate: float = 100,
        *,
        seconds: float = 300,
        paths: Sequence[str] = (),
        host: str = "",
        keep_alive: bool = False,
        timeout: float = 15,
        capture: str = "",
    ) -> None:
        arguments = [
            "--url",
            url,
            "--rate",
            str(rate),
            "--seconds",
            str(seconds),
            "--timeout",
            str(timeout),
            "--stream",
        ]
        for path in paths:
            arguments += ["--path", path]
        if host:
            arguments += ["--host", host]
        if keep_alive:
            arguments.append("--keep-alive")
        if capture:
            arguments += ["--capture", capture]
        self._rate = rate
        self._child = Child("support.load", arguments)
        self._report: LoadReport | None = None

    def start(self) -> Load:
        """Begin; returns when the first request is about to go out."""
        self._child.start()
        return self

    def stop(self) -> LoadReport:
        """Send nothing more, wait for the answers that are out, and report."""
        if self._report is None:
            self._report = LoadReport.of(self._child.stop())
        return self._report

    @property
    def report(self) -> LoadReport:
        """The finished report."""
        return self.stop()

    def so_far(self) -> LoadReport:
        """What was answered until now, while the load goes on."""
        return LoadReport.of(list(self._child.reports))

    def since(self, mark: int) -> tuple[LoadReport, int]:
        """What was answered since an earlier look (0 is the beginning), and the mark for the next one."""
        lines = list(self._child.reports[mark:])
        return LoadReport.of(lines), mark + len(lines)

    @property
    def running(self) -> bool:
        """Whether requests still go out."""
        return self._child.running

    def wait_for(self, release: str, timeout: float = 30) -> bool:
        """Wait until a response of this release has come in."""
        return self._child.wait(
            lambda: any(line.get("release") == release for line in reversed(self._child.reports)), timeout
        )

    def wait_for_mark(self, mark: str, timeout: float = 30) -> bool:
        """Wait until one of the latest responses has this mark (see ``capture``)."""
        return self._child.wait(lambda: any(line.get("mark") == mark for line in self._child.reports[-20:]), timeout)

    def wait_count(self, count: int, timeout: float = 30) -> bool:
        """Wait until so many requests more than now are answered."""
        goal = len(self._child.reports) + count
        return self._child.wait(lambda: len(self._child.reports) >= goal, timeout)

    def wait_sent(self, since: float, count: int, timeout: float = 60) -> bool:
        """Wait until so many requests that were sent after this moment are answered, however many wait before them."""
        return self._child.wait(
            lambda: sum(line.get("start", 0) > since for line in self._child.reports[-4000:]) >= count, timeout
        )

    def settle(self, timeout: float = 60) -> bool:
        """Wait until every request that is due by now has its answer, or has failed."""
        now, reports = time.monotonic(), self._child.reports
        due: float = (now - reports[0]["started"]) * self._rate
        answered, looked = 0, 1

        def settled() -> bool:
            nonlocal answered, looked
            news = reports[looked:]
            looked += len(news)
            answered += sum(line["due"] <= now for line in news)
            return bool(answered >= due)

        return self._child.wait(settled, timeout)

    def __enter__(self) -> Load:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self.stop()
        else:
            self._child.kill()


# --- the program in the child process ---------------------------------------------------------------------------------


class BrokenResponseError(Exception):
    """The answer was not a whole HTTP response. The text is the error's class in the record."""


@dataclass
class Settings:
    """What to send, and where to."""

    address: str
    port: int
    family: int
    paths: tuple[str, ...]
    host: str
    rate: float
    seconds: float
    timeout: float
    keep_alive: bool
    capture: re.Pattern[str] | None
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)

    def request(self, path: str) -> bytes:
        """The request's bytes."""
        connection = "keep-alive" if self.keep_alive else "close"
        head = (f"GET {path} HTTP/1.1", f"Host: {self.host}", "User-Agent: lightship-load", f"Connection: {connection}")
        return "\r\n".join((*head, "", "")).encode("ascii")


@dataclass(frozen=True)
class Answer:
    """A whole response."""

    status: int
    headers: dict[str, str]
    body: bytes
    reusable: bool


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    """Read one response to its end; anything less than whole is an error."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError as error:
        raise BrokenResponseError("incomplete" if error.partial else "closed") from None
    except asyncio.LimitOverrunError:
        raise BrokenResponseError("malformed") from None
    first, *rows = head[:-4].split("\r\n")
    match = re.match(r"HTTP/1\.([01]) (\d{3})", first)
    if not match:
        raise BrokenResponseError("malformed")
    headers = {name.strip().lower(): value.strip() for name, _, value in (row.partition(":") for row in rows)}
    status, bounded = int(match[2]), True
    try:
        if headers.get("transfer-encoding", "").lower() == "chunked":
            body = await read_chunks(reader)
        elif "content-length" in headers:
            body = await reader.readexactly(min(int(headers["content-length"]), BODY_LIMIT))
        elif status in (204, 304):
            body = b""
        else:
            bounded, body = False, await reader.read(-1)
    except asyncio.IncompleteReadError:
        raise BrokenResponseError("incomplete") from None
    except ValueError:
        raise BrokenResponseError("malformed") from None
    reusable = bounded and match[1] == "1" and headers.get("connection", "").lower() != "close"
    return Answer(status, headers, body, reusable)


async def read_chunks(reader: asyncio.StreamReader) -> bytes:
    """Read a chunked body."""
    parts: list[bytes] = []
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        parts.append((await reader.readexactly(size + 2))[:-2])
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass
    return b"".join(parts)


async def exchange(settings: Settings, path: str) -> tuple[Answer, int]:
    """Send one request, read its answer. A kept connection that had gone stale is replaced once, as browsers do."""
    for attempt in (0, 1):
        reused = bool(settings.idle) and attempt == 0
        if reused:
            reader, writer = settings.idle.pop()
        else:
            reader, writer = await asyncio.open_connection(
                settings.address, settings.port, family=settings.family, limit=HEAD_LIMIT
            )
        kept = False
        try:
            writer.write(settings.request(path))
            answer = await read_answer(reader)
            kept = settings.keep_alive and answer.reusable
            return answer, attempt
        except (BrokenResponseError, ConnectionError) as error:
            stale = isinstance(error, ConnectionError) or str(error) == "closed"
            if not (reused and stale):
                raise
        finally:
            if kept:
                settings.idle.append((reader, writer))
            else:
                writer.close()
    raise BrokenResponseError("closed")


def name_error(error: BaseException) -> str:
    """The class of a failure, in one word."""
    match error:
        case BrokenResponseError():
            return str(error)
        case TimeoutError():
            return "timeout"
        case ConnectionRefusedError():
            return "refused"
        case ConnectionResetError() | BrokenPipeError():
            return "reset"
        case _:
            return type(error).__name__


async def one(settings: Settings, n: int, due: float) -> None:
    """One request, from its start to its report."""
    path = settings.paths[n % len(settings.paths)]
    start, wall = time.monotonic(), time.time()
    line: dict[str, Any] = {"n": n, "path": path, "due": due, "start": start, "wall": wall}
    try:
        async with asyncio.timeout(settings.timeout):
            answer, retried = await exchange(settings, path)
        line["end"] = time.monotonic()
        line["status"] = answer.status
        line["release"] = answer.headers.get("x-release")
        if retried:
            line["retried"] = retried
        if settings.capture and (found := settings.capture.search(answer.body.decode(errors="replace"))):
            line["mark"] = found[1] if found.groups() else found[0]
    except (OSError, BrokenResponseError, ValueError) as error:
        line["end"] = time.monotonic()
        line["error"] = name_error(error)
    report(line)


async def input_ended(stop: asyncio.Event) -> None:
    """Set the event when whoever started this closes the pipe, or is gone."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.read(4096):
        pass
    stop.set()


async def generate(settings: Settings, leashed: bool) -> None:
    """Send on schedule until the time is over, or until told to stop."""
    stop = asyncio.Event()
    leash = asyncio.create_task(input_ended(stop)) if leashed else None
    loop = asyncio.get_running_loop()
    begin = loop.time() + 0.02
    report({"started": begin, "wall": time.time()})
    out: set[asyncio.Task[None]] = set()
    for n in range(max(1, round(settings.rate * settings.seconds))):
        due = begin + n / settings.rate
        if (pause := due - loop.time()) > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), pause)
        if stop.is_set():
            break
        if len(out) >= IN_FLIGHT_LIMIT:
            now = time.monotonic()
            report({"n": n, "path": "", "due": due, "start": now, "end": now, "wall": time.time(), "error": "overload"})
            continue
        task = asyncio.create_task(one(settings, n, due))
        out.add(task)
        task.add_done_callback(out.discard)
        if pause <= 0:
            await asyncio.sleep(0)
    if out:
        await asyncio.wait(out)
    for _, writer in settings.idle:
        writer.close()
    if leash:
        leash.cancel()


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, Settings]:
    """The command line, and what follows from it."""
    parser = argparse.ArgumentParser(description="An open-loop HTTP load.")
    parser.add_argument("--url", required=True)
    parser.add_argument("--rate", type=float, default=100)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--path", action="append", default=[], help="instead of the URL's own; several take turns")
    parser.add_argument("--host", default="", help="the Host header")
    parser.add_argument("--timeout", type=float, default=15)
    parser.add_argument("--keep-alive", action="store_true")
    parser.add_argument("--capture", default="", help="a pattern to find in each body")
    parser.add_argument("--json", action="store_true", help="the figures as JSON")
    parser.add_argument("--stream", action="store_true", help="every request as a line; ends when the input does")
    options = parser.parse_args(arguments)
    parts = urlsplit(options.url)
    if parts.scheme != "http" or not parts.hostname:
        parser.error("the URL must be http://HOST[:PORT]/PATH")
    if not (0 < options.rate <= 5000 and 0 < options.seconds <= 3600):
        parser.error("the rate must be at most 5000 a second, the time at most 3600 seconds")
    # Looked up once: a lookup for every request would be measured as the service's own time.
    family, *_, where = socket.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_STREAM)[0]
    query = f"?{parts.query}" if parts.query else ""
    settings = Settings(
        address=str(where[0]),
        port=int(where[1]),
        family=int(family),
        paths=tuple(options.path) or ((parts.path or "/") + query,),
        host=options.host or parts.netloc,
        rate=options.rate,
        seconds=options.seconds,
        timeout=options.timeout,
        keep_alive=options.keep_alive,
        capture=re.compile(options.capture) if options.capture else None,
    )
    return options, settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a load; with ``--stream`` as a child of a test, otherwise by hand."""
    options, settings = parse(arguments)
    if options.stream:
        # What is measured may use every core; the clock must not wait for it.
        with contextlib.suppress(OSError):
            os.nice(-10)
        gc.disable()
        asyncio.run(generate(settings, leashed=True))
        return 0
    given = list(sys.argv[1:] if arguments is None else arguments)
    child = Child("support.load", [*(word for word in given if word != "--json"), "--stream"])
    child.start()
    child.wait(lambda: not child.running, settings.seconds + settings.timeout + 5)
    summary = LoadReport.of(child.stop()).as_dict()
    if options.json:
        print(json.dumps(summary, indent=2))
    else:
        for name in ("requests", "failed", "worst", "p50", "p99"):
            print(f"{name:10} {summary[name]}")
    return 1 if summary["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
