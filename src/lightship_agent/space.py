"""Space: refuse before anything is written when disk or inodes would run out; give back what policy allows."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Sequence
from pathlib import Path

from lightship_agent import release as releases
from lightship_agent import slots
from lightship_agent.container import LABEL_ROOT, LABEL_SERVICE
from lightship_agent.errors import AgentFailure, Refused
from lightship_agent.failpoints import fail_point, register
from lightship_agent.instance import Instances
from lightship_agent.paths import ServicePaths
from lightship_agent.state import load_state
from lightship_agent.system import atomic_write, disk_free, read_trusted, remove_tree

__all__ = [
    "MARGIN_BYTES",
    "MARGIN_INODES",
    "note_image",
    "protected_releases",
    "prune_images",
    "prune_instances",
    "releases_in_use",
    "require_space",
]

register(
    prune__instance="what a container that is gone said of itself is about to be removed",
    prune__image="an image that nothing needs any more is about to be removed",
    image__note="which images were pulled is about to be written down",
    prune__end="all is removed that is past retention",
)

MARGIN_BYTES = 64 * 1024 * 1024
MARGIN_INODES = 1000
_BLOCK = 4096
_MIB = 1024 * 1024
_MAX_NOTED = 4 * 1024 * 1024


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


def protected_releases(paths: ServicePaths) -> set[str]:
    """The releases that must not go: current, stable, previous, and all that a slot or role is to run or runs."""
    state = load_state(paths)
    found: set[str | None] = {state.stable, state.previous}
    return releases_in_use(paths, left=True) | {commit for commit in found if commit}


def releases_in_use(paths: ServicePaths, *, left: bool = False) -> set[str]:
    """The releases that serve, or that a slot is to run or runs; with ``left`` also what stopped slots ran last."""
    found: set[str | None] = {releases.current_commit(paths)}
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


def note_image(paths: ServicePaths, name: str) -> None:
    """Write down that an image is here only because lightship pulled it."""
    known = _noted(paths)
    if name not in known:
        fail_point("image.note")
        _write_noted(paths, [*known, name])


def _noted(paths: ServicePaths) -> list[str]:
    try:
        found = json.loads(read_trusted(paths.images, _MAX_NOTED) or b"[]")
    except ValueError:
        return []
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []


def _write_noted(paths: ServicePaths, names: Sequence[str]) -> None:
    atomic_write(paths.images, json.dumps(list(names)).encode(), 0o600)


def prune_images(instances: Instances) -> None:
    """Remove the images that were built or pulled here for releases that are gone.

    Those in use and those to go back to stay, under whatever name; and one that is newer than what serves: it may have
    been built ahead of its deploy.
    """
    paths, engine = instances.paths, instances.engine
    kept = _kept_images(instances)
    serving = instances.find(load_state(paths).instance)
    newest = engine.image(serving.image_id) if serving else None
    ours = engine.images(f"label={LABEL_SERVICE}={paths.service}", f"label={LABEL_ROOT}={paths.home}")
    for image in ours:
        if image.id not in kept and not (newest and image.created > newest.created):
            # An image with names in several repositories goes by its names; one without any by its id.
            for name in (*image.tags, *image.digests) or (image.id,):
                _remove_image(instances, name)
    noted = _noted(paths)
    for name in noted:
        found = engine.image_id(name)
        if found is not None and found not in kept:
            _remove_image(instances, name)
    left = [name for name in noted if engine.image_id(name) is not None]
    if left != noted:
        fail_point("image.note")
        _write_noted(paths, left)
    fail_point("prune.end")


def _kept_images(instances: Instances) -> set[str]:
    """The ids of the images that a container was made of, or that a kept release ran in."""
    engine, paths = instances.engine, instances.paths
    found: set[str | None] = {one.image_id for one in engine.containers_of(paths)}
    for release in releases.load_all(paths):
        if release.state in ("stable", "retired"):
            settings = release.extra.get("container") or {}
            found |= {settings.get("image_id") or None, engine.image_id(str(settings.get("image") or "none:none"))}
    return {one for one in found if one}


def _remove_image(instances: Instances, name: str) -> None:
    instances.guard()
    fail_point("prune.image")
    # What another container uses stays, and is not ours to remove.
    with contextlib.suppress(AgentFailure):
        instances.engine.command(["docker", "image", "rm", "--", name], f"remove the image {name}")
