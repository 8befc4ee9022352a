"""Before the barrier: plan a host, have its image there, prepare it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from lightship.errors import LightshipError, RefusedError
from lightship.model import Facts, Plan, short
from lightship.operations.code import code_for
from lightship.operations.deploy import Planned, Wanted, order_for, plan_server
from lightship.operations.requests import inspect_args, planned_shape, prepare_args, wanted_image
from lightship.operations.rollback import order_back, plan_back, target_release
from lightship.operations.rolling import Rolling, canary_soak, strategy_of, watched_for
from lightship.plan import make_plan
from lightship.playbook.job import Job
from lightship.playbook.papers import Paper
from lightship.playbook.place import HeldSession, Place
from lightship.playbook.task import Ahead, Done, Task
from lightship.rollout import Order, is_unreachable
from lightship_agent.records import asdict, replace

__all__ = ["plan", "prepare"]

_PAUSE = 0.1
#: So long a host waits at most for the one on which the migrations run.
_LONGEST_MIGRATION = 7200.0


async def plan(job: Job, place: Place) -> Done:
    """Take the lock, see what the commit changes here, and leave the agent held: for what all hosts have to know."""
    return await _with_agent(Task(job, place), _only_plan)


async def prepare(job: Job, place: Place, *, check: bool = False) -> Done:
    """Everything before the flip. With ``check`` the plan alone, without the lock."""
    task = Task(job, place)
    if not check:
        return await _with_agent(task, _prepare)
    try:
        return await _with_agent(task, _foretell, lock=False)
    except LightshipError as error:
        if error.code != "no-lock":
            raise
    # The commit is not there yet: fetching it needs the lock, for as long as that takes.
    return await _with_agent(task, _foretell)


async def _with_agent(task: Task, work: Any, *, lock: bool = True) -> Done:
    """Do the work with the host's agent; when it fails the agent ends, and the others are told."""
    paper = task.papers.read(task.place.name) or Paper(task.place.name, "planned")
    if paper.state == "nothing":
        return Done(paper, False, "nothing to do")
    session = task.session(paper.token, lock=lock, ahead=_ahead(task))
    try:
        try:
            await (session.attach(look=True) if paper.token else session.open())
            done: Done = await work(task, session, paper)
        except BaseException:
            await session.end()
            raise
    except LightshipError as error:
        found = task.clean(error)
        task.papers.write(paper.failed(found, state="unreachable" if is_unreachable(error) else "failed"))
        raise found from None
    if done.paper.state in ("nothing", "over"):
        await session.end()
    else:
        await session.leave()
    task.papers.write(done.paper)
    return done


def _ahead(task: Task) -> Ahead:
    """What is asked together with the hello: nothing, where the commit may have to be sent first."""
    service, resolved = task.context.service, task.resolved
    if task.job.kind == "rollback" or service.source == "push":
        return {}
    inspect = ("inspect", inspect_args(service, resolved.ref, resolved.commit, task.job.env))
    return {"hello": (inspect,), "status": (inspect,)}


# --- the plan ---------------------------------------------------------------------------


async def _planned(task: Task, session: HeldSession) -> Planned:
    """The plan for this host, of the kind that was asked for and only as far as there is something to do."""
    job = task.job
    if job.kind == "rollback":
        commit = _target(task, session.facts)
        return Planned(session, plan_back(task.context, session, commit), None)  # type: ignore[arg-type]
    async with code_for(task.context) as code:
        wanted = Wanted(commit=job.commit, retry=job.retry)
        found = await plan_server(task.context, session, code, task.resolved, job.env, wanted)
    return replace(found, plan=_of_kind(task, found))


def _of_kind(task: Task, found: Planned) -> Plan:
    """The plan as ``code``, ``container`` or ``full`` has it: a kind limits what is done, and ``force`` does it anyway.

    ``code`` leaves the container as it is, ``container`` does nothing where the container is as it should be.
    """
    job, made = task.job, found.plan
    if job.kind == "full" and not job.force:
        return made
    if job.kind == "container" and not job.force and (made.nothing_to_do or made.replaces_container):
        return made
    nothing = replace(made, kind="nothing", steps=(), blocked="")
    if job.kind == "container" and not job.force:
        return replace(nothing, why=("the container is as it should be", *made.why))
    if job.kind == "code" and not job.force:
        if not made.replaces_container:
            return made
        if found.session.facts.container is None:
            raise RefusedError(
                f"{task.place.name} has no container of {task.service.name} yet",
                hint="lightship.deploy.full makes it",
                code="no-container",
            )
        if found.session.facts.current == job.commit:
            return replace(nothing, why=("its code is live already", *made.why))
    shape = planned_shape(task.service, found.desired.fingerprint)
    kind = job.kind if job.kind != "rollback" else None
    facts, change = found.session.facts, made.change
    again = make_plan(shape, facts, change, found.desired, kind, retry=job.retry)
    return replace(again, why=made.why if not job.force else again.why)


def _target(task: Task, facts: Facts) -> str:
    """The release to go back to: the one before this one on most hosts, or the one that was named."""
    seen = [task.papers.read(host) for host in task.job.hosts]
    fleet = [Facts.from_json(one.facts) for one in seen if one is not None and one.facts]
    return target_release(fleet or [facts], task.job.to)


def _told(facts: Facts) -> dict[str, Any]:
    releases = [{"commit": one.commit} for one in facts.releases]
    return {"hostname": "", "previous": facts.previous, "releases": releases}


