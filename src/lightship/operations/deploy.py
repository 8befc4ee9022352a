"""Deploy a ref: resolve it once, see what it changes, plan, roll out. ``plan`` stops before the rollout."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from lightship.errors import LightshipError, RefusedError, UsageError
from lightship.model import Change, Desired, Plan, short
from lightship.operations.code import Code, code_for
from lightship.operations.context import Context, Redactor
from lightship.operations.fleet import Opened, at_most, named, opened_sessions, settle
from lightship.operations.images import images_for
from lightship.operations.requests import (
    container_args,
    desired_state,
    inspect_args,
    planned_shape,
    prepare_args,
    wanted_image,
)
from lightship.operations.rolling import Rolling, back_args, finish, finishing_seconds, gravest_kind
from lightship.plan import make_plan, migrate_once
from lightship.plan.planner import Override
from lightship.result import PlanResult
from lightship.rollout import Images, Order, RolloutResult, Session, as_refusal, is_unreachable
from lightship.rollout.events import PlanMade, StepDone, StepStarted, Took
from lightship.source.remote import Resolved, check_ref, is_commit, resolve
from lightship_agent.records import dataclass, field, replace

if TYPE_CHECKING:
    from lightship.config.schema import SecretSource
    from lightship.config.secrets import Secret

__all__ = [
    "Planned",
    "Wanted",
    "build_secrets",
    "check_commit",
    "check_wanted",
    "deploy",
    "known_commit",
    "known_ref",
    "order_for",
    "plan",
    "plan_server",
    "service_secrets",
]

#: A lock that was waited for this long may have let a newer push pass: the ref is asked for again.
_STALE_SECONDS = 2.0
_PLAN_WAIT = 10.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user asked for."""

    ref: str | None = None
    commit: str | None = None
    kind: Override | None = None
    retry: bool = False
    wait: float = 0.0
    take_over: bool = False
    rolling: Rolling = field(default_factory=Rolling)


@dataclass(frozen=True, slots=True)
class Planned:
    """One server with its plan."""

    session: Session
    plan: Plan
    desired: Desired


async def plan(context: Context, wanted: Wanted) -> PlanResult:
    """What a deploy would do, without a lock and without doing it."""
    check_wanted(wanted)
    known = await known_ref(context, wanted)
    env = {**context.service.env, **_revealed(await service_secrets(context))}
    async with code_for(context) as code:
        try:
            resolved, planned = await _plan_once(context, code, known, env, wanted, lock=False)
        except LightshipError as error:
            if error.code != "no-lock":
                raise
            # The commit is not on a server yet: fetching it there needs the lock, for as long as that takes.
            resolved, planned = await _plan_once(context, code, known, env, wanted, lock=True)
    change = planned[0].plan.change
    return PlanResult(
        service=context.service.name,
        ref=resolved.ref,
        commit=resolved.commit,
        subject=change.subject,
        kind=gravest_kind([one.plan for one in planned]),
        plans=tuple((one.session.server, one.plan) for one in planned),
        source=context.service.source,
    )


async def _plan_once(
    context: Context, code: Code, known: Resolved | None, env: Mapping[str, str], wanted: Wanted, *, lock: bool
) -> tuple[Resolved, list[Planned]]:
    hello = context.hello(why="plan", lock=lock, wait=_PLAN_WAIT if lock else 0.0)
    async with opened_sessions(context, hello, skip=wanted.rolling.skip_unreachable) as opened:
        resolved = known or _from_releases(opened.sessions, wanted.commit or "")
        return resolved, await _plan_all(context, opened, code, resolved, env, wanted)


