"""One rollout on this server: prepare, activate, verify, then commit or revert.

What has to be known to undo or to finish it stands in the journal before anything happens (``Situation``), so the next
conversation can do either after a kill at any point (``recover``), with nothing but the journal, the files and the
engine.
"""

from __future__ import annotations

import contextlib
import os
import time

from lightship_agent import TYPE_CHECKING, handover, slots
from lightship_agent import release as releases
from lightship_agent.assets import Assets, sweep
from lightship_agent.checks import Warnings, prepare_shared, run_checks, run_migration
from lightship_agent.container import Container, ContainerSettings
from lightship_agent.errors import AgentFailure, Degraded, Refused, Reverted, contained
from lightship_agent.failpoints import fail_point, register
from lightship_agent.git import Mirror
from lightship_agent.health import HealthCheck, wait_healthy
from lightship_agent.instance import Instances, describe, env_file, install_runtime, require, settings_from
from lightship_agent.journal import Journal
from lightship_agent.paths import ServicePaths
from lightship_agent.records import asdict, dataclass, replace
from lightship_agent.reload import Booted, Patience, SlotReload, TouchReload, idle_slot, live_slot
from lightship_agent.requests import PrepareRequest
from lightship_agent.roles import NO_WEB, RoleOrder, role_orders
from lightship_agent.running import RoleProcess, Roles
from lightship_agent.slots import InstanceOrder, SlotOrder, Worker
from lightship_agent.soak import Level, Watch, level
from lightship_agent.space import (
    protected_releases,
    prune_images,
    prune_instances,
    releases_in_use,
    require_space,
)
from lightship_agent.state import ServiceState, load_state, save_state
from lightship_agent.system import Run, atomic_write, detached
from lightship_agent.warm import too_little_memory, warm_slot

if TYPE_CHECKING:
    from typing import Any, Callable, ContextManager, Dict, List, Mapping, Optional

    Step = Callable[[str], ContextManager[Dict[str, Any]]]

__all__ = ["Rollout", "Situation", "Tools"]

register(
    commit__state="the release is about to be written down as stable",
    commit__stable="the release has been written down as stable",
    commit__env="the variables of the container that serves are about to be written down as the service's",
    commit__released="the old slot or container has been let go",
    activate__begin="the release is about to go live",
    switch__begin="one container is about to take the place of the other",
    switch__end="one container has taken the place of the other",
    abort__begin="what was prepared is about to be undone",
    abort__end="what was prepared has been undone",
    rollout__prepared="everything is prepared, nothing is active",
    rollout__activated="the new release is active and not verified",
    rollout__verified="the new release is verified and not stable yet",
    revert__begin="the way back is about to begin",
    revert__end="the old release serves again",
)

HEALTH_DEFAULT = 5.0


@dataclass(frozen=True)
class Tools:
    """What a rollout works with. ``guard`` refuses when the lock was taken over, ``checkpoint`` after a call-off.

    ``run`` runs a program with the lock as its own, too: what it began is over before the next rollout begins.
    ``began`` is when the work for the rollout began, its image included.
    """

    paths: ServicePaths
    mirror: Mirror
    journal: Journal
    instances: Instances
    step: Step
    run: Run
    guard: Callable[[], None]
    checkpoint: Callable[[], None]
    who: str
    began: Optional[float] = None


@dataclass(frozen=True)
class Situation:
    """What a rollout found and decided: all that is needed to finish or to undo it. The journal keeps it.

    ``instance`` and ``slot`` are where the new release boots, the ``old_`` ones where the release before it runs.
    ``state`` are the service's pointers as they were found.
    """

    commit: str
    previous: Optional[str]
    way: str
    replaces: bool
    instance: int
    old_instance: int
    slot: str
    old_slot: Optional[str]
    generation: int
    patience: float
    boot_timeout: float
    soak: float
    keep: int
    health: Optional[Mapping[str, Any]]
    settings: Optional[Mapping[str, Any]]
    state: Optional[Mapping[str, Any]] = None
    proxy: Optional[Mapping[str, Any]] = None
    """What the service is to have of the proxy, and what it had (``proxy_config.Claim`` and ``Entry``)."""
    old_proxy: Optional[Mapping[str, Any]] = None
    assets: Optional[Mapping[str, Any]] = None
    keep_warm: int = 0
    warm: bool = False
    """Whether the release stands ready in its slot already, since it was kept warm: nothing is booted."""

    @property
    def stays(self) -> bool:
        """Whether the release is live in this slot already: its container is started at most, and nothing flips."""
        return self.way == "swap" and not self.replaces and self.slot == self.old_slot

    @property
    def touches(self) -> bool:
        """Whether uWSGI is made to reload itself."""
        return self.way in ("touch", "chain")

    @property
    def web(self) -> bool:
        """Whether this server has the web role."""
        return self.way != NO_WEB

    @property
    def health_check(self) -> Optional[HealthCheck]:
        """The health path, if there is one."""
        return HealthCheck.parse(self.health) if self.health else None


