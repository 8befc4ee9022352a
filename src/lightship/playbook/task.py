"""What every task of a rollout has: its host, the rollout, what the others' hosts have come to, and the agent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lightship.config.secrets import Secret
from lightship.errors import LightshipError, RefusedError
from lightship.model import Plan
from lightship.operations.context import Context, Redactor, hello_to
from lightship.playbook.job import Job
from lightship.playbook.papers import Paper, Papers
from lightship.playbook.place import HeldSession, Place
from lightship.rollout import Order, ServerRun, as_refusal
from lightship.rollout.engine import RECONNECT
from lightship.rollout.events import Event, LogLine, Note, StepDone, StepFailed
from lightship.source.remote import Resolved
from lightship_agent.records import dataclass

if TYPE_CHECKING:
    from lightship.config.schema import Service

__all__ = ["Ahead", "Done", "Task"]

Ahead = Mapping[str, Sequence[tuple[str, Mapping[str, Any]]]]


@dataclass(frozen=True, slots=True)
class Done:
    """What a task did on its host."""

    paper: Paper
    changed: bool
    message: str
    plan: Plan | None = None
    warnings: tuple[str, ...] = ()


class Task:
    """One task at work."""

    def __init__(self, job: Job, place: Place) -> None:
        self.job = job
        self.place = place
        self.papers = Papers(job.folder)
        self.redactor = Redactor(self._tell)
        self.redactor.learn(Secret(job.env[name]) for name in job.secret if name in job.env)

    @cached_property
    def context(self) -> Context:
        """What the operations need."""
        return self.job.context(self.redactor, lambda _: self.place.transport(self.job.silence))

    @property
    def service(self) -> Service:
        """The service as this host runs it."""
        return self.context.service_on(self.place.name)

    @property
    def resolved(self) -> Resolved:
        """The commit that is meant."""
        return Resolved(self.job.ref, self.job.commit, "commit")

    def session(self, token: str = "", *, lock: bool = True, ahead: Ahead | None = None) -> HeldSession:
        """The conversation with the host's agent: the one that is held under a token, or else a new one."""
        transport = self.place.again(token) if token else self.place.transport(self.job.silence)
        job = self.job
        # By what the job says: tasks after the barrier have no need to read the configuration again.
        hello = hello_to(
            job.source.service or "",
            job.root,
            why=job.why,
            lock=lock,
            wait=job.wait if lock else 0.0,
            take_over=job.take_over,
        )
        return HeldSession(transport, hello, self.redactor, ahead)

    def mine(self) -> Paper:
        """What is known of this host. Raises ``RefusedError`` when it was never prepared."""
        found = self.papers.read(self.place.name)
        if found is None:
            raise RefusedError(
                f"{self.place.name} was not prepared", hint="lightship.deploy.prepare comes first", code="not-prepared"
            )
        return found

    async def resumed(self, paper: Paper, ahead: Ahead | None = None) -> tuple[ServerRun, HeldSession]:
        """The rollout on this host as far as it has come, and the agent that is held."""
        session = await self.session(paper.token, ahead=ahead).attach()
        order = Order(session, paper.plan, {}, keep=paper.keep, back=paper.back, finishes=paper.finishes)
        run = ServerRun(order, self.redactor, RECONNECT).resume(
            before=paper.before,
            outcome=paper.outcome,
            activated=paper.activated,
            verified=paper.verified,
            error=paper.failure,
        )
        return run, session

    def clean(self, error: LightshipError) -> LightshipError:
        """An error without secrets; one from before the flip is a refusal."""
        found = as_refusal(error)
        return self.redactor.clean_error(found) or found

    def _tell(self, event: Event) -> None:
        match event:
            case Note(text=text) | LogLine(text=text):
                self.place.tell(text)
            case StepDone(step=step, seconds=seconds):
                self.place.tell(f"{step}: {seconds:.3f} s")
            case StepFailed(step=step):
                self.place.tell(f"{step}: failed")
