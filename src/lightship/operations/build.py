"""Build the image of a commit, and push it: all of a container deploy that can be done before it."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from lightship.errors import LightshipError, UsageError
from lightship.image import Distribution, Ready
from lightship.model import Change
from lightship.operations.context import Context, Redactor
from lightship.operations.deploy import Wanted, build_secrets, known_commit
from lightship.operations.fleet import opened_sessions
from lightship.operations.images import SessionPlace
from lightship.operations.requests import desired_state, inspect_args, wanted_image
from lightship.result import BuildResult
from lightship.rollout import as_refusal
from lightship_agent.records import replace

if TYPE_CHECKING:
    from lightship.rollout import Session
    from lightship.source.remote import Resolved

__all__ = ["build"]


async def build(context: Context, wanted: Wanted, started: float) -> BuildResult:
    """Have the image of a ref on the first server, and in the registry if there is one. Nothing is deployed."""
    if isinstance(context.service.image, str):
        raise UsageError(
            f"the image of {context.service.name} is built elsewhere: {context.service.image}",
            hint="`image:` with `dockerfile:` has lightship build one",
            code="nothing-to-build",
        )
    redactor = Redactor(context.emit)
    context = replace(context, emit=redactor)
    what = wanted.commit or wanted.ref or context.service.branch
    hello = context.hello(why=f"build {what}", lock=True, wait=wanted.wait)
    try:
        async with opened_sessions(context, hello, servers=context.names[:1]) as opened:
            resolved = await known_commit(context, wanted, opened.sessions)
            return await _build(context, opened.sessions[0], resolved, redactor, started)
    except LightshipError as error:
        found = as_refusal(error)
        raise redactor.clean_error(found) or found from None


async def _build(
    context: Context, session: Session, resolved: Resolved, redactor: Redactor, started: float
) -> BuildResult:
    service = context.service
    answer = await session.call("inspect", inspect_args(service, resolved.ref, resolved.commit, None))
    change = Change.from_json(answer)
    desired = desired_state(service, change, session.facts)
    image = wanted_image(service, change.commit, desired)
    secrets = partial(build_secrets, context, redactor)
    found = await Distribution(image, [SessionPlace(session, context.emit)], secrets=secrets, certain=True).run()
    ready = found[session.server]
    if not isinstance(ready, Ready):
        raise ready
    return BuildResult(
        service=service.name,
        ref=resolved.ref,
        commit=change.commit,
        subject=change.subject,
        server=session.server,
        fingerprint=desired.fingerprint,
        image=image.name,
        image_id=ready.id,
        digest=ready.reference if "@" in ready.reference else "",
        built=ready.built,
        pushed=ready.pushed,
        warnings=tuple(redactor.clean(session.warnings)),
        seconds=time.perf_counter() - started,
    )
