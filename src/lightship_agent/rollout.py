"""One rollout on this server: prepare, activate, verify, then commit or revert.

What has to be known to undo or to finish it stands in the journal before anything happens (``Situation``), so the next
conversation can do either after a kill at any point (``recover``), with nothing but the journal, the files and the
engine.
"""

from __future__ import annotations

import contextlib
import os
import time

from lightship_agent import TYPE_CHECKING, candidate, handover, way_back
from lightship_agent import release as releases
from lightship_agent.errors import AgentFailure, Degraded, Reverted, contained
from lightship_agent.failpoints import fail_point, register
from lightship_agent.health import wait_healthy
from lightship_agent.instance import install_runtime
from lightship_agent.records import asdict, replace
from lightship_agent.rollout_base import RolloutBase
from lightship_agent.settle import settle
from lightship_agent.situation import decide, refuse_failed
from lightship_agent.soak import Level, Watch, level
from lightship_agent.state import load_state, save_state
from lightship_agent.system import detached

if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional

    from lightship_agent.container import Container
    from lightship_agent.requests import PrepareRequest
    from lightship_agent.running import RoleProcess
    from lightship_agent.situation import Tools
    from lightship_agent.slots import Worker

__all__ = ["Rollout", "revert_or_raise"]

register(
    commit__state="the release is about to be written down as stable",
    commit__stable="the release has been written down as stable",
    activate__begin="the release is about to go live",
    switch__begin="one container is about to take the place of the other",
    switch__end="one container has taken the place of the other",
    abort__begin="what was prepared is about to be undone",
    abort__end="what was prepared has been undone",
    rollout__prepared="everything is prepared, nothing is active",
    rollout__activated="the new release is active and not verified",
    rollout__verified="the new release is verified and not stable yet",
)

BLAMES_RELEASE = (
    "boot-failed",
    "boot-timeout",
    "check-failed",
    "migration-failed",
    "migration-timeout",
    "not-serving",
    "role-failed",
    "soak-failed",
    "unhealthy",
)