async def _only_plan(task: Task, session: HeldSession, paper: Paper) -> Done:
    if task.job.kind == "rollback":
        paper = replace(paper, state="planned", token=session.held.token, facts=_told(session.facts))
        return Done(paper, False, f"{short(session.facts.current)} is live")
    found = await _planned(task, session)
    paper = _noted(task, session, found.plan, paper)
    if found.plan.nothing_to_do:
        return Done(replace(paper, state="nothing", outcome="nothing"), False, _says(found.plan), found.plan)
    if found.plan.replaces_container:
        name = wanted_image(task.service, found.plan.commit, found.desired).name
        paper = replace(paper, image={"look": await session.call("image", {"image": name})})
    return Done(replace(paper, state="planned"), False, _says(found.plan), found.plan)


async def _foretell(task: Task, session: HeldSession, paper: Paper) -> Done:
    found = await _planned(task, session)
    state = "nothing" if found.plan.nothing_to_do else "over"
    # Nothing is held for the next task: that one looks for itself.
    paper = replace(_noted(task, session, found.plan, paper), state=state, token="")  # type: ignore[arg-type]
    if found.plan.blocked:
        _order(task, found)
    return Done(paper, not found.plan.nothing_to_do, f"would {_says(found.plan)}", found.plan)


# --- preparing --------------------------------------------------------------------------


async def _prepare(task: Task, session: HeldSession, paper: Paper) -> Done:
    found = await _planned(task, session)
    paper = _noted(task, session, found.plan, paper)
    if found.plan.nothing_to_do:
        return Done(replace(paper, state="nothing", outcome="nothing"), False, _says(found.plan), found.plan)
    order = await _migrating_once(task, _order(task, found), found)
    if order.needs_image:
        order = _with_image(task, order, paper)
    await session.timed("prepare", "prepare", order.prepare)
    paper = replace(
        paper,
        state="prepared",
        migrates=order.migrates,
        keep=order.keep,
        finishes=order.finishes,
        back=order.back,
        image=None,
    )
    return Done(paper, True, _says(order.plan), order.plan, tuple(session.warnings))


def _canary(task: Task) -> bool:
    """Whether this host is one of those that go first."""
    hosts = task.job.hosts
    return task.place.name in hosts[: strategy_of(task.context.service, Rolling()).canaries(len(hosts))]


def _noted(task: Task, session: HeldSession, plan: Plan, paper: Paper) -> Paper:
    return replace(
        paper,
        token=session.held.token,
        kind=plan.kind,
        commit=plan.commit,
        before=session.facts.current,
        running=session.facts.current,
        canary=_canary(task),
    )


def _order(task: Task, found: Planned) -> Order:
    job = task.job
    if job.kind == "rollback":
        return order_back(task.context, found.session, found.plan, job.to)
    wanted = Wanted(commit=job.commit, retry=job.retry)
    order = order_for(task.context, found, wanted, job.env, job.ref)
    service = task.context.service
    if _canary(task):
        return watched_for(order, canary_soak(service, Rolling()), service)
    return order


def _with_image(task: Task, order: Order, paper: Paper) -> Order:
    ready = (paper.image or {}).get("ready")
    if not isinstance(ready, dict):
        raise RefusedError(
            f"{task.place.name}: the image of its new container is not there",
            hint="lightship.deploy.plan and lightship.deploy.container come before lightship.deploy.prepare",
            code="no-image",
        )
    return order.with_image(str(ready["reference"]), str(ready["id"]))


async def _migrating_once(task: Task, order: Order, found: Planned) -> Order:
    """Wait until it is known whether a host before this one runs the migrations; then they are not run here.

    The hosts before it have begun before it: Ansible starts them in their order.
    """
    if not order.migrates:
        return order
    hosts = task.job.hosts[: task.job.hosts.index(task.place.name)]
    for paper in await _decided(task, hosts):
        if paper.migrates or paper.state == "failed":
            if paper.state == "failed":
                raise RefusedError(
                    f"{task.place.name} was not prepared, since {paper.host} failed, where the migrations run first",
                    code="migrations-first",
                )
            steps = tuple(step for step in found.plan.steps if step.name != "migrate")
            without = replace(found.plan, steps=steps)
            args = prepare_args(task.service, without, retry=task.job.retry, why=task.job.ref, container=None)
            return replace(order, plan=without, prepare={**order.prepare, "migrate": args["migrate"]})
    return order


async def _decided(task: Task, hosts: Sequence[str]) -> list[Paper]:
    """What became of hosts before the barrier."""
    until = time.monotonic() + _LONGEST_MIGRATION
    found: list[Paper] = []
    for host in hosts:
        while (paper := task.papers.read(host)) is None or paper.state == "planned":
            if time.monotonic() > until:
                raise RefusedError(f"{task.place.name} waited in vain for the migrations on {host}", code="migrations")
            await asyncio.sleep(_PAUSE)
        found.append(paper)
    return found


def _says(plan: Plan) -> str:
    """The plan in a line."""
    what = f"{plan.kind} deploy of {short(plan.commit)}" if not plan.nothing_to_do else "nothing to do"
    return f"{what}: {'; '.join(plan.why)}"


def told(plan: Plan) -> dict[str, Any]:
    """The plan as a task returns it."""
    found = asdict(plan)
    del found["expected_seconds"]
    return found
