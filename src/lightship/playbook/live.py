"""After the barrier: activate a host, and when all have been seen commit, or go back."""

from __future__ import annotations

from collections.abc import Sequence

from lightship.errors import LightshipError, RefusedError, RevertedError
from lightship.model import short
from lightship.operations.rolling import Rolling, strategy_of
from lightship.playbook.job import Job
from lightship.playbook.papers import Paper, State
from lightship.playbook.place import Place
from lightship.playbook.task import Done, Task
from lightship.rollout import ServerRun
from lightship_agent.records import replace

__all__ = ["activate", "commit", "foretold", "revert"]

_NAMED = 5


async def activate(job: Job, place: Place) -> Done:
    """Flip, and see that every worker runs the new release. Raises when it does not; then it has gone back."""
    task = Task(job, place)
    paper = task.mine()
    if paper.state != "prepared":
        return Done(paper, False, "nothing to do")
    stopped = _not_prepared(task) or _stopped(task)
    if stopped is not None:
        raise stopped
    # What is lost from here on is known to have been on its way.
    task.papers.write(replace(paper, state="live", activated=True))
    run, session = await task.resumed(paper, {"activate": (("verify", {}),)})
    await run.go_live()
    # A host that failed has gone back by now, and its agent has nothing more to do.
    await (session.leave() if run.error is None else session.end())
    paper = _after(task, paper, run)
    if run.error is not None:
        raise task.clean(run.error)
    return Done(paper, True, f"{short(paper.commit)} is live and was seen to serve")


async def foretold(job: Job, place: Place) -> Done:
    """What activating or committing would do, when all goes well."""
    paper = Task(job, place).mine()
    return Done(paper, paper.kind != "nothing", "would do it" if paper.kind != "nothing" else "nothing to do")


async def commit(job: Job, place: Place) -> Done:
    """Write the release down as stable, when the rollout has passed. Raises when it has to go back, or failed here."""
    task = Task(job, place)
    paper = task.mine()
    if paper.failure is not None:
        raise paper.failure
    if paper.state in ("nothing", "over"):
        return Done(paper, False, "nothing to do")
    verdict = _verdict(task)
    if verdict is not None:
        raise verdict
    run, session = await task.resumed(paper, {"commit": (("bye", {}),)})
    await run.commit()
    await session.end()
    paper = _after(task, paper, run, state="over")
    if run.error is not None:
        raise task.clean(run.error)
    return Done(paper, True, f"{short(paper.commit)} is stable")


async def revert(job: Job, place: Place, *, last: bool = True) -> Done:
    """Back to what ran before, or undo what was prepared. When it is the ``last`` word, it says what each host runs."""
    task = Task(job, place)
    paper = task.papers.read(place.name)
    if paper is None or paper.state in ("nothing", "over", "back", "failed", "unreachable", "planned"):
        return Done(paper or Paper(place.name, "failed"), False, _who_runs_what(task))
    run, session = await task.resumed(paper)
    stays = paper.verified and strategy_of(task.context.service, Rolling()).on_failure == "stop"
    if stays and last and paper.failure is None:
        await run.commit()
    else:
        await run.go_back()
    await session.end()
    cause = paper.failure or run.error or _not_prepared(task) or _stopped(task)
    run.error = run.error or cause
    _after(task, paper, run, state="over" if run.outcome == "done" else "back")
    now = task.mine()
    return Done(now, now.running != paper.before or paper.activated, _who_runs_what(task))


def _after(task: Task, paper: Paper, run: ServerRun, state: State = "live") -> Paper:
    """What the host has come to. One that went back, or whose agent finished by itself, has nothing more to do."""
    ended: dict[str, State] = {"done": "over", "reverted": "back", "refused": "back", "degraded": "over"}
    new = replace(
        paper,
        state=ended.get(run.outcome, state),
        outcome=run.outcome,
        activated=run.activated,
        verified=run.verified,
        running=run.running,
    )
    return task.papers.write(new.failed(None if run.error is None else task.clean(run.error)))