class Rollout:
    """The phases of one rollout, each called once and in order, or not at all."""

    def __init__(self, tools: Tools, situation: Situation) -> None:
        self.tools = tools
        self.situation = situation
        self.warnings: Optional[Warnings] = None
        self.migration: Optional[Dict[str, Any]] = None
        self.activated = False
        self.verified = False

    # --- prepare ------------------------------------------------------------------

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
            self._leave_only(situation.old_slot)
        with tools.step("tree") as detail:
            made = make_tree(tools, request)
            detail.update(tree=made.tree, changed=made.changed)
        tools.checkpoint()
        save_state(tools.paths, replace(load_state(tools.paths), generation=situation.generation))
        if situation.replaces:
            beside = situation.proxy is not None and situation.way == "swap"
            booted, checks = self._try_beside(request) if beside else self._try_image(request)
        else:
            booted, checks = self._try_release(request)
        return {
            "commit": situation.commit,
            "tree": made.tree,
            "slot": booted.slot,
            "workers": booted.workers,
            "import_seconds": booted.import_seconds,
            "checks": checks,
            "migration": self.migration,
        }

    def _try_release(self, request: PrepareRequest) -> tuple[Booted, List[Dict[str, Any]]]:
        """A code deploy: boot the release beside the old one, in the container that runs."""
        situation = self.situation
        container = self._running_container()
        checks = self._check(container, request)
        with self.tools.step("boot") as detail:
            if situation.stays:
                seen = self._slots(container).wait_serving(situation.commit, situation.slot)
                booted = Booted(situation.slot, len(seen), 0.0, 0.0)
            elif situation.warm:
                booted = self._take_warm(container, request)
            elif situation.way == "swap":
                reload = self._slots(container)
                order = self._order(request, {situation.old_slot: situation.previous} if situation.old_slot else {})
                booted = reload.boot(order, situation.commit, situation.generation, situation.slot)
            else:
                if not situation.web:
                    self._roles(container).wait_ready()
                booted = self._touch(container).boot(situation.commit)
            detail.update(import_seconds=booted.import_seconds, workers=booted.workers)
        return booted, checks

    def _take_warm(self, container: Container, request: PrepareRequest) -> Booted:
        """See that each worker of the slot that was kept warm is there still; it is not booted again."""
        situation = self.situation
        serving = {situation.old_slot: situation.previous} if situation.old_slot else {}
        order = self._order(request, {**serving, situation.slot: situation.commit})
        if order != slots.read_order(self.tools.paths, situation.instance):
            self._write_order(order)
        generation = order.slots[situation.slot].generation
        seen = self._slots(container).wait_booted(situation.slot, situation.commit, generation)
        return replace(seen, import_seconds=0.0, test_seconds=0.0)

    def _check(self, container: Container, request: PrepareRequest) -> List[Dict[str, Any]]:
        """The checks, and then the migrations, before the release is booted: its first page may need them."""
        tools, commit = self.tools, self.situation.commit
        if request.checks or request.migrate or self.situation.way != "swap":
            prepare_shared(tools.paths, container, request.shared)
        checks = run_checks(tools.step, container, commit, [check for check in request.checks if check.required])
        if request.migrate:
            tools.guard()
            tools.checkpoint()
            tools.journal.doing("migrate")
            self.migration = run_migration(tools.step, tools.paths, container, commit, request.migrate, tools.run)
            tools.journal.done("migrate")
        # In a check container, which is gone in a moment, nothing can run beside.
        optional = [check for check in request.checks if not check.required]
        if self.situation.replaces:
            return checks + run_checks(tools.step, container, commit, optional)
        self.warnings = Warnings(tools.step, container, commit, optional)
        return checks

    def _running_container(self) -> Container:
        """The service's container, started first when it does not run."""
        instances, situation = self.tools.instances, self.situation
        name = instances.name(situation.instance)
        container = require(instances.find(situation.instance), name)
        instances.keep_up(container)
        if container.running:
            return container
        with self.tools.step("start"):
            instances.start(name)
            container = require(instances.find(situation.instance), name)
            if situation.previous:
                self._wait_serving(container, situation.previous, situation.old_slot)
        return container

    def _try_image(self, request: PrepareRequest) -> tuple[Booted, List[Dict[str, Any]]]:
        """A container deploy: boot the release in a container that publishes nothing, then create the real one."""
        tools, situation = self.tools, self.situation
        instances, settings = tools.instances, self._settings()
        instances.write_env(situation.instance, self._env(request))
        swap = situation.way == "swap"
        needs_container = bool(request.checks or request.migrate)
        full = self._order(request, {situation.slot: situation.commit})
        # With something to run first the slots start empty, and the release is booted when that has passed.
        self._write_order(replace(full, slots={}) if swap and needs_container else full)
        name = instances.create(situation.instance, settings, check=situation.commit)
        try:
            with tools.step("start"):
                instances.start(name)
                check = require(tools.instances.engine.container(name), name)
            checks = self._check(check, request)
            with tools.step("try") as detail:
                if swap and needs_container:
                    self._write_order(full)
                self._roles(check).wait_ready()
                if situation.way == "swap":
                    booted = self._slots(check).wait_booted(situation.slot, situation.commit, situation.generation)
                elif not situation.web:
                    booted = self._touch(check).boot(situation.commit)
                else:
                    workers = self._touch(check).wait_serving(situation.commit, new=True)
                    booted = Booted(situation.slot, len(workers), 0.0, 0.0)
                detail.update(import_seconds=booted.import_seconds, workers=booted.workers)
        finally:
            with tools.step("tidy"):
                instances.remove(name)
        instances.create(situation.instance, settings)
        return booted, checks

    def _try_beside(self, request: PrepareRequest) -> tuple[Booted, List[Dict[str, Any]]]:
        """A container deploy behind a proxy: the container itself is the candidate. Nobody is led to it yet."""
        tools, situation = self.tools, self.situation
        instances = tools.instances
        instances.write_env(situation.instance, self._env(request))
        full = self._order(request, {situation.slot: situation.commit})
        waits = bool(request.checks or request.migrate)
        self._write_order(replace(full, slots={}) if waits else full)
        name = instances.create(situation.instance, self._settings())
        with tools.step("start"):
            instances.start(name)
            container = self._container()
        checks = self._check(container, request)
        with tools.step("try") as detail:
            if waits:
                self._write_order(full)
            self._roles(container).wait_ready()
            booted = self._slots(container).wait_booted(situation.slot, situation.commit, situation.generation)
            detail.update(import_seconds=booted.import_seconds, workers=booted.workers)
        return booted, checks

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
            self._leave_only(situation.old_slot, *([situation.slot] if situation.warm else []))
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

    # --- activate -----------------------------------------------------------------

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
                detached(self._switch_containers)
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
        if old is not None and old.running and self._roles(old).orders:
            with self.tools.step("rest") as detail:
                detail.update(rested=self._roles(old).rest())

    def _switch_containers(self) -> None:
        """Without a proxy a published port has one owner: the old container stops, then the new one starts."""
        tools, situation = self.tools, self.situation
        instances = tools.instances
        fail_point("switch.begin")
        old, new = instances.find(situation.old_instance), self._container()
        instances.keep_up(new)
        if old is not None:
            instances.let_down(old)
        if old is not None and old.running:
            instances.stop(old.name, 0.0 if self._drained(old) else situation.patience)
        releases.flip(tools.paths, situation.commit, tools.guard)
        instances.start(new.name)
        fail_point("switch.end")

    def _drained(self, old: Container) -> bool:
        """Let the old container finish its requests and take no more; then it can be stopped at once.

        To stop it in good order takes Supervisor and uWSGI, which look once a second, 3 to 4 s in which nobody serves.
        """
        slot = self.situation.old_slot
        if old.reload != "swap" or slot not in slots.SLOT_NAMES:
            return False
        self.tools.instances.close_gate(old.instance)
        return self._slots(old).wait_drained(slot)

    def _flip_and_touch(self) -> None:
        releases.flip(self.tools.paths, self.situation.commit, self.tools.guard)
        self.touch(self._container())

    def touch(self, container: Container) -> None:
        """Have uWSGI load the release, unless that is what it runs (its container was only started, say).

        It looks at the file once a second: the reload of a release that is seen to serve would come in its soak.
        """
        reload, situation = self._touch(container), self.situation
        if situation.commit != situation.previous or not reload.serves(situation.commit):
            reload.touch(self.touch_mark)

    # --- verify -------------------------------------------------------------------

    @contained
    def verify(self) -> Dict[str, Any]:
        """See every worker run the release, the health path answer, and the release survive its soak."""
        tools, situation = self.tools, self.situation
        container = self._container()
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
                self._roles(container).same(roles)
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
            workers = self._wait_serving(container, situation.commit, situation.slot)
            leaving: List[Worker] = []
            flipped = not situation.replaces and situation.commit != situation.previous
            if situation.way == "swap" and situation.old_slot and flipped:
                leaving = self._slots(container).wait_parked(situation.old_slot)
            detail.update(workers=len(workers), finishing=len(leaving))
        return workers

    def _verify_roles(self, container: Container) -> List[RoleProcess]:
        """Restart the roles on the release, now that the web role is seen to serve it."""
        roles = self._roles(container)
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
            slot=self._serving_slot(),
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
                self._slots(container).watched.alive()
                raise AgentFailure("unhealthy", f"release {self.situation.commit[:7]} is not healthy: {answer.problem}")
        return {"status": answer.status, "seconds": round(answer.seconds, 4)}

    def _wait_serving(self, container: Container, commit: str, slot: Optional[str]) -> List[Worker]:
        # On the way back it is the old container's way that counts.
        way = container.reload or self.situation.way
        if way == NO_WEB:
            return []
        if way == "swap":
            return self._slots(container).wait_serving(commit, slot or "0")
        new = commit == self.situation.commit != self.situation.previous
        return self._touch(container).wait_serving(commit, new=new)

    # --- commit -------------------------------------------------------------------

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
            pruned = self._settle(keep)
        except (AgentFailure, OSError) as error:
            pruned = []
            self._tell_unfinished(error)
        warnings = self.warnings.wait() if self.warnings else []
        return {"stable": situation.commit, "pruned": pruned, "checks": warnings}

    def _tell_unfinished(self, error: Exception) -> None:
        with contextlib.suppress(AgentFailure), self.tools.step("tidy") as detail:
            detail.update(problem=str(error)[:500])
            raise AgentFailure("unfinished", "the next rollout goes on with this")

    def _settle(self, keep: int) -> List[str]:
        """Write down what has become of both releases, let go of the old one's slot or container, and prune."""
        tools, situation = self.tools, self.situation
        settings = situation.settings or self._remembered(situation.previous)
        remembered: Dict[str, Any] = {"extra": {"container": settings}} if settings else {}
        if settings:
            remembered["fingerprint"] = str(settings.get("fingerprint", ""))
        releases.mark(tools.paths, situation.commit, "stable", **remembered)
        if situation.previous and situation.previous != situation.commit:
            old = releases.load(tools.paths, situation.previous)
            if old and old.state == "stable":
                releases.mark(tools.paths, situation.previous, "retired")
        if situation.replaces:
            self._drop_old_instances()
        elif situation.way == "swap":
            self._leave_only(situation.slot, *self._keep_warm())
        fail_point("commit.released")
        if situation.assets is not None:
            sweep(tools.step, self._container(), Assets.from_dict(situation.assets), tools.run)
        pruned = prune(tools, keep)
        if situation.replaces:
            prune_instances(tools.paths, situation.instance)
            prune_images(tools.instances)
        tools.mirror.maintain()
        tools.journal.end("done")
        return pruned

    def _keep_warm(self) -> List[str]:
        """The slot of the release to go back to, if it is to be kept warm and there is memory for that."""
        tools, situation = self.tools, self.situation
        goal = load_state(tools.paths).previous
        known = slots.read_order(tools.paths, situation.instance)
        others = {name: slot.release for name, slot in (known.slots if known else {}).items() if name != situation.slot}
        found = [name for name, release in others.items() if release == goal != situation.commit]
        if not (situation.keep_warm and found):
            return []
        with tools.step("warm") as detail:
            problem = too_little_memory(self._container().pid)
            detail.update(release=goal, kept=not problem, problem=problem)
        return [] if problem else found

    def _drop_old_instances(self) -> None:
        tools, situation = self.tools, self.situation
        handover.release_old(self)
        env = env_file(tools.paths, situation.instance)
        tools.guard()
        if env.exists():
            fail_point("commit.env")
            atomic_write(tools.paths.env, env.read_bytes(), 0o600)
        for container in tools.instances.others(situation.instance):
            tools.instances.remove(container.name)
            if container.instance != situation.instance:
                tools.instances.forget(container.instance)

    # --- revert -------------------------------------------------------------------

    def revert(self, reason: str, *, failed: bool = False) -> Dict[str, Any]:
        """Bring the release before this one back, and see that it serves; raises ``Degraded`` when it does not.

        ``failed`` says that it is the release that failed: it is not deployed again unasked.
        """
        tools, situation = self.tools, self.situation
        tools.guard()
        tools.journal.doing("revert", {"reason": reason[:500]})
        try:
            with tools.step("revert"):
                fail_point("revert.begin")
                self._restore_state()
                self._rest_new()
                self._go_back()
                self._roles_back()
                handover.renew_back(self)
                fail_point("revert.end")
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

    def _restore_state(self) -> None:
        """The service's pointers as they were; a commit that failed half-way may have written new ones."""
        tools, found = self.tools, self.situation.state
        if found is not None:
            now = load_state(tools.paths)
            before = replace(ServiceState(**found), generation=now.generation)
            if before != now:
                save_state(tools.paths, before)

    @contained
    def _go_back(self) -> None:
        tools, situation = self.tools, self.situation
        instances = tools.instances
        if situation.replaces and handover.involved(situation):
            handover.go_back(self)
            return
        if situation.replaces:
            self._old_container_back()
            return
        if situation.previous is None:
            raise AgentFailure("nothing-before", "there was no release before this one")
        self._flip_back(situation.previous)
        container = self._container()
        if situation.touches:
            self._touch(container).touch(f"back {self.touch_mark}")
        if not container.running:
            instances.start(container.name)
            container = self._container()
        self._wait_serving(container, situation.previous, situation.old_slot)
        if situation.way == "swap":
            self._leave_only(situation.old_slot)

    @contained
    def _rest_new(self) -> None:
        """Let the roles of a container that is given up finish their jobs before it goes."""
        new = self.tools.instances.find(self.situation.instance) if self.situation.replaces else None
        if new is not None and new.running:
            self._roles(new).rest()

    @contained
    def _roles_back(self) -> None:
        """Restart the roles on the release before; those that were not touched yet go on as they are."""
        situation, instances = self.situation, self.tools.instances
        container = instances.find(situation.old_instance if situation.replaces else situation.instance)
        if situation.previous and container is not None:
            # What a program of the image runs hangs on when it was started, and it may have been after the flip.
            self._roles(container).move(situation.previous, self._next_generation, programs=not situation.replaces)

    def _next_generation(self) -> int:
        state = load_state(self.tools.paths).next_generation()
        save_state(self.tools.paths, state)
        return state.generation

    def _old_container_back(self) -> None:
        tools, situation = self.tools, self.situation
        instances = tools.instances
        old = instances.find(situation.old_instance)
        if old is None and situation.old_instance:
            # What serves now is better than nothing.
            raise AgentFailure("container-missing", "the old container is gone")
        if old is not None:
            instances.keep_up(old)
        instances.remove(instances.name(situation.instance))
        tools.instances.forget(situation.instance)
        if situation.previous:
            self._flip_back(situation.previous)
        else:
            tools.paths.current.unlink(missing_ok=True)
        if old is None:
            return
        instances.open_gate(situation.old_instance)
        if not old.running:
            instances.start(old.name)
        old = require(instances.find(situation.old_instance), old.name)
        if situation.previous:
            self._wait_serving(old, situation.previous, situation.old_slot)

    def _flip_back(self, previous: str) -> None:
        if releases.current_commit(self.tools.paths) != previous:
            releases.flip(self.tools.paths, previous, self.tools.guard)

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

    # --- helpers ------------------------------------------------------------------

    @property
    def touch_mark(self) -> str:
        """What the watched file says when it was touched for this rollout."""
        return f"{self.situation.commit} {self.situation.generation}"

    def _container(self) -> Container:
        number = self.situation.instance
        return require(self.tools.instances.find(number), self.tools.instances.name(number))

    def _serving_slot(self) -> str:
        return self.situation.slot if self.situation.way == "swap" else slots.MAIN

    def _patience(self) -> Patience:
        return Patience(self.situation.boot_timeout, self.situation.patience)

    def _slots(self, container: Container) -> SlotReload:
        tools = self.tools
        return SlotReload(
            tools.paths, tools.instances.engine, container, self._patience(), self._called_off, tools.guard
        )

    def _touch(self, container: Container) -> TouchReload:
        tools = self.tools
        return TouchReload(tools.paths, tools.instances.engine, container, self._patience(), self._called_off)

    def _roles(self, container: Container) -> Roles:
        tools = self.tools
        return Roles(tools.paths, tools.instances.engine, container, self._called_off, tools.guard)

    def _called_off(self) -> None:
        """Before the flip a rollout ends when nobody listens any more; after it, it is finished."""
        if not self.activated:
            self.tools.checkpoint()

    def _order(self, request: PrepareRequest, running: Mapping[str, Optional[str]]) -> InstanceOrder:
        """What the instance is to run, with the generations that run already kept."""
        known = slots.read_order(self.tools.paths, self.situation.instance)
        found: Dict[str, SlotOrder] = {}
        for name, commit in running.items():
            if known and name in known.slots and known.slots[name].release == commit:
                found[name] = known.slots[name]
            elif commit:
                found[name] = SlotOrder(commit, self.situation.generation)
        web, roles = self.situation.web, self._role_orders(known)
        health = request.health_raw if web else None
        return InstanceOrder(request.app, health, request.patience, request.shared, found, roles, web)

    def _role_orders(self, known: Optional[InstanceOrder]) -> Mapping[str, RoleOrder]:
        """The roles as they are told already, or those of a new container, which rest until it serves."""
        if self.situation.replaces:
            return role_orders(self._settings().roles)
        return known.roles if known else {}

    def _write_order(self, order: InstanceOrder) -> None:
        self.tools.guard()
        slots.write_order(self.tools.paths, self.situation.instance, order)

    def _leave_only(self, *names: Optional[str]) -> None:
        """Leave only these slots to the keeper; it stops any other one when its requests are done."""
        known = slots.read_order(self.tools.paths, self.situation.instance)
        if known is None:
            return
        kept = {name: order for name, order in known.slots.items() if name in names}
        if kept != known.slots:
            self._write_order(replace(known, slots=kept))

    def _settings(self) -> ContainerSettings:
        settings = settings_from(self.situation.settings or {})
        if settings is None:
            raise AgentFailure("no-settings", f"nothing is known of the container of {self.situation.commit[:7]}")
        return settings

    def _remembered(self, commit: Optional[str]) -> Optional[Mapping[str, Any]]:
        found = releases.load(self.tools.paths, commit) if commit else None
        return found.extra.get("container") if found else None

    def _env(self, request: PrepareRequest) -> Dict[str, str]:
        if request.env is not None:
            return dict(request.env)
        if not self.tools.paths.env.exists():
            return {}
        lines = self.tools.paths.env.read_text(encoding="utf-8").splitlines()
        return dict(line.partition("=")[::2] for line in lines if line)


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