async def deploy(context: Context, wanted: Wanted, started: float) -> RolloutResult:
    """Bring a ref to the service's servers. Raises for what ends it before the rollout; else the result says all."""
    check_wanted(wanted)
    redactor = Redactor(context.emit)
    context = replace(context, emit=redactor)
    what = wanted.commit or wanted.ref or context.service.branch
    hello = context.hello(why=f"deploy {what}", lock=True, wait=wanted.wait, take_over=wanted.take_over)
    began = time.monotonic()
    context.emit(StepStarted("", "connect"))
    known = asyncio.create_task(known_ref(context, wanted))
    secrets = asyncio.create_task(service_secrets(context))
    try:
        async with (
            code_for(context, known) as code,
            opened_sessions(context, hello, skip=wanted.rolling.skip_unreachable) as opened,
        ):
            resolved = await known
            context.emit(StepDone("", "connect", time.monotonic() - began))
            if resolved is not None and resolved.kind != "commit" and time.monotonic() - began > _STALE_SECONDS:
                resolved = await known_ref(context, wanted)
            resolved = resolved or _from_releases(opened.sessions, wanted.commit or "")
            values = await secrets
            redactor.learn(values.values())
            env = {**context.service.env, **_revealed(values)}
            planned = await _plan_all(context, opened, code, resolved, env, wanted)
            orders = [order_for(context, one, wanted, env, f"{what}") for one in planned]
            images = _images(context, planned, redactor, skip=wanted.rolling.skip_unreachable)
            result = await finish(context, orders, resolved, started, wanted.rolling, opened.unreachable, images)
    except LightshipError as error:
        found = as_refusal(error)
        raise redactor.clean_error(found) or found from None
    finally:
        await settle(known, secrets)
    for one in result.servers:
        redactor.clean_error(one.error)
    return replace(
        result, servers=tuple(replace(one, warnings=tuple(redactor.clean(one.warnings))) for one in result.servers)
    )


def check_commit(option: str, commit: str) -> None:
    """Refuse what cannot be a commit, not even in short."""
    from lightship.config.rules import COMMIT, RuleError  # noqa: PLC0415

    try:
        COMMIT(commit)
    except RuleError as error:
        raise UsageError(f"{option} {commit[:100]!r} {error.rule}", code="bad-commit") from error


def check_wanted(wanted: Wanted) -> None:
    """Refuse what cannot be, before a server or the git host hears of anything."""
    if wanted.commit is not None and wanted.ref is not None:
        raise UsageError("--ref and --commit exclude each other")
    if wanted.commit is not None:
        check_commit("--commit", wanted.commit)
    if wanted.ref is not None:
        check_ref(wanted.ref)
    wanted.rolling.check()


async def known_ref(context: Context, wanted: Wanted) -> Resolved | None:
    """The commit, as far as it can be known without a server; ``None`` for a commit given in short."""
    if wanted.commit is not None:
        return Resolved(context.service.branch, wanted.commit, "commit") if is_commit(wanted.commit) else None
    began = time.perf_counter()
    found = await resolve(context.service.repository, wanted.ref or context.service.branch)
    context.emit(Took("", "git host", time.perf_counter() - began))
    return found


async def known_commit(context: Context, wanted: Wanted, opened: Sequence[Session]) -> Resolved:
    """The commit that is meant, asked for at the git host or, when it was given in short, of the servers."""
    check_wanted(wanted)
    return await known_ref(context, wanted) or _from_releases(opened, wanted.commit or "")


def _from_releases(opened: Sequence[Session], text: str) -> Resolved:
    """A commit given in short, found among the releases that the servers have."""
    found = {one.commit for session in opened for one in session.facts.releases if one.commit.startswith(text)}
    if len(found) == 1:
        commit = found.pop()
        return Resolved(commit, commit, "commit")
    raise UsageError(
        f"{text} is {'no release' if not found else 'more than one release'} here",
        hint="give the commit in full (40 digits); `lightship releases` lists those that are here",
        code="no-such-release",
    )


def _images(context: Context, planned: Sequence[Planned], redactor: Redactor, *, skip: bool) -> Images | None:
    """What has the image ready on the servers. All want the same one: it follows from commit and configuration."""
    first = next((one for one in planned if one.plan.replaces_container), None)
    if first is None:
        return None
    image = wanted_image(context.service, first.plan.commit, first.desired)
    return images_for(image, partial(build_secrets, context, redactor), context.emit, skip=skip)


async def build_secrets(context: Context, redactor: Redactor) -> Mapping[str, str]:
    """The values of the secrets that the image's build needs, for the conversation alone."""
    image = context.service.image
    values = {} if isinstance(image, str) else await _resolved(context, image.secrets, lines=True)
    from lightship.config.secrets import parts  # noqa: PLC0415

    redactor.learn(part for value in values.values() for part in parts(value))
    return _revealed(values)


async def service_secrets(context: Context) -> Mapping[str, Secret]:
    """The values of the service's secrets; programs that print them run beside everything else."""
    return await _resolved(context, context.service.secrets)


