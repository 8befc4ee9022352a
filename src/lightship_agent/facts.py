"""The facts: what is observed on this server, now. Nothing is changed by looking."""

from __future__ import annotations

import os
import sys

from lightship_agent import TYPE_CHECKING, slots
from lightship_agent import release as releases
from lightship_agent.errors import AgentFailure
from lightship_agent.instance import Instances
from lightship_agent.journal import Journal
from lightship_agent.paths import ServicePaths
from lightship_agent.running import roles_facts
from lightship_agent.slots import MAIN, SLOT_NAMES
from lightship_agent.state import ServiceState, load_state
from lightship_agent.system import disk_free, read_trusted

if TYPE_CHECKING:
    from typing import Any

__all__ = ["gather"]

HISTORY = 20
_PYTHON = "{}.{}.{}".format(*sys.version_info)


def gather(paths: ServicePaths, instances: Instances, journal: Journal) -> dict[str, Any]:
    """Everything the controller decides by, and what ``status`` shows."""
    facts: dict[str, Any] = {"hostname": os.uname().nodename, "python": _PYTHON}
    version = instances.engine.version()
    facts["docker"] = {"version": version} if version else None
    if not paths.home.is_dir():
        return {**facts, **_nothing(paths)}
    state = load_state(paths)
    try:
        container = instances.find(state.instance) if version else None
    except AgentFailure:
        container = None
    space = disk_free(paths.home)
    env = read_trusted(paths.env, 1024 * 1024)
    facts.update(
        current=_current(paths),
        stable=state.stable,
        previous=rollback_goal(paths, state),
        releases=[one.as_dict() for one in releases.load_all(paths)],
        container=container.as_dict() if container else None,
        slots=_slots(paths, state, bool(container and container.running)),
        roles=_roles(paths, state, container.pid if container and container.running else 0),
        disk={"free_bytes": space.bytes, "free_inodes": space.inodes or 0},
        history=[past.as_dict() for past in journal.history(HISTORY)],
        proxy=_proxy(paths, instances) if version else None,
        env_digest=_digest(env) if env is not None else None,
    )
    return facts


def rollback_goal(paths: ServicePaths, state: ServiceState) -> str | None:
    """What a rollback without ``--to`` goes to: the stable release before this one, if its tree is still there.

    That is the stable one itself while another is current: a rollout that failed, and could not be taken back.
    """
    current = _current(paths)
    for known in (state.stable, state.previous):
        if known and known != current and releases.load(paths, known):
            return known
    for one in releases.load_all(paths):
        if one.state in ("stable", "retired") and one.commit != current:
            return one.commit
    return None


def _digest(data: bytes) -> str:
    """By Python's own means: hashlib loads OpenSSL, which takes a tenth of an agent's start."""
    try:
        from _blake2 import blake2b  # noqa: PLC0415
    except ImportError:
        from hashlib import blake2b  # noqa: PLC0415
    return blake2b(data, digest_size=32).hexdigest()


def _current(paths: ServicePaths) -> str | None:
    try:
        return releases.current_commit(paths)
    except AgentFailure:
        return None


def _proxy(paths: ServicePaths, instances: Instances) -> dict[str, Any] | None:
    if not os.path.lexists(paths.proxied):
        return None
    from lightship_agent.proxy import Proxy  # noqa: PLC0415 - few services have one

    try:
        return Proxy(paths, instances.engine, instances.guard).facts()
    except (AgentFailure, OSError):
        return None


def _slots(paths: ServicePaths, state: ServiceState, running: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    order = slots.read_order(paths, state.instance) if state.instance else None
    for name in (*SLOT_NAMES, MAIN):
        wanted = order.slots.get(name) if order else None
        if order is None or (wanted is None and (order.slots or name != MAIN)):
            # A slot that is on its way out is not asked: its master may not answer any more.
            continue
        view = slots.read_slot(paths, state.instance, name)
        # An announcement alone may be an old one, or anybody's: the master has to know that very process.
        alive = {(entry.id, entry.pid) for entry in view.stats or () if entry.id > 0 and entry.pid > 0}
        workers = [worker for worker in view.workers if (worker.id, worker.pid) in alive]
        up = running and bool(alive)
        found[name] = {
            "release": wanted.release if wanted else (workers[0].release if workers else None),
            "generation": wanted.generation if wanted else 0,
            "running": up,
            "workers": [worker.as_dict() for worker in workers] if up else [],
        }
    return found


def _roles(paths: ServicePaths, state: ServiceState, first_pid: int) -> dict[str, Any]:
    order = slots.read_order(paths, state.instance) if state.instance else None
    return roles_facts(paths, state.instance, order.roles, first_pid) if order else {}


def _nothing(paths: ServicePaths) -> dict[str, Any]:
    place = paths.root
    while not place.exists():
        place = place.parent
    space = disk_free(place)
    return {
        "current": None,
        "stable": None,
        "previous": None,
        "releases": [],
        "container": None,
        "slots": {},
        "roles": {},
        "disk": {"free_bytes": space.bytes, "free_inodes": space.inodes or 0},
        "history": [],
        "env_digest": None,
        "proxy": None,
    }
