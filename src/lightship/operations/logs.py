"""The container's output, and commands inside it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from lightship.operations.context import Context, sessions
from lightship.result import ExecResult, ServerExec
from lightship.rollout import Session

__all__ = ["execute", "logs"]


async def logs(context: Context, *, lines: int, follow: bool) -> None:
    """The last lines that the service wrote, and with ``follow`` what it writes from now on, as ``LogLine`` events."""
    async with sessions(context, context.hello(why="logs", lock=False)) as opened:
        await asyncio.gather(*(one.call("logs", {"lines": lines, "follow": follow}) for one in opened))


async def execute(context: Context, command: Sequence[str]) -> ExecResult:
    """Run a command in the current release on every server; its output comes as ``LogLine`` events."""

    async def one(session: Session) -> ServerExec:
        answer = await session.call("exec", {"command": list(command), "tty": False})
        status = answer.get("status")
        return ServerExec(session.server, status if isinstance(status, int) else 1)

    async with sessions(context, context.hello(why="exec", lock=False)) as opened:
        return ExecResult(context.service.name, tuple(await asyncio.gather(*map(one, opened))))
