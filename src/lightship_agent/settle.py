"""After the commit: what has become of both releases is written down, and what is needed no more goes."""

from __future__ import annotations

from lightship_agent import TYPE_CHECKING, handover, slots
from lightship_agent import release as releases
from lightship_agent.assets import Assets, sweep
from lightship_agent.failpoints import fail_point, register
from lightship_agent.instance import env_file
from lightship_agent.space import protected_releases, prune_images, prune_instances
from lightship_agent.state import load_state
from lightship_agent.system import atomic_write
from lightship_agent.warm import too_little_memory

if TYPE_CHECKING:
    from typing import Any, Dict, List

    from lightship_agent.rollout_base import RolloutBase
    from lightship_agent.situation import Tools

__all__ = ["settle"]

register(
    commit__env="the variables of the container that serves are about to be written down as the service's",
    commit__released="the old slot or container has been let go",
)


def settle(rollout: RolloutBase, keep: int) -> List[str]:
    """Write down what has become of both releases, let go of the old one's slot or container, and prune."""
    tools, situation = rollout.tools, rollout.situation
    settings = situation.settings or rollout.remembered(situation.previous)
    remembered: Dict[str, Any] = {"extra": {"container": settings}} if settings else {}
    if settings:
        remembered["fingerprint"] = str(settings.get("fingerprint", ""))
    releases.mark(tools.paths, situation.commit, "stable", **remembered)
    if situation.previous and situation.previous != situation.commit:
        old = releases.load(tools.paths, situation.previous)
        if old and old.state == "stable":
            releases.mark(tools.paths, situation.previous, "retired")
    if situation.replaces:
        _drop_old_instances(rollout)
    elif situation.way == "swap":
        rollout.leave_only(situation.slot, *_keep_warm(rollout))
    fail_point("commit.released")
    if situation.assets is not None:
        sweep(tools.step, rollout.container(), Assets.from_dict(situation.assets), tools.run)
    pruned = _prune(tools, keep)
    if situation.replaces:
        prune_instances(tools.paths, situation.instance)
        prune_images(tools.instances)
    tools.mirror.maintain()
    tools.journal.end("done")
    return pruned


def _keep_warm(rollout: RolloutBase) -> List[str]:
    """The slot of the release to go back to, if it is to be kept warm and there is memory for that."""
    tools, situation = rollout.tools, rollout.situation
    goal = load_state(tools.paths).previous
    known = slots.read_order(tools.paths, situation.instance)
    others = {name: slot.release for name, slot in (known.slots if known else {}).items() if name != situation.slot}
    found = [name for name, release in others.items() if release == goal != situation.commit]
    if not (situation.keep_warm and found):
        return []
    with tools.step("warm") as detail:
        problem = too_little_memory(rollout.container().pid)
        detail.update(release=goal, kept=not problem, problem=problem)
    return [] if problem else found


def _drop_old_instances(rollout: RolloutBase) -> None:
    tools, situation = rollout.tools, rollout.situation
    handover.release_old(rollout)
    env = env_file(tools.paths, situation.instance)
    tools.guard()
    if env.exists():
        fail_point("commit.env")
        atomic_write(tools.paths.env, env.read_bytes(), 0o600)
    for container in tools.instances.others(situation.instance):
        tools.instances.remove(container.name)
        if container.instance != situation.instance:
            tools.instances.forget(container.instance)


def _prune(tools: Tools, keep: int) -> List[str]:
    """Remove the releases that are past retention, but for one, whose tree the next release is made from."""
    gone = []
    for one in releases.prunable(releases.load_all(tools.paths), keep, protected_releases(tools.paths), spare=1):
        tools.guard()
        releases.discard(tools.paths, one.commit)
        gone.append(one.commit)
    return gone
