"""The candidate: the release, booted where nobody is served by it yet, with its checks and migrations before that."""

from __future__ import annotations

from lightship_agent import TYPE_CHECKING, slots
from lightship_agent import release as releases
from lightship_agent.checks import Warnings, prepare_shared, run_checks, run_migration
from lightship_agent.instance import require
from lightship_agent.records import replace
from lightship_agent.reload import Booted
from lightship_agent.space import protected_releases, releases_in_use, require_space

if TYPE_CHECKING:
    from typing import Any, Dict, List

    from lightship_agent.container import Container
    from lightship_agent.requests import PrepareRequest
    from lightship_agent.rollout_base import RolloutBase
    from lightship_agent.situation import Tools

__all__ = ["boot", "make_tree"]


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


def boot(rollout: RolloutBase, request: PrepareRequest) -> tuple[Booted, List[Dict[str, Any]]]:
    """Boot it, and say what its checks have found."""
    situation = rollout.situation
    if not situation.replaces:
        return _try_release(rollout, request)
    beside = situation.proxy is not None and situation.way == "swap"
    return _try_beside(rollout, request) if beside else _try_image(rollout, request)


def _try_release(rollout: RolloutBase, request: PrepareRequest) -> tuple[Booted, List[Dict[str, Any]]]:
    """A code deploy: boot the release beside the old one, in the container that runs."""
    situation = rollout.situation
    container = _running_container(rollout)
    checks = _check(rollout, container, request)
    with rollout.tools.step("boot") as detail:
        if situation.stays:
            seen = rollout.slot_reload(container).wait_serving(situation.commit, situation.slot)
            booted = Booted(situation.slot, len(seen), 0.0, 0.0)
        elif situation.warm:
            booted = _take_warm(rollout, container, request)
        elif situation.way == "swap":
            reload = rollout.slot_reload(container)
            order = rollout.order(request, {situation.old_slot: situation.previous} if situation.old_slot else {})
            booted = reload.boot(order, situation.commit, situation.generation, situation.slot)
        else:
            if not situation.web:
                rollout.roles(container).wait_ready()
            booted = rollout.touch_reload(container).boot(situation.commit)
        detail.update(import_seconds=booted.import_seconds, workers=booted.workers)
    return booted, checks


def _take_warm(rollout: RolloutBase, container: Container, request: PrepareRequest) -> Booted:
    """See that each worker of the slot that was kept warm is there still; it is not booted again."""
    situation = rollout.situation
    serving = {situation.old_slot: situation.previous} if situation.old_slot else {}
    order = rollout.order(request, {**serving, situation.slot: situation.commit})
    if order != slots.read_order(rollout.tools.paths, situation.instance):
        rollout.write_order(order)
    generation = order.slots[situation.slot].generation
    seen = rollout.slot_reload(container).wait_booted(situation.slot, situation.commit, generation)
    return replace(seen, import_seconds=0.0, test_seconds=0.0)


def _check(rollout: RolloutBase, container: Container, request: PrepareRequest) -> List[Dict[str, Any]]:
    """The checks, and then the migrations, before the release is booted: its first page may need them."""
    tools, commit = rollout.tools, rollout.situation.commit
    if request.checks or request.migrate or rollout.situation.way != "swap":
        prepare_shared(tools.paths, container, request.shared)
    checks = run_checks(tools.step, container, commit, [check for check in request.checks if check.required])
    if request.migrate:
        tools.guard()
        tools.checkpoint()
        tools.journal.doing("migrate")
        rollout.migration = run_migration(tools.step, tools.paths, container, commit, request.migrate, tools.run)
        tools.journal.done("migrate")
    # In a check container, which is gone in a moment, nothing can run beside.
    optional = [check for check in request.checks if not check.required]
    if rollout.situation.replaces:
        return checks + run_checks(tools.step, container, commit, optional)
    rollout.warnings = Warnings(tools.step, container, commit, optional)
    return checks


def _running_container(rollout: RolloutBase) -> Container:
    """The service's container, started first when it does not run."""
    instances, situation = rollout.tools.instances, rollout.situation
    name = instances.name(situation.instance)
    container = require(instances.find(situation.instance), name)
    instances.keep_up(container)
    if container.running:
        return container
    with rollout.tools.step("start"):
        instances.start(name)
        container = require(instances.find(situation.instance), name)
        if situation.previous:
            rollout.wait_serving(container, situation.previous, situation.old_slot)
    return container


def _try_image(rollout: RolloutBase, request: PrepareRequest) -> tuple[Booted, List[Dict[str, Any]]]:
    """A container deploy: boot the release in a container that publishes nothing, then create the real one."""
    tools, situation = rollout.tools, rollout.situation
    instances, settings = tools.instances, rollout.settings()
    instances.write_env(situation.instance, rollout.env(request))
    swap = situation.way == "swap"
    needs_container = bool(request.checks or request.migrate)
    full = rollout.order(request, {situation.slot: situation.commit})
    # With something to run first the slots start empty, and the release is booted when that has passed.
    rollout.write_order(replace(full, slots={}) if swap and needs_container else full)
    name = instances.create(situation.instance, settings, check=situation.commit)
    try:
        with tools.step("start"):
            instances.start(name)
            check = require(tools.instances.engine.container(name), name)
        checks = _check(rollout, check, request)
        with tools.step("try") as detail:
            if swap and needs_container:
                rollout.write_order(full)
            rollout.roles(check).wait_ready()
            if situation.way == "swap":
                booted = rollout.slot_reload(check).wait_booted(situation.slot, situation.commit, situation.generation)
            elif not situation.web:
                booted = rollout.touch_reload(check).boot(situation.commit)
            else:
                workers = rollout.touch_reload(check).wait_serving(situation.commit, new=True)
                booted = Booted(situation.slot, len(workers), 0.0, 0.0)
            detail.update(import_seconds=booted.import_seconds, workers=booted.workers)
    finally:
        with tools.step("tidy"):
            instances.remove(name)
    instances.create(situation.instance, settings)
    return booted, checks


def _try_beside(rollout: RolloutBase, request: PrepareRequest) -> tuple[Booted, List[Dict[str, Any]]]:
    """A container deploy behind a proxy: the container itself is the candidate. Nobody is led to it yet."""
    tools, situation = rollout.tools, rollout.situation
    instances = tools.instances
    instances.write_env(situation.instance, rollout.env(request))
    full = rollout.order(request, {situation.slot: situation.commit})
    waits = bool(request.checks or request.migrate)
    rollout.write_order(replace(full, slots={}) if waits else full)
    name = instances.create(situation.instance, rollout.settings())
    with tools.step("start"):
        instances.start(name)
        container = rollout.container()
    checks = _check(rollout, container, request)
    with tools.step("try") as detail:
        if waits:
            rollout.write_order(full)
        rollout.roles(container).wait_ready()
        booted = rollout.slot_reload(container).wait_booted(situation.slot, situation.commit, situation.generation)
        detail.update(import_seconds=booted.import_seconds, workers=booted.workers)
    return booted, checks
