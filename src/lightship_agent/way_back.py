"""The way back: the release before this one serves again, with its container, its roles and the service's pointers."""

from __future__ import annotations

from lightship_agent import TYPE_CHECKING, handover
from lightship_agent.errors import AgentFailure, contained
from lightship_agent.failpoints import fail_point, register
from lightship_agent.instance import require
from lightship_agent.records import replace
from lightship_agent.state import ServiceState, load_state, save_state

if TYPE_CHECKING:
    from lightship_agent.rollout_base import RolloutBase

__all__ = ["restore"]

register(
    revert__begin="the way back is about to begin",
    revert__end="the old release serves again",
)


def restore(rollout: RolloutBase) -> None:
    """Bring it back, and see that it serves; raises ``AgentFailure`` when it does not."""
    fail_point("revert.begin")
    _restore_state(rollout)
    _rest_new(rollout)
    _go_back(rollout)
    _roles_back(rollout)
    handover.renew_back(rollout)
    fail_point("revert.end")


def _restore_state(rollout: RolloutBase) -> None:
    """The service's pointers as they were; a commit that failed half-way may have written new ones."""
    tools, found = rollout.tools, rollout.situation.state
    if found is not None:
        now = load_state(tools.paths)
        before = replace(ServiceState(**found), generation=now.generation)
        if before != now:
            save_state(tools.paths, before)


@contained
def _go_back(rollout: RolloutBase) -> None:
    tools, situation = rollout.tools, rollout.situation
    instances = tools.instances
    if situation.replaces and handover.involved(situation):
        handover.go_back(rollout)
        return
    if situation.replaces:
        _old_container_back(rollout)
        return
    if situation.previous is None:
        raise AgentFailure("nothing-before", "there was no release before this one")
    rollout.flip_back(situation.previous)
    container = rollout.container()
    if situation.touches:
        rollout.touch_reload(container).touch(f"back {rollout.touch_mark}")
    if not container.running:
        instances.start(container.name)
        container = rollout.container()
    rollout.wait_serving(container, situation.previous, situation.old_slot)
    if situation.way == "swap":
        rollout.leave_only(situation.old_slot)


@contained
def _rest_new(rollout: RolloutBase) -> None:
    """Let the roles of a container that is given up finish their jobs before it goes."""
    new = rollout.tools.instances.find(rollout.situation.instance) if rollout.situation.replaces else None
    if new is not None and new.running:
        rollout.roles(new).rest()


@contained
def _roles_back(rollout: RolloutBase) -> None:
    """Restart the roles on the release before; those that were not touched yet go on as they are."""
    situation, instances = rollout.situation, rollout.tools.instances
    container = instances.find(situation.old_instance if situation.replaces else situation.instance)
    if situation.previous and container is not None:
        # What a program of the image runs hangs on when it was started, and it may have been after the flip.
        rollout.roles(container).move(
            situation.previous, lambda: _next_generation(rollout), programs=not situation.replaces
        )


def _next_generation(rollout: RolloutBase) -> int:
    state = load_state(rollout.tools.paths).next_generation()
    save_state(rollout.tools.paths, state)
    return state.generation


def _old_container_back(rollout: RolloutBase) -> None:
    tools, situation = rollout.tools, rollout.situation
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
        rollout.flip_back(situation.previous)
    else:
        tools.paths.current.unlink(missing_ok=True)
    if old is None:
        return
    instances.open_gate(situation.old_instance)
    if not old.running:
        instances.start(old.name)
    old = require(instances.find(situation.old_instance), old.name)
    if situation.previous:
        rollout.wait_serving(old, situation.previous, situation.old_slot)
