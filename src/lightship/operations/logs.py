"""The container's output, and commands inside it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from lightship.errors import LightshipError, RefusedError
from lightship.operations.context import Context
from lightship.operations.fleet import at_most, sessions
from lightship.result import ExecResult, ServerExec
from lightship.rollout import Session
from lightship.rollout.events import Note

__all__ = ["execute", "logs"]


async def logs(context: Context, *, lines: int, follow: bool) -> None:
    """The last lines that the service wrote, and with ``follow`` what it writes from now on, as ``LogLine`` events.

    A server that cannot tell is named in a ``Note`` while the others go on, and in the error at the end.
    """
    wanted = context.names
    hello = context.hello(why="logs", lock=False)

    async def one(server: str) -> LightshipError | None:
        session = Session(context.connect(server), hello, context.emit)
        try:
            await session.open()
            await session.call("logs", {"lines": lines, "follow": follow})
            await session.bye()
        except LightshipError as error:
            if len(wanted) > 1:
                context.emit(Note(server, error.message))
            return error
        finally:
            await session.close(0.5 if follow else 5.0)
        return None

    # Whoever follows is there for as long as the others are.
    found = await at_most(one, wanted, len(wanted)) if follow else await at_most(one, wanted)
    errors = [(server, error) for server, error in zip(wanted, found, strict=True) if error is not None]
    if len(wanted) == 1 and errors:
        raise errors[0][1]
    if errors:
        server, error = errors[0]
        raise RefusedError(
            f"{len(errors)} of {len(wanted)} servers could not tell; {server}: {error.message}",
            hint=error.hint,
            code=error.code,
            detail={"servers": {name: found.message for name, found in errors}},
        )


async def execute(context: Context, command: Sequence[str]) -> ExecResult:
    """Run a command in the current release on every server; its output comes as ``LogLine`` events.

    It begins only when all servers are there. One on which it cannot be run ends as the exit status says, and the
    others go on.
    """
    wanted = context.names

    async def one(session: Session) -> ServerExec:
        try:
            answer = await session.call("exec", {"command": list(command), "tty": False})
        except LightshipError as error:
            if len(wanted) == 1:
                raise
            context.emit(Note(session.server, error.message))
            return ServerExec(session.server, error.exit_status, error)
        status = answer.get("status")
        return ServerExec(session.server, status if isinstance(status, int) else 1)

    async with sessions(context, context.hello(why="exec", lock=False), servers=wanted) as opened:
        return ExecResult(context.service.name, tuple(await asyncio.gather(*map(one, opened))))