def refuse_failed(paths: ServicePaths, request: PrepareRequest) -> None:
    """A release that failed is not tried again unless that is asked for."""
    known = releases.load(paths, request.commit)
    if known and known.state == "failed" and not request.retry:
        raise Refused(
            "failed-before",
            f"release {request.commit[:7]} failed here before",
            hint="fix it and deploy the new commit, or try the same one again with --retry",
        )


def decide(tools: Tools, request: PrepareRequest) -> Situation:
    """What this rollout starts from and where the release is to boot."""
    state: ServiceState = load_state(tools.paths)
    current = releases.current_commit(tools.paths)
    replaces = request.kind != "code"
    old_order = slots.read_order(tools.paths, state.instance) if state.instance else None
    old_slot = live_slot(old_order, current)
    settings: Optional[Mapping[str, Any]] = None
    if replaces:
        settings = describe(request.container) if request.container else None
        if settings is None and request.stored:
            known = releases.load(tools.paths, request.commit)
            settings = known.extra.get("container") if known else None
        if settings is None:
            raise Refused(
                "no-settings",
                f"it is not known with which container release {request.commit[:7]} ran",
                hint="deploy its commit instead",
            )
        known_settings = settings_from(settings)
        if known_settings is not None:
            tools.instances.reference(known_settings)
    elif not state.instance or tools.instances.find(state.instance) is None:
        raise Refused(
            "no-container", "the service has no container here", hint="`lightship deploy --kind full` makes one"
        )
    # A container that is gone back to goes its own way.
    way = str((settings or {}).get("reload") or request.reload)
    proxied = handover.decide_proxy(tools, request.proxy if way != NO_WEB else None, settings)
    swap = way == "swap"
    slot = slots.SLOT_NAMES[0] if replaces else idle_slot(old_slot)
    if not replaces and request.commit == current and old_slot and _is_well(tools, state.instance, old_slot, current):
        # Two slots of one release have no gate between them: what serves, or will once its container runs, stays.
        slot = old_slot
    warm = None if replaces or not swap else warm_slot(tools.paths, state.instance, request, old_order, old_slot)
    return Situation(
        commit=request.commit,
        previous=current,
        way=way,
        replaces=replaces,
        instance=max(tools.instances.highest(), state.instance) + 1 if replaces else state.instance,
        old_instance=state.instance,
        slot=warm or slot if swap else slots.MAIN,
        old_slot=old_slot if swap else slots.MAIN,
        generation=state.generation + 1,
        patience=request.patience,
        boot_timeout=request.boot_timeout,
        soak=request.soak,
        keep=request.keep,
        health=request.health_raw,
        settings=proxied["settings"],
        state=asdict(state),
        proxy=proxied["proxy"],
        old_proxy=proxied["old_proxy"],
        assets=asdict(request.assets) if request.assets else None,
        keep_warm=request.keep_warm,
        warm=warm is not None,
    )