class Rollout(RolloutBase):
    """The phases of one rollout, each called once and in order, or not at all."""

    # --- prepare -----------------------------------------------------------------

    @classmethod
    def prepare(cls, tools: Tools, request: PrepareRequest) -> tuple[Rollout, Dict[str, Any]]:
        """Bring the release to the point where one step makes it live. Nothing that serves is changed."""
        refuse_failed(tools.paths, request)
        tools.guard()
        rollout = cls(tools, decide(tools, request))
        situation = rollout.situation
        tools.journal.begin(
            f"{int(time.time() * 1000):x}-{os.getpid()}",
            kind=request.kind,
            commit=situation.commit,
            previous=situation.previous,
            who=tools.who,
            data=asdict(situation),
            began=tools.began,
        )
        try:
            answer = rollout._prepare(request)
        except BaseException as error:
            rollout.abort("refused", failed=isinstance(error, AgentFailure) and rollout.blames(error))
            raise
        fail_point("rollout.prepared")
        return rollout, answer

    @contained
    def _prepare(self, request: PrepareRequest) -> Dict[str, Any]:
        tools, situation = self.tools, self.situation
        handover.prepare(self)
        install_runtime(tools.paths)
        if situation.way == "swap" and not (situation.replaces or situation.warm or situation.stays):
            # What is kept warm makes room; it is gone by the time that the tree is made.
            self.leave_only(situation.old_slot)
        with tools.step("tree") as detail:
            made = candidate.make_tree(tools, request)
            detail.update(tree=made.tree, changed=made.changed)
        tools.checkpoint()
        save_state(tools.paths, replace(load_state(tools.paths), generation=situation.generation))
        booted, checks = candidate.boot(self, request)
        return {
            "commit": situation.commit,
            "tree": made.tree,
            "slot": booted.slot,
            "workers": booted.workers,
            "import_seconds": booted.import_seconds,
            "checks": checks,
            "migration": self.migration,
        }

    def abort(self, outcome: str = "aborted", *, failed: bool = False) -> None:
        """Undo what was prepared; what serves was never touched."""
        situation, tools = self.situation, self.tools
        tools.guard()
        fail_point("abort.begin")
        if situation.replaces:
            tools.instances.remove(tools.instances.check_name(situation.instance))
            tools.instances.remove(tools.instances.name(situation.instance))
            tools.instances.forget(situation.instance)
        elif situation.way == "swap":
            self.leave_only(situation.old_slot, *([situation.slot] if situation.warm else []))
        if failed and releases.load(tools.paths, situation.commit) and situation.commit != situation.previous:
            releases.mark(tools.paths, situation.commit, "failed")
        fail_point("abort.end")
        tools.journal.end(outcome)

    def blames(self, error: AgentFailure) -> bool:
        """Whether it is the release that failed, and not the engine, the machine or somebody who stopped its container.

        A container that ended is the release's fault when it ran out of memory, or when it runs nothing else.
        """
        if error.code in ("container-down", "container-restarted"):
            return self.situation.replaces or bool(error.detail.get("out_of_memory"))
        return error.code in BLAMES_RELEASE

    # --- activate ----------------------------------------------------------------

    @contained
    def activate(self) -> Dict[str, Any]:
        """Make the release live."""
        tools, situation = self.tools, self.situation
        tools.guard()
        tools.journal.doing("activate")
        self.activated = True
        fail_point("activate.begin")
        self.rest_old()
        with tools.step("flip"):
            if situation.replaces and handover.involved(situation):
                handover.switch(self)
            elif situation.replaces:
                # Between the stop and the start nothing serves: this must go on even if this process is killed.
                detached(self.switch_containers)
            elif not situation.touches:
                releases.flip(tools.paths, situation.commit, tools.guard)
            else:
                # Between the flip and the touch a worker that is started anew may run what the others do not.
                detached(self._flip_and_touch)
            handover.renew(self)
        flipped = time.time()
        tools.journal.done("activate")
        fail_point("rollout.activated")
        return {"flipped": flipped}

    def rest_old(self) -> None:
        """Have the roles of the old container finish their jobs and stop: no role may ever run in two containers.

        That is before anything else is done to it, while its web role serves: a job in flight may take its time. What
        has not stopped by then is stopped with the container.
        """
        if not self.situation.replaces:
            return
        old = self.tools.instances.find(self.situation.old_instance)
        if old is not None and old.running and self.roles(old).orders:
            with self.tools.step("rest") as detail:
                detail.update(rested=self.roles(old).rest())

    def switch_containers(self) -> None:
        """Without a proxy a published port has one owner: the old container stops, then the new one starts."""
        tools, situation = self.tools, self.situation
        instances = tools.instances
        fail_point("switch.begin")
        old, new = instances.find(situation.old_instance), self.container()
        instances.keep_up(new)
        if old is not None:
            instances.let_down(old)
        if old is not None and old.running:
            instances.stop(old.name, 0.0 if self.drained(old) else situation.patience)
        releases.flip(tools.paths, situation.commit, tools.guard)
        instances.start(new.name)
        fail_point("switch.end")

    def _flip_and_touch(self) -> None:
        releases.flip(self.tools.paths, self.situation.commit, self.tools.guard)
        self.touch(self.container())

    def touch(self, container: Container) -> None:
        """Have uWSGI load the release, unless that is what it runs (its container was only started, say).

        It looks at the file once a second: the reload of a release that is seen to serve would come in its soak.
        """
        reload, situation = self.touch_reload(container), self.situation
        if situation.commit != situation.previous or not reload.serves(situation.commit):
            reload.touch(self.touch_mark)

    # --- verify ------------------------------------------------------------------

    @contained
    def verify(self) -> Dict[str, Any]:
        """See every worker run the release, the health path answer, and the release survive its soak."""
        tools, situation = self.tools, self.situation
        container = self.container()
        workers = self._verify_workers(container) if situation.web else []
        health = self._verify_health(container)
        handover.verify(self)
        roles = self._verify_roles(container)
        if situation.soak:
            with tools.step("soak") as detail:
                if situation.web:
                    seen = self._watch(container).run(situation.soak)
                    detail.update(responses=seen.responses, errors=seen.errors)
                else:
                    time.sleep(situation.soak)
                self.roles(container).same(roles)
        self.verified = True
        fail_point("rollout.verified")
        return {
            "workers": [worker.as_dict() for worker in workers],
            "health": health,
            "web": situation.web,
            "roles": [one.as_dict() for one in roles],
        }

    def _verify_workers(self, container: Container) -> List[Worker]:
        tools, situation = self.tools, self.situation
        with tools.step("workers") as detail:
            workers = self.wait_serving(container, situation.commit, situation.slot)
            leaving: List[Worker] = []
            flipped = not situation.replaces and situation.commit != situation.previous
            if situation.way == "swap" and situation.old_slot and flipped:
                leaving = self.slot_reload(container).wait_parked(situation.old_slot)
            detail.update(workers=len(workers), finishing=len(leaving))
        return workers

    def _verify_roles(self, container: Container) -> List[RoleProcess]:
        """Restart the roles on the release, now that the web role is seen to serve it."""
        roles = self.roles(container)
        if not roles.orders:
            return []
        with self.tools.step("roles") as detail:
            found = roles.move(self.situation.commit, lambda: self.situation.generation)
            detail.update(processes=len(found))
        return found

    def _watch(self, container: Container) -> Watch:
        tools, situation = self.tools, self.situation
        return Watch(
            paths=tools.paths,
            engine=tools.instances.engine,
            container=container.name,
            instance=situation.instance,
            slot=self.serving_slot(),
            commit=situation.commit,
            old=level(tools.paths, situation.old_instance, situation.old_slot) if situation.old_slot else Level(),
        )

    def _verify_health(self, container: Container) -> Optional[Dict[str, Any]]:
        check, port = self.situation.health_check, container.published()
        if check is None or port is None:
            return None
        with self.tools.step("health") as detail:
            answer = wait_healthy(check, port, self.situation.commit)
            detail.update(status=answer.status)
            if answer.problem:
                # No answer of a container that ended says nothing of the release.
                self.slot_reload(container).watched.alive()
                raise AgentFailure("unhealthy", f"release {self.situation.commit[:7]} is not healthy: {answer.problem}")
        return {"status": answer.status, "seconds": round(answer.seconds, 4)}

    # --- commit ------------------------------------------------------------------

    def commit(self, keep: int) -> Dict[str, Any]:
        """Write the release down as stable, let the old slot or container go, and prune."""
        tools, situation = self.tools, self.situation
        tools.guard()
        tools.journal.doing("commit")
        state = load_state(tools.paths)
        previous = state.stable if state.stable != situation.commit else state.previous
        fail_point("commit.state")
        save_state(tools.paths, replace(state, stable=situation.commit, previous=previous, instance=situation.instance))
        # From here on there is no way back: what is left to do is tidying up, now or in the next conversation.
        tools.journal.done("commit")
        try:
            fail_point("commit.stable")
            pruned = settle(self, keep)
        except (AgentFailure, OSError) as error:
            pruned = []
            self._tell_unfinished(error)
        warnings = self.warnings.wait() if self.warnings else []
        return {"stable": situation.commit, "pruned": pruned, "checks": warnings}

    def _tell_unfinished(self, error: Exception) -> None:
        with contextlib.suppress(AgentFailure), self.tools.step("tidy") as detail:
            detail.update(problem=str(error)[:500])
            raise AgentFailure("unfinished", "the next rollout goes on with this")

    # --- revert ------------------------------------------------------------------

    def revert(self, reason: str, *, failed: bool = False) -> Dict[str, Any]:
        """Bring the release before this one back, and see that it serves; raises ``Degraded`` when it does not.

        ``failed`` says that it is the release that failed: it is not deployed again unasked.
        """
        tools, situation = self.tools, self.situation
        tools.guard()
        tools.journal.doing("revert", {"reason": reason[:500]})
        try:
            with tools.step("revert"):
                way_back.restore(self)
        except AgentFailure as error:
            tools.journal.end("degraded")
            raise Degraded(
                "degraded",
                f"release {situation.commit[:7]} failed ({reason}), and going back to "
                f"{(situation.previous or 'nothing')[:7]} failed too: {error.message}",
                hint=error.hint or "`lightship status` shows what runs; `lightship rollback` tries again",
                detail={"reason": reason, "revert": error.as_dict()},
            ) from error
        if failed and situation.commit != situation.previous and releases.load(tools.paths, situation.commit):
            releases.mark(tools.paths, situation.commit, "failed")
        tools.journal.end("reverted")
        return {"current": situation.previous}

    def finish(self) -> None:
        """Nobody listens any more: undo what is only prepared, finish what is live."""
        if not self.activated:
            self.abort()
            return
        try:
            if not self.verified:
                self.verify()
        except AgentFailure as error:
            self.revert(error.message, failed=self.blames(error))
            return
        self.commit(self.situation.keep)


def revert_or_raise(rollout: Rollout, error: AgentFailure) -> Reverted:
    """Go back after a failed verification; returns what to raise."""
    rollout.revert(error.message, failed=rollout.blames(error))
    back = (rollout.situation.previous or "nothing")[:7]
    return Reverted(
        error.code,
        f"{error.message}; {back} was restored"
        if rollout.situation.previous
        else f"{error.message}; nothing runs, as before",
        hint=error.hint or "`lightship logs` shows what the service said; fix it and deploy the new commit",
        detail={**error.detail, "restored": rollout.situation.previous},
    )
