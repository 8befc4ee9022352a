"""What the servers run: expected, on disk, and loaded by each worker; and the releases they have."""

from __future__ import annotations

import asyncio

from lightship.errors import LightshipError
from lightship.model import Container
from lightship.operations.context import Context
from lightship.operations.drift import drift, expected_release
from lightship.operations.fleet import at_most, sessions
from lightship.result import ReleasesResult, ServerReleases, ServerStatus, StatusResult
from lightship.rollout import Session
from lightship.source.remote import resolve

__all__ = ["releases", "server_status", "status"]

_GIT_SECONDS = 5.0


async def status(context: Context) -> StatusResult:
    """Look at every server; one that cannot be reached is told of, and so is a git server that cannot."""
    service = context.service
    head = asyncio.create_task(_head(context))
    servers = await at_most(lambda server: _one(context, server), context.names)
    commit, error = await head
    reached = [one for one in servers if one.facts is not None]
    return StatusResult(
        service.name, service.branch, commit, error, tuple(servers), expected_release(reached), drift(servers)
    )


async def _head(context: Context) -> tuple[str | None, str]:
    try:
        found = await resolve(context.service.repository, context.service.branch, timeout=_GIT_SECONDS)
    except LightshipError as error:
        return None, error.message
    return found.commit, ""


async def _one(context: Context, server: str) -> ServerStatus:
    session = Session(context.connect(server), context.hello(why="status", lock=False), context.emit)
    try:
        await session.open()
        await session.bye()
    except LightshipError as error:
        return ServerStatus(server, None, None, (), None, error)
    return server_status(session)


def server_status(session: Session) -> ServerStatus:
    """What one server runs, by what it said when the conversation was opened."""
    facts, server = session.facts, session.server
    image = _image(facts.container) if facts.container is not None else ""
    return ServerStatus(
        server, facts.stable, facts.current, facts.loaded, facts, image=image, environment=facts.env_digest or ""
    )


def _image(container: Container) -> str:
    """What the container's image is known by everywhere.

    The name of one that was built without a registry holds the fingerprint of what it was built from. Any other has the
    same id wherever it is, and a name that may have moved, or may be one by its digest here and one by its tag there.
    """
    if container.image.startswith("lightship/"):
        return container.image
    head, slash, last = container.image.partition("@")[0].rpartition("/")
    name = f"{head}{slash}{last.partition(':')[0]}"
    return f"{name}@{container.image_id.removeprefix('sha256:')[:12]}" if container.image else ""


async def releases(context: Context) -> ReleasesResult:
    """The releases on every server."""
    async with sessions(context, context.hello(why="releases", lock=False)) as opened:
        found = [
            ServerReleases(one.server, one.facts.current, one.facts.stable, one.facts.previous, one.facts.releases)
            for one in opened
        ]
    return ReleasesResult(context.service.name, tuple(found))