def _is_well(tools: Tools, instance: int, slot: str, release: str) -> bool:
    """Whether a slot serves the release, or its container does not run and is only to be started."""
    container = tools.instances.find(instance)
    if container is None or not container.running:
        return True
    return slots.read_slot(tools.paths, instance, slot).proven(release, None, ("serving",))


def make_tree(tools: Tools, request: PrepareRequest) -> releases.Made:
    """The release's tree, brought forward from one that may go where there is one."""
    known = releases.load_all(tools.paths)
    protected = protected_releases(tools.paths)
    recycle = [one.commit for one in reversed(releases.prunable(known, request.keep, protected))]
    there = releases.load(tools.paths, request.commit)
    info = tools.mirror.commit_info(request.commit) if there is None else None
    if there is None:
        # What is brought forward grows by the change at most; only a fresh tree needs the room of a whole one.
        size, files = (0, 0) if recycle else tools.mirror.size(request.commit)
        require_space(tools.paths.releases, f"release {request.commit[:7]}", size=size, files=files)
    return releases.make(
        tools.paths,
        tools.mirror,
        request.commit,
        guard=tools.guard,
        recycle=recycle,
        # What is gone back to may be made anew, should the shared paths be others now; what runs may not.
        protected=protected - ({request.commit} - releases_in_use(tools.paths)),
        shared=request.shared,
        why=request.why,
        subject=info.subject if info else "",
    )


def prune(tools: Tools, keep: int) -> List[str]:
    """Remove the releases that are past retention, but for one, whose tree the next release is made from."""
    gone = []
    for one in releases.prunable(releases.load_all(tools.paths), keep, protected_releases(tools.paths), spare=1):
        tools.guard()
        releases.discard(tools.paths, one.commit)
        gone.append(one.commit)
    return gone


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