async def _resolved(
    context: Context, sources: Mapping[str, SecretSource], *, lines: bool = False
) -> Mapping[str, Secret]:
    if not sources:
        return {}
    from lightship.config.secrets import resolve as resolve_secrets  # noqa: PLC0415
    from lightship.rollout.events import Note  # noqa: PLC0415

    loop = asyncio.get_running_loop()

    def warn(text: str) -> None:
        loop.call_soon_threadsafe(context.emit, Note("", text))

    return await asyncio.to_thread(resolve_secrets, sources, context.config.directory, warn=warn, lines=lines)


def _revealed(secrets: Mapping[str, Secret]) -> dict[str, str]:
    """For the conversation alone: the agent writes them to a file that only root reads."""
    return {name: secret.reveal() for name, secret in secrets.items()}


async def _plan_all(
    context: Context, opened: Opened, code: Code, resolved: Resolved, env: Mapping[str, str], wanted: Wanted
) -> list[Planned]:
    """A plan for each server. One that is lost meanwhile ends the command, or is left out like those before it."""
    seen: dict[str, Change] = {}

    async def one(session: Session) -> Planned | None:
        try:
            return await plan_server(context, session, code, resolved, env, wanted, seen)
        except LightshipError as error:
            if not (wanted.rolling.skip_unreachable and is_unreachable(error)):
                raise named([(session, error)], len(context.servers)) from None
            opened.unreachable[session.server] = error
            return None

    found = [made for made in await at_most(one, opened.sessions) if made is not None]
    if not found:
        raise next(iter(opened.unreachable.values()))
    plans = migrate_once([one.plan for one in found])
    planned = [replace(one, plan=plan) for one, plan in zip(found, plans, strict=True)]
    for one_of_them in planned:
        context.emit(PlanMade(one_of_them.session.server, one_of_them.plan))
    return planned


async def plan_server(
    context: Context,
    session: Session,
    code: Code,
    resolved: Resolved,
    env: Mapping[str, str],
    wanted: Wanted,
    seen: dict[str, Change] | None = None,
) -> Planned:
    """Have the commit on one server, see what it changes there, and plan that. ``seen``: what others answered."""
    await code.bring(session, resolved)
    began = time.perf_counter()
    answer = await session.call("inspect", inspect_args(context.service, resolved.ref, resolved.commit, env))
    context.emit(Took(session.server, "inspect", time.perf_counter() - began))
    change = _shared(Change.from_json(answer), answer, {} if seen is None else seen)
    return _planned(context, session, change, resolved, wanted)


def _shared(change: Change, answer: object, seen: dict[str, Change]) -> Change:
    """Servers of one fleet mostly answer the same: of ten thousand equal answers one is kept."""
    return seen.setdefault(json.dumps(answer, sort_keys=True), change)


def _planned(context: Context, session: Session, change: Change, resolved: Resolved, wanted: Wanted) -> Planned:
    if change.commit != resolved.commit:
        raise RefusedError(f"{session.server} fetched {short(change.commit)} and not {short(resolved.commit)}")
    service = context.service_on(session.server)
    desired = desired_state(service, change, session.facts)
    shape = planned_shape(service, desired.fingerprint)
    made = make_plan(shape, session.facts, change, desired, wanted.kind, retry=wanted.retry)
    return Planned(session, made, desired)


def order_for(context: Context, one: Planned, wanted: Wanted, env: Mapping[str, str], why: str) -> Order:
    """What a server is to do by its plan. Raises ``RefusedError`` for a release that failed there before."""
    if one.plan.blocked:
        where = f"{one.session.server}: " if len(context.servers) > 1 else ""
        raise RefusedError(
            f"{where}{one.plan.blocked}; it is not deployed again unasked",
            hint="fix it with a new commit, or try the same once more with --retry",
            code="failed-before",
        )
    service, plan = context.service_on(one.session.server), one.plan
    container = container_args(service, one.desired, env) if plan.replaces_container else None
    return Order(
        session=one.session,
        plan=plan,
        prepare=prepare_args(service, plan, retry=wanted.retry, why=why, container=container),
        keep=service.keep,
        back=back_args(service, one.session, plan),
        finishes=finishing_seconds(service, service.soak),
    )
