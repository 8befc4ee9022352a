"""What a rollout that was cut off left: finished or undone by the next conversation, before it begins anything.

All that is needed stands in the journal (``situation.Situation``). After it the service's pointers name what serves.
"""

from __future__ import annotations

from lightship_agent import TYPE_CHECKING, handover
from lightship_agent import release as releases
from lightship_agent.errors import AgentFailure, Degraded, contained
from lightship_agent.failpoints import fail_point, register
from lightship_agent.journal import Pending
from lightship_agent.records import replace
from lightship_agent.rollout import Rollout
from lightship_agent.situation import Situation, Tools
from lightship_agent.state import load_state, save_state

if TYPE_CHECKING:
    from typing import Any

__all__ = ["adopt", "recover"]

register(adopt__begin="the container that serves is about to be taken for the service's")


def adopt(tools: Tools) -> None:
    """Take the container that serves for the service's own, when the one that should serve does not run.

    A rollout that could not even go back may have ended between two containers. The one that runs what ``current``
    names has the ports, so it is the one to go on from; what else is left of the service is removed.
    """
    state = load_state(tools.paths)
    known = tools.instances.find(state.instance)
    if not state.instance or releases.current_commit(tools.paths) is None or (known is not None and known.running):
        return
    for found in tools.instances.others(state.instance):
        if found.running and found.name == tools.instances.name(found.instance):
            fail_point("adopt.begin")
            tools.guard()
            save_state(tools.paths, replace(state, instance=found.instance))
            tools.instances.keep_up(found)
            for other in tools.instances.others(found.instance):
                tools.instances.remove(other.name)
                tools.instances.forget(other.instance)
            return


def recover(tools: Tools, pending: Pending) -> dict[str, Any]:
    """Finish or undo a rollout that ended in the middle; returns what it was and what became of it."""
    told = {"rollout": pending.rollout, "kind": pending.kind, "commit": pending.commit, "previous": pending.previous}
    releases.clean_unfinished(tools.paths)
    try:
        situation = Situation(**pending.data)
    except TypeError:
        tools.journal.end("aborted")
        return {**told, "outcome": "aborted"}
    rollout = Rollout(tools, situation)
    if pending.last("activate") is None:
        rollout.abort()
        return {**told, "outcome": "aborted"}
    rollout.activated = True
    committing, reverting = pending.last("commit"), pending.last("revert")
    if reverting is None and not situation.replaces and releases.current_commit(tools.paths) != situation.commit:
        # Nobody saw the new release yet: the old one stays.
        rollout.abort()
        return {**told, "outcome": "aborted"}
    try:
        if reverting is not None:
            rollout.revert("the way back was interrupted")
            return {**told, "outcome": "reverted"}
        return {**told, **_finish(rollout, verified=bool(committing and committing.done))}
    except Degraded as error:
        # What can be done was tried. The rollout that comes now is what may help.
        return {**told, "outcome": "degraded", "reason": error.message}


def _finish(rollout: Rollout, *, verified: bool) -> dict[str, Any]:
    """Bring a rollout that went live to its end. What was written down as stable is not questioned again."""
    if not verified:
        try:
            _finish_activation(rollout)
            rollout.verify()
        except AgentFailure as error:
            rollout.revert(error.message, failed=rollout.blames(error))
            return {"outcome": "reverted", "reason": error.message}
    rollout.commit(rollout.situation.keep)
    return {"outcome": "done"}


@contained
def _finish_activation(rollout: Rollout) -> None:
    """Do again what of ``activate`` may not have happened; doing it twice changes nothing."""
    tools, situation = rollout.tools, rollout.situation
    if situation.replaces:
        rollout.rest_old()
        if handover.involved(situation):
            handover.switch(rollout)
        else:
            rollout.switch_containers()
        return
    container = rollout.container()
    if not container.running:
        tools.instances.start(container.name)
    if situation.touches and not rollout.touch_reload(container).touched(rollout.touch_mark):
        rollout.touch(container)
