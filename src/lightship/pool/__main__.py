"""The pool's process. It is started with a first request on its standard input, and ends by itself."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from lightship.pool import client, wire
from lightship.pool.pool import Pool
from lightship.transport.base import MAX_LINE

__all__ = ["main"]


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Whether this is the only pool at this place."""
    with path.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True


def _listen(path: Path) -> socket.socket:
    """The socket, which only this user can connect to."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(64)
    return listener


async def _serve(path: Path, first: bytes) -> None:
    listener = _listen(path)
    pool = Pool(path)
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(name, pool.end)
    async with await asyncio.start_unix_server(pool.answer, sock=listener, limit=MAX_LINE + 1024):
        await pool.run(wire.answer_of(first))


def main() -> int:
    """Keep connections until nobody has used them for long enough."""
    os.umask(0o077)
    first = sys.stdin.buffer.read()
    path = wire.place()
    with _alone(path) as alone:
        if alone:
            asyncio.run(_serve(path, first))
            return 0
    client.ask(wire.answer_of(first))  # another one was faster
    return 0


if __name__ == "__main__":
    sys.exit(main())