# --- the judgement ----------------------------------------------------------------------


def _all(task: Task) -> Sequence[tuple[str, Paper | None]]:
    return [(host, task.papers.read(host)) for host in task.job.hosts]


def _not_prepared(task: Task) -> LightshipError | None:
    """Why no host may be activated; ``None`` when all are prepared."""
    lacking = []
    for host, paper in _all(task):
        if paper is None or paper.state in ("planned", "failed", "unreachable"):
            unreachable = paper is None or paper.state == "unreachable"
            if not (unreachable and task.job.skip_unreachable):
                error = None if paper is None else paper.failure
                lacking.append((host, error.message if error else "it was not reached"))
    if not lacking:
        return None
    host, why = lacking[0]
    others = f" (and {len(lacking) - 1} more)" if len(lacking) > 1 else ""
    return RefusedError(
        f"{task.place.name} was not activated, since not all hosts are prepared: {host}: {why}{others}",
        hint="nothing was changed; leave the host out by --limit, or those that cannot be reached by "
        "-e lightship_skip_unreachable=true",
        code="not-all-prepared",
    )


def _failures(task: Task) -> tuple[list[str], bool]:
    """The hosts that failed after the barrier, and whether a canary is one of them."""
    failed = [(host, paper) for host, paper in _all(task) if paper is not None and _has_failed(paper)]
    return [host for host, _ in failed], any(paper.canary for _, paper in failed)


def _has_failed(paper: Paper) -> bool:
    # Not one whose commit failed: while hosts commit, all of them have to come to the same judgement.
    return paper.activated and not paper.verified and paper.error is not None


def _over_budget(task: Task, failed: Sequence[str], canary: bool) -> bool:
    changed = [paper for _, paper in _all(task) if paper is not None and paper.kind != "nothing"]
    if not failed:
        return False
    percentage = task.job.most_failures
    if percentage is not None:
        return canary or len(failed) * 100 > percentage * len(changed)
    return canary or len(failed) > strategy_of(task.context.service, Rolling()).budget(len(changed))


def _stopped(task: Task) -> LightshipError | None:
    """Why no further host is activated; ``None`` while the budget is not used up."""
    failed, canary = _failures(task)
    if not _over_budget(task, failed, canary):
        return None
    return RefusedError(
        f"{task.place.name} was not activated: the rollout has stopped, since {_some(failed)} failed",
        hint="the hosts that were changed go back",
        code="stopped",
    )


def _verdict(task: Task) -> LightshipError | None:
    """Why a host that is verified has to go back with the others."""
    failed, canary = _failures(task)
    # A host that is on its way still, when all should have been seen, was lost.
    lost = [host for host, paper in _all(task) if paper is not None and _lost(paper)]
    if not _over_budget(task, [*failed, *lost], canary):
        return None
    return RevertedError(
        f"{task.place.name} goes back with the rollout, since {_some([*failed, *lost])} failed",
        hint="see what went wrong there, and deploy again",
        code="rollout-failed",
    )


def _lost(paper: Paper) -> bool:
    return paper.error is None and (paper.state == "prepared" or (paper.state == "live" and not paper.verified))


def _some(hosts: Sequence[str]) -> str:
    more = f" and {len(hosts) - _NAMED} more" if len(hosts) > _NAMED else ""
    return f"{', '.join(hosts[:_NAMED])}{more}"


def _who_runs_what(task: Task) -> str:
    """What each host runs, as far as it is known by now."""
    runs: dict[str, list[str]] = {}
    for host, paper in _all(task):
        known = paper is not None and paper.state not in ("unreachable", "live")
        runs.setdefault(short(paper.running) if known and paper else "not known", []).append(host)
    return "; ".join(f"{what} on {_some(hosts)}" for what, hosts in runs.items())
