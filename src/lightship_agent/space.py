"""Space: refuse before anything is written when disk or inodes would run out; give back what policy allows."""

import math
from pathlib import Path
from typing import Optional, Set

from lightship_agent import release as releases
from lightship_agent import slots
from lightship_agent.container import LABEL_ROOT, LABEL_SERVICE
from lightship_agent.errors import AgentFailure, Refused
from lightship_agent.failpoints import fail_point, register
from lightship_agent.instance import Instances
from lightship_agent.paths import ServicePaths
from lightship_agent.state import load_state
from lightship_agent.system import disk_free, remove_tree

__all__ = [
    "MARGIN_BYTES",
    "MARGIN_INODES",
    "protected_releases",
    "prune_images",
    "prune_instances",
    "releases_in_use",
    "require_space",
]

register(
    prune__instance="what a container that is gone said of itself is about to be removed",
    prune__image="an image that nothing needs any more is about to be removed",
    prune__end="all is removed that is past retention",
)

MARGIN_BYTES = 64 * 1024 * 1024
MARGIN_INODES = 1000
_BLOCK = 4096
_MIB = 1024 * 1024


def require_space(place: Path, what: str, *, size: int = 0, files: int = 0) -> None:
    """Raise ``Refused`` (``no-space``) unless ``size`` bytes in ``files`` files fit, with a margin for all else."""
    free = disk_free(place)
    need = size + files * _BLOCK + MARGIN_BYTES
    if free.bytes < need:
        raise Refused(
            "no-space",
            f"{place} has {free.bytes // _MIB} MiB left, and {what} needs {math.ceil(need / _MIB)} MiB",
            hint="free some space (`docker system df` shows what Docker uses), or lower `keep`",
            detail={"free_bytes": free.bytes, "needed_bytes": need},
        )
    inodes = files + MARGIN_INODES
    if free.inodes is not None and free.inodes < inodes:
        raise Refused(
            "no-inodes",
            f"{place} has {free.inodes} inodes left, and {what} needs {inodes}",
            hint="remove files (`df -i` shows the file systems), or lower `keep`",
            detail={"free_inodes": free.inodes, "needed_inodes": inodes},
        )


def protected_releases(paths: ServicePaths) -> Set[str]:
    """The releases that must not go: current, stable, previous, and all that a slot or role is to run or runs."""
    state = load_state(paths)
    found: Set[Optional[str]] = {state.stable, state.previous}
    return releases_in_use(paths, left=True) | {commit for commit in found if commit}


def releases_in_use(paths: ServicePaths, *, left: bool = False) -> Set[str]:
    """The releases that serve, or that a slot is to run or runs; with ``left`` also what stopped slots ran last."""
    found: Set[Optional[str]] = {releases.current_commit(paths)}
    for path in paths.instances.glob("*.json"):
        if path.stem.isdigit():
            order = slots.read_order(paths, int(path.stem))
            found |= {slot.release for slot in order.slots.values()} if order else set()
            found |= {role.release for role in order.roles.values()} if order else set()
            for name in (*slots.SLOT_NAMES, slots.MAIN):
                if not left and slots.read_stats(paths, int(path.stem), name) is None:
                    continue
                found |= {worker.release for worker in slots.read_workers(paths, int(path.stem), name)}
    return {commit for commit in found if commit}


def prune_instances(paths: ServicePaths, instance: int) -> None:
    """Remove what instances that are gone said of themselves."""
    for path in paths.runs.iterdir():
        if path.name.isdigit() and int(path.name) != instance:
            fail_point("prune.instance")
            remove_tree(path)


def prune_images(instances: Instances) -> None:
    """Remove the images that were built here for releases that are gone; those in use and those to go back to stay."""
    paths = instances.paths
    kept = {
        (one.extra.get("container") or {}).get("image")
        for one in releases.load_all(paths)
        if one.state in ("stable", "retired")
    }
    kept |= {found.image for found in instances.engine.containers_of(paths)}
    command = ["docker", "image", "ls", "--format", "{{.Repository}}:{{.Tag}}"]
    command += ["--filter", f"label={LABEL_SERVICE}={paths.service}", "--filter", f"label={LABEL_ROOT}={paths.home}"]
    listed = instances.engine.command(command, "list the images").out.split()
    for name in listed:
        if name not in kept and "<none>" not in name:
            instances.guard()
            fail_point("prune.image")
            try:
                instances.engine.command(["docker", "image", "rm", "--", name], f"remove the image {name}")
            except AgentFailure:
                continue  # another container uses it: it is not ours to remove
    fail_point("prune.end")
