"""How a commit comes to the servers: each fetches it (``source: pull``), or this machine sends it (``source: push``).

A commit that is sent is fetched into a mirror here (``source.mirror``) while the servers are being connected to. Each
server says what it has; servers that have the same get the same pack, which is made once.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Hashable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from lightship.errors import LightshipError
from lightship.operations.fleet import settle
from lightship.rollout.events import Note, StepDone, StepFailed, StepStarted

if TYPE_CHECKING:
    from lightship.operations.context import Context
    from lightship.rollout import Session
    from lightship.source.mirror import Pack, SourceMirror
    from lightship.source.remote import Resolved

__all__ = ["PIECE", "Code", "Pulled", "Pushed", "code_for"]

#: Bytes of a pack in one line of the conversation.
PIECE = 256 * 1024
#: So many lines are under way to a server before one is answered: a long way is not to be waited for at each.
_UNDER_WAY = 4
#: So many servers are sent to at once; more would only have each of them wait longer, and cost memory.
_SENDING = 32
_T = TypeVar("_T")


class Code(Protocol):
    """Brings a commit to servers."""

    async def bring(self, session: Session, resolved: Resolved) -> None:
        """See to it that ``inspect`` finds the commit on this server, or can fetch it."""


class Pulled:
    """``source: pull``: the server does it itself, when it inspects the commit."""

    async def bring(self, session: Session, resolved: Resolved) -> None:
        """Nothing is to be done here."""


class Pushed:
    """``source: push``."""

    def __init__(self, context: Context, mirror: SourceMirror) -> None:
        self._context = context
        self._mirror = mirror
        self._once: dict[Hashable, asyncio.Task[Any]] = {}
        self._packs: list[Pack] = []
        self._places = asyncio.Semaphore(_SENDING)

    def fetch_soon(self, known: asyncio.Future[Resolved | None]) -> None:
        """Fetch what is most likely wanted, while the servers are being connected to."""
        self._once["soon"] = asyncio.create_task(self._fetch_known(known))

    async def _fetch_known(self, known: asyncio.Future[Resolved | None]) -> None:
        # What goes wrong is told to whoever needs the commit.
        with contextlib.suppress(LightshipError):
            resolved = await asyncio.shield(known)
            if resolved is not None:
                await self._fetched(resolved)

    async def bring(self, session: Session, resolved: Resolved) -> None:
        """Send the server what it lacks of the commit."""
        commit = resolved.commit
        answer = await session.call("receive", {"part": "ask", "commit": commit})
        if answer.get("has") is True:
            return
        await self._only_once(("waited for", commit), lambda: self._waited_for(resolved))
        haves = _commits(answer)
        pack = await self._only_once(("pack for", commit, haves), lambda: self._pack(commit, haves))
        async with self._places:
            with session.step("push") as detail:
                detail["bytes"] = pack.size
                await _send(session, pack)

    async def close(self) -> None:
        """End what nobody waits for any more, and give the packs' files back."""
        await settle(*self._once.values())
        for pack in self._packs:
            pack.file.close()

    async def tidy(self) -> None:
        """After all work: remove from the cache here what no command has used for long."""
        await self._mirror.tidy()

    async def _fetched(self, resolved: Resolved) -> None:
        await self._only_once(("fetch", resolved.commit), lambda: self._mirror.bring(resolved))

    async def _waited_for(self, resolved: Resolved) -> None:
        """Tell of the fetch as a step, as far as a server has to wait for it."""
        started = time.monotonic()
        self._context.emit(StepStarted("", "fetch"))
        try:
            await self._fetched(resolved)
        except LightshipError:
            self._context.emit(StepFailed("", "fetch", time.monotonic() - started))
            raise
        self._context.emit(StepDone("", "fetch", time.monotonic() - started))

    async def _pack(self, commit: str, haves: frozenset[str]) -> Pack:
        basis = await self._mirror.basis(sorted(haves))
        return await self._only_once(("pack", commit, basis), lambda: self._made(commit, basis))

    async def _made(self, commit: str, basis: tuple[str, ...]) -> Pack:
        pack = await self._mirror.pack(commit, basis)
        self._packs.append(pack)
        return pack

    async def _only_once(self, name: Hashable, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Do it, or wait for the one who does; whoever stops waiting stops nobody else."""
        if name not in self._once:
            self._once[name] = asyncio.create_task(work())
        found: _T = await asyncio.shield(self._once[name])
        return found


def _commits(answer: Mapping[str, Any]) -> frozenset[str]:
    """What the server has. Of what it says only whole commit ids reach git."""
    from lightship.source.remote import is_commit  # noqa: PLC0415
    from lightship_agent.protocol import MOST_HAVES  # noqa: PLC0415

    given = answer.get("commits")
    found = [one for one in given if isinstance(one, str) and is_commit(one)] if isinstance(given, list) else []
    return frozenset(found[:MOST_HAVES])


def _parts(pack: Pack) -> Iterator[dict[str, Any]]:
    yield {"part": "begin", "commit": pack.commit, "size": pack.size}
    for start in range(0, pack.size, PIECE):
        data = base64.b64encode(pack.piece(start, PIECE)).decode("ascii")
        yield {"part": "data", "commit": pack.commit, "data": data}
    yield {"part": "end", "commit": pack.commit}


async def _send(session: Session, pack: Pack) -> None:
    """The parts in their order, some of them under way at once; the first error ends it."""
    waiting: deque[asyncio.Task[Any]] = deque()
    try:
        for args in _parts(pack):
            if len(waiting) >= _UNDER_WAY:
                await waiting.popleft()
            waiting.append(asyncio.create_task(session.call("receive", args)))
        while waiting:
            await waiting.popleft()
    finally:
        await settle(*waiting)


@contextlib.asynccontextmanager
async def code_for(context: Context, known: asyncio.Future[Resolved | None] | None = None) -> AsyncIterator[Code]:
    """The way that is configured. ``known`` is what is most likely to be wanted."""
    if context.service.source == "pull":
        yield Pulled()
        return
    from lightship.source.mirror import SourceMirror  # noqa: PLC0415

    code = Pushed(context, SourceMirror(context.service.repository, tell=lambda text: context.emit(Note("", text))))
    if known is not None:
        code.fetch_soon(known)
    try:
        yield code
    finally:
        await code.close()
    await code.tidy()
