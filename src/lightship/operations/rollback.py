"""Go back to a release that the servers have: no git server, no registry, no build."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from lightship.errors import LightshipError, RefusedError, UsageError
from lightship.model import Facts, Plan, short
from lightship.operations.context import Context, Redactor
from lightship.operations.deploy import check_commit
from lightship.operations.fleet import Opened, opened_sessions
from lightship.operations.requests import planned_shape, prepare_args
from lightship.operations.rolling import Rolling, back_args, finish, finishing_seconds, gravest_kind
from lightship.plan import make_rollback_plan
from lightship.result import PlanResult
from lightship.rollout import Order, RolloutResult, Session, as_refusal
from lightship.rollout.events import PlanMade, StepDone, StepStarted
from lightship.source.remote import Resolved
from lightship_agent.records import replace

__all__ = ["check_back", "order_back", "plan_back", "rollback", "rollback_plan", "target_release"]

_AT_ONCE = Rolling()


async def rollback(
    context: Context,
    to: str | None,
    started: float,
    *,
    wait: float = 0.0,
    take_over: bool = False,
    rolling: Rolling = _AT_ONCE,
) -> RolloutResult:
    """Back to the previous release, or to the one that ``to`` names (the first digits will do).

    Whoever goes back is in a hurry, and the release is a known one: there is no canary unless it is asked for.
    """
    check_back(to, rolling)
    rolling = replace(rolling, canary=rolling.canary or 0)
    context = replace(context, emit=Redactor(context.emit))
    hello = context.hello(why=f"rollback {to or ''}".strip(), lock=True, wait=wait, take_over=take_over)
    context.emit(StepStarted("", "connect"))
    began = time.perf_counter()
    try:
        async with opened_sessions(context, hello, skip=rolling.skip_unreachable) as opened:
            context.emit(StepDone("", "connect", time.perf_counter() - began))
            orders = [order_back(context, session, plan, to) for session, plan in _plans(context, opened, to)]
            commit = orders[0].plan.commit
            resolved = Resolved(commit, commit, "commit")
            return await finish(context, orders, resolved, started, rolling, opened.unreachable)
    except LightshipError as error:
        raise as_refusal(error) from None


async def rollback_plan(context: Context, to: str | None, rolling: Rolling = _AT_ONCE) -> PlanResult:
    """What a rollback would do, without a lock and without doing it."""
    check_back(to, rolling)
    hello = context.hello(why="plan", lock=False)
    async with opened_sessions(context, hello, skip=rolling.skip_unreachable) as opened:
        plans = _plans(context, opened, to)
    first = plans[0][1]
    return PlanResult(
        service=context.service.name,
        ref=first.commit,
        commit=first.commit,
        subject=first.change.subject,
        kind=gravest_kind([plan for _, plan in plans]),
        plans=tuple((session.server, plan) for session, plan in plans),
    )


def check_back(to: str | None, rolling: Rolling) -> None:
    """Refuse what cannot be, before a server hears of anything."""
    if to is not None:
        check_commit("--to", to)
    rolling.check()


def _plans(context: Context, opened: Opened, to: str | None) -> list[tuple[Session, Plan]]:
    commit = target_release([session.facts for session in opened.sessions], to)
    plans = []
    for session in opened.sessions:
        plan = plan_back(context, session, commit)
        context.emit(PlanMade(session.server, plan))
        plans.append((session, plan))
    return plans


def plan_back(context: Context, session: Session, commit: str) -> Plan:
    """The plan of one server to go back to a release that it has."""
    if session.facts.release(commit) is None:
        raise RefusedError(
            f"{session.server} does not have the release {short(commit)}",
            hint=f"deploy it: lightship deploy --commit {commit}",
            code="no-such-release",
        )
    return make_rollback_plan(planned_shape(context.service_on(session.server)), session.facts, commit)


def target_release(fleet: Sequence[Facts], to: str | None) -> str:
    """The release to go back to: the one before this one on most servers."""
    if to is None:
        previous = Counter(facts.previous for facts in fleet if facts.previous is not None)
        if not previous:
            raise RefusedError(
                "there is no earlier release to go back to",
                hint="`lightship releases` lists what is here; --to names one",
                code="no-previous",
            )
        return previous.most_common(1)[0][0]
    found = {release.commit for facts in fleet for release in facts.releases if release.commit.startswith(to)}
    if len(found) == 1:
        return found.pop()
    raise UsageError(
        f"{to} is {'no release' if not found else 'more than one release'} here",
        hint="`lightship releases` lists what is here; another commit needs `lightship deploy --commit`",
        code="no-such-release",
    )


def order_back(context: Context, session: Session, plan: Plan, to: str | None) -> Order:
    """What a server is to do to go back."""
    # A release of another image goes back together with the container it ran in: its settings lie on the server.
    stored = {"stored": True} if plan.replaces_container else None
    why = f"rollback{f' to {to}' if to else ''}"
    # Whoever asks for a release by name means it, even one that failed once.
    service = context.service_on(session.server)
    args = prepare_args(service, plan, retry=to is not None, why=why, container=stored)
    return Order(
        session=session,
        plan=plan,
        prepare=args,
        keep=service.keep,
        back=back_args(service, session, plan),
        finishes=finishing_seconds(service, service.soak),
    )
