"""Go back to a release that the servers have: no git server, no registry, no build."""

from __future__ import annotations

import time
from dataclasses import replace

from lightship.errors import RefusedError, UsageError
from lightship.model import Facts, Plan, short
from lightship.operations.context import Context, Redactor, sessions
from lightship.operations.deploy import check_commit, finish
from lightship.operations.requests import planned_shape, prepare_args
from lightship.plan import make_rollback_plan
from lightship.result import PlanResult
from lightship.rollout import Order, RolloutResult, Session
from lightship.rollout.events import PlanMade, StepDone, StepStarted
from lightship.source.remote import Resolved

__all__ = ["rollback", "rollback_plan"]


async def rollback(
    context: Context, to: str | None, started: float, *, wait: float = 0.0, take_over: bool = False
) -> RolloutResult:
    """Back to the previous release, or to the one that ``to`` names (the first digits will do)."""
    if to is not None:
        check_commit("--to", to)
    context = replace(context, emit=Redactor(context.emit))
    hello = context.hello(why=f"rollback {to or ''}".strip(), lock=True, wait=wait, take_over=take_over)
    context.emit(StepStarted("", "connect"))
    began = time.perf_counter()
    async with sessions(context, hello) as opened:
        context.emit(StepDone("", "connect", time.perf_counter() - began))
        orders = [_order(context, session, plan, to) for session, plan in _plans(context, opened, to)]
        commit = orders[0].plan.commit
        return await finish(context, orders, Resolved(commit, commit, "commit"), started)


async def rollback_plan(context: Context, to: str | None) -> PlanResult:
    """What a rollback would do, without a lock and without doing it."""
    if to is not None:
        check_commit("--to", to)
    async with sessions(context, context.hello(why="plan", lock=False)) as opened:
        plans = _plans(context, opened, to)
    first = plans[0][1]
    return PlanResult(
        service=context.service.name,
        ref=first.commit,
        commit=first.commit,
        subject=first.change.subject,
        kind=first.kind,
        plans=tuple((session.server, plan) for session, plan in plans),
    )


def _plans(context: Context, opened: list[Session], to: str | None) -> list[tuple[Session, Plan]]:
    commit = _target(opened[0].facts, to)
    plans = []
    for session in opened:
        if session.facts.release(commit) is None:
            raise RefusedError(
                f"{session.server} does not have the release {short(commit)}",
                hint=f"deploy it: lightship deploy --commit {commit}",
                code="no-such-release",
            )
        plan = make_rollback_plan(planned_shape(context.service), session.facts, commit)
        context.emit(PlanMade(session.server, plan))
        plans.append((session, plan))
    return plans


def _target(facts: Facts, to: str | None) -> str:
    """The release to go back to."""
    if to is None:
        if facts.previous is None:
            raise RefusedError(
                "there is no earlier release to go back to",
                hint="`lightship releases` lists what is here; --to names one",
                code="no-previous",
            )
        return facts.previous
    found = [release.commit for release in facts.releases if release.commit.startswith(to)]
    if len(found) == 1:
        return found[0]
    raise UsageError(
        f"{to} is {'no release' if not found else 'more than one release'} here",
        hint="`lightship releases` lists what is here; another commit needs `lightship deploy --commit`",
        code="no-such-release",
    )


def _order(context: Context, session: Session, plan: Plan, to: str | None) -> Order:
    # A release of another image goes back together with the container it ran in: its settings lie on the server.
    stored = {"stored": True} if plan.replaces_container else None
    why = f"rollback{f' to {to}' if to else ''}"
    # Whoever asks for a release by name means it, even one that failed once.
    args = prepare_args(context.service, plan, retry=to is not None, why=why, container=stored)
    return Order(session=session, plan=plan, prepare=args, keep=context.service.keep)
