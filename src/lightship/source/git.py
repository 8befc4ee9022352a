"""Runs git on the controller: an argument list, never a shell; killed with all that it started when nobody waits."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence

from lightship.errors import RefusedError
from lightship_agent.records import dataclass

__all__ = ["Ran", "run"]

_KEPT_ERRORS = 64 * 1024
_GONE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Ran:
    """A git that has ended."""

    status: int
    output: bytes
    errors: str


async def run(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    timeout: float,
    data: bytes = b"",
    into: int | None = None,
    most: int | None = None,
) -> Ran:
    """Run git to its end; ``TimeoutError`` after so many seconds.

    It reads ``data``. Its output is kept (``most`` bytes of it), or goes to the file with the descriptor ``into``.
    """
    starting = asyncio.create_task(
        asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE if data else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE if into is None else into,
            stderr=asyncio.subprocess.PIPE,
            env=dict(environment),
            start_new_session=True,
        )
    )
    try:
        process = await asyncio.shield(starting)
    except FileNotFoundError as error:
        raise RefusedError("git is not installed here", hint="install git", code="no-git") from error
    except asyncio.CancelledError:
        # By itself asyncio would end git alone, and then wait for what that has started.
        with contextlib.suppress(OSError):
            await _end(await starting)
        raise
    try:
        async with asyncio.timeout(timeout):
            output, errors = await process.communicate(data or None)
    finally:
        await _end(process)
    text = errors[-_KEPT_ERRORS:].decode("utf-8", "replace")
    return Ran(process.returncode or 0, (output or b"")[:most], text)


async def _end(process: asyncio.subprocess.Process) -> None:
    """End it with all that it started, if it has not ended."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_GONE_SECONDS):
            await process.communicate()
