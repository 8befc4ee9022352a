"""A program of ours in a process of its own, that reports lines of JSON and ends when its input does.

Measuring happens beside the thing that is measured, never in the same process: the test's own work would show up as
the service's delay. The input pipe is the leash: when the test ends in whatever way, the pipe closes and the program
ends too.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent


class Child:
    """Runs ``python -m MODULE ARGUMENTS`` and gathers what it reports."""

    def __init__(self, module: str, arguments: Sequence[str]) -> None:
        self.module = module
        self.arguments = list(arguments)
        self.reports: list[dict[str, Any]] = []
        self._news = threading.Condition()
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None

    def start(self, timeout: float = 15) -> dict[str, Any]:
        """Start it, and wait for its first report."""
        path = os.pathsep.join(part for part in (str(TESTS), os.environ.get("PYTHONPATH", "")) if part)
        self._process = subprocess.Popen(
            [sys.executable, "-m", self.module, *self.arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
        )
        self._reader = threading.Thread(target=self._read, name=self.module, daemon=True)
        self._reader.start()
        if not self.wait(lambda: bool(self.reports), timeout):
            self.kill()
            raise RuntimeError(f"{self.module} did not start within {timeout} s")
        return self.reports[0]

    def _read(self) -> None:
        process = self._process
        if process is None or process.stdout is None:
            return
        for line in process.stdout:
            with self._news:
                self.reports.append(json.loads(line))
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    @property
    def running(self) -> bool:
        """Whether it still runs."""
        return self._process is not None and self._process.poll() is None

    def wait(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Wait until the reports are as asked for; whether they came to be."""
        deadline = time.monotonic() + timeout
        with self._news:
            while not condition():
                left = deadline - time.monotonic()
                if left <= 0 or (not self.running and not self._reading()):
                    return condition()
                self._news.wait(min(left, 0.5))
        return True

    def _reading(self) -> bool:
        return self._reader is not None and self._reader.is_alive()

    def stop(self, timeout: float = 60) -> list[dict[str, Any]]:
        """Tell it to end, wait until it has, and give all that it reported."""
        process = self._process
        if process is None:
            return self.reports
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise RuntimeError(f"{self.module} did not end within {timeout} s") from None
        if self._reader is not None:
            self._reader.join(timeout)
        if process.stdout is not None:
            process.stdout.close()
        self._process = None
        if status:
            raise RuntimeError(f"{self.module} ended with status {status}")
        return self.reports

    def kill(self) -> None:
        """End it at once, whatever it is doing."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        if self._reader is not None:
            self._reader.join(5)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def report(value: dict[str, Any]) -> None:
    """What the program in the child process calls to report one line."""
    sys.stdout.write(json.dumps(value, separators=(",", ":")) + "\n")
    sys.stdout.flush()
