"""Conversations with the servers of a service: how many at once, and what becomes of those that cannot be had."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from lightship.errors import LightshipError, UsageError
from lightship.model import short
from lightship.rollout import Session, is_unreachable
from lightship.rollout.events import Emit, Note, Took
from lightship_agent.records import dataclass, field

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from lightship.operations.context import Context
    from lightship.rollout import Hello

__all__ = ["AT_ONCE", "SKIP_HINT", "Opened", "at_most", "make_room", "named", "opened_sessions", "sessions", "settle"]

#: So many servers are connected to, or asked for what costs them or the git host some work, at once.
AT_ONCE = 100
_NAMED = 5
#: A connection takes a socket, or the three pipes of an agent on this machine.
_FILES_EACH, _OWN_FILES = 3, 100
_T = TypeVar("_T")
_R = TypeVar("_R")
SKIP_HINT = (
    "nothing was changed; to go on without those servers: --skip-unreachable (the next deploy brings them level)"
)


@dataclass(slots=True)
class Opened:
    """The servers that are there, and those that could not be reached, with the reason."""

    sessions: list[Session]
    unreachable: dict[str, LightshipError] = field(default_factory=dict)


async def at_most(work: Callable[[_T], Coroutine[Any, Any, _R]], items: Sequence[_T], most: int = AT_ONCE) -> list[_R]:
    """The work for each item, so many at once; the first error ends the others."""
    places = asyncio.Semaphore(most)

    async def one(item: _T) -> _R:
        async with places:
            return await work(item)

    tasks = [asyncio.ensure_future(one(item)) for item in items]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        await settle(*tasks)
        raise


async def settle(*tasks: asyncio.Future[Any]) -> None:
    """Stop tasks that nobody needs any more."""
    for task in tasks:
        task.cancel()
    with suppress(BaseException):
        await asyncio.gather(*tasks, return_exceptions=True)


def make_room(count: int) -> None:
    """See to it that so many connections can be open: a process may have 1024 files until it asks for more."""
    import resource  # noqa: PLC0415

    needed = _OWN_FILES + count * _FILES_EACH
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise UsageError(
            f"{count} servers at once need {needed} open files, and this machine allows {hard}",
            hint=f"raise the limit (`ulimit -Hn {needed}` as root, or LimitNOFILE= of systemd), or name fewer servers",
            code="too-many-servers",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


@asynccontextmanager
async def opened_sessions(
    context: Context, hello: Hello, *, servers: Sequence[str] = (), skip: bool = False
) -> AsyncIterator[Opened]:
    """Conversations with all servers. One that cannot be had ends the others, or with ``skip`` is left out.

    On the way out each is ended: with ``bye`` when all went well, else as it stands (the agent undoes or finishes).
    """
    make_room(len(servers or context.servers))
    every = [Session(context.connect(name), hello, context.emit) for name in servers or context.names]
    found = await at_most(_open, every)
    there = [session for session, error in zip(every, found, strict=True) if error is None]
    opened = Opened(there)
    try:
        errors = [(session, error) for session, error in zip(every, found, strict=True) if error is not None]
        if errors and not (skip and there and all(is_unreachable(error) for _, error in errors)):
            raise named(errors, len(every))
        for session, error in errors:
            _leave_out(opened, session, error, context.emit)
        for session in there:
            _tell_recovered(session, context.emit)
        yield opened
    except BaseException:
        await asyncio.gather(*(session.close() for session in there), return_exceptions=True)
        raise
    began, keep = time.perf_counter(), context.parting()
    await asyncio.gather(*(session.bye(keep(session.server)) for session in there), return_exceptions=True)
    context.emit(Took("", "bye", time.perf_counter() - began))


@asynccontextmanager
async def sessions(context: Context, hello: Hello, *, servers: Sequence[str] = ()) -> AsyncIterator[list[Session]]:
    """Conversations with all servers, or an error."""
    async with opened_sessions(context, hello, servers=servers) as opened:
        yield opened.sessions


async def _open(session: Session) -> LightshipError | None:
    try:
        await session.open()
    except LightshipError as error:
        return error
    return None


def _leave_out(opened: Opened, session: Session, error: LightshipError, emit: Emit) -> None:
    opened.unreachable[session.server] = error
    emit(Note(session.server, f"left out, since it cannot be reached: {error.message}"))


def named(errors: list[tuple[Session, LightshipError]], count: int) -> LightshipError:
    """The error that tells most; with several servers it names all that it is about."""
    session, error = next((one for one in errors if not is_unreachable(one[1])), errors[0])
    if count == 1:
        return error
    message = error.on(session.server).message
    hint, detail = error.hint, dict(error.detail)
    if is_unreachable(error):
        hint = f"{hint}; {SKIP_HINT}" if hint else SKIP_HINT
        detail["unreachable"] = {one.server: found.message for one, found in errors}
    if len(errors) > 1:
        names = [one.server for one, _ in errors]
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        message = f"{len(errors)} of {count} servers failed ({', '.join(names[:_NAMED])}{more}); {message}"
    return type(error)(message, hint=hint, code=error.code, detail=detail)


def _tell_recovered(session: Session, emit: Emit) -> None:
    if session.recovered:
        found = session.recovered
        commit, outcome = str(found.get("commit") or ""), str(found.get("outcome") or "put in order")
        ended = {"done": "finished", "aborted": "undone"}.get(outcome, outcome)
        reason = f" ({found['reason']})" if found.get("reason") else ""
        emit(Note(session.server, f"an earlier rollout of {short(commit)} was cut off; it has been {ended}{reason}"))
