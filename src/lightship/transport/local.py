"""The agent as a process of this machine, and its pipes as the way to it."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from pathlib import Path

from lightship.errors import TransportError
from lightship.transport.base import MAX_LINE, Channel
from lightship.transport.launch import launch

__all__ = ["LocalChannel", "LocalTransport"]

_KEPT_STDERR = 64 * 1024


class LocalTransport:
    """Starts ``python -I -S AGENT`` with the interpreter that runs lightship."""

    def __init__(self, agent: Path, *, server: str = "local", python: str = sys.executable) -> None:
        self._agent = agent
        self._server = server
        self._python = python

    @property
    def server(self) -> str:
        """The server's name, as the configuration has it."""
        return self._server

    async def open(self) -> LocalChannel:
        """Start the agent."""
        try:
            process = launch(self._agent, self._python)
        except OSError as error:
            raise TransportError(f"cannot start the agent on {self._server}: {error}") from error
        return await LocalChannel.connect(process)


class LocalChannel(Channel):
    """The three pipes of an agent's process."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        reader: asyncio.StreamReader,
        errors: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        pipes: list[asyncio.ReadTransport],
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._pipes = pipes
        self._stderr = bytearray()
        self._drain = asyncio.create_task(self._keep_stderr(errors))

    @classmethod
    async def connect(cls, process: subprocess.Popen[bytes]) -> LocalChannel:
        """Take the pipes of a process that was just started."""
        loop = asyncio.get_running_loop()
        readers, pipes = [], []
        for stream in (process.stdout, process.stderr):
            reader = asyncio.StreamReader(limit=MAX_LINE)
            pipe, _ = await loop.connect_read_pipe(
                lambda reader=reader: asyncio.StreamReaderProtocol(reader),  # type: ignore[misc]
                stream,
            )
            readers.append(reader)
            pipes.append(pipe)
        sink, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, process.stdin)
        writer = asyncio.StreamWriter(sink, protocol, None, loop)
        return cls(process, readers[0], readers[1], writer, pipes)

    async def _keep_stderr(self, errors: asyncio.StreamReader) -> None:
        while chunk := await errors.read(65536):
            self._stderr += chunk
            del self._stderr[:-_KEPT_STDERR]

    async def send(self, line: bytes) -> None:
        """Send one line."""
        try:
            self._writer.write(line + b"\n")
            await self._writer.drain()
        except (ConnectionError, OSError, RuntimeError) as error:
            await self._settle()
            raise TransportError(f"the agent does not listen any more: {error}") from error

    async def receive(self) -> bytes | None:
        """The next line, or ``None`` at the end."""
        try:
            line = await self._reader.readuntil(b"\n")
        except asyncio.IncompleteReadError:
            await self._settle()
            return None
        except asyncio.LimitOverrunError as error:
            raise TransportError(
                f"the agent sent a line of more than {MAX_LINE // 1024**2} MiB", code="protocol"
            ) from error
        except (ConnectionError, OSError) as error:
            raise TransportError(f"the connection to the agent broke: {error}") from error
        return line[:-1]

    async def _settle(self) -> None:
        """Give the last words a moment to arrive."""
        with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._drain), 0.5)

    async def close(self, patience: float) -> int | None:
        """End the agent's input and wait for it; one that needs longer is left to finish by itself."""
        with contextlib.suppress(ConnectionError, OSError, RuntimeError):
            self._writer.close()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience
        pause = 0.002
        while (status := self._process.poll()) is None and loop.time() < deadline:
            # Read on, so that an agent with much to say is not held up by a full pipe.
            with contextlib.suppress(TimeoutError, asyncio.TimeoutError, ConnectionError, OSError):
                if not await asyncio.wait_for(self._reader.read(65536), pause):
                    await asyncio.sleep(pause)
            pause = min(pause * 1.5, 0.1)
        self._drain.cancel()
        for pipe in self._pipes:
            pipe.close()
        if status is None:
            # Not waited for on purpose; without this the interpreter warns that a process still runs.
            self._process.returncode = 0
        return status

    def last_words(self) -> str:
        """The last line of the agent's standard error."""
        lines = bytes(self._stderr).decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else ""
