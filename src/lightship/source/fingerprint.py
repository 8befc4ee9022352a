"""The fingerprint: a hash of all that makes a container. It tells a change of code from one of infrastructure.

Pure. Two things go in: the infrastructure files by path and blob id, and the service's settings that the container is
built or started with. What only concerns a release (branch, checks, health, how many to keep) stays out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightship.config.schema import Service

__all__ = ["VERSION", "container_fingerprint", "differences", "image_fingerprint", "role_settings", "settings_of"]

VERSION = 1
"""Goes into every fingerprint. A change of what is hashed, or of how containers are started, counts it up."""


def settings_of(service: Service) -> dict[str, Any]:
    """The part of a service's settings that its container depends on, as plain JSON.

    Values of ``env`` and ``secrets`` are not here, only their names: the server compares the values by digest. Nor are
    those of build arguments, only their digests, since this is kept as a label of the container.
    """
    found = {
        "image": _image_settings(service),
        "ports": list(service.ports),
        "volumes": list(service.volumes),
        "options": list(service.options),
        "env": sorted({*service.env, *service.secrets}),
        "reload": service.reload,
        "root": service.root,
        # Only what the container depends on; and nothing, so that the containers of those without one stay as they are.
        **({"proxy": {"port": service.behind.port}} if service.behind is not None else {}),
    }
    # Only where there are some: a container of a service without any is as it was.
    return {**found, "roles": role_settings(service)} if service.roles else found


def role_settings(service: Service) -> dict[str, Any]:
    """The roles as their container knows them."""
    return {
        name: {
            "command": list(role.command),
            "program": role.program or "",
            "processes": role.processes,
            "patience": role.patience,
            "settle": role.settle,
            "signal": role.signal,
        }
        for name, role in service.roles.items()
    }


def _image_settings(service: Service) -> dict[str, Any]:
    if isinstance(service.image, str):
        return {"name": service.image}
    args = {name: _digest(["arg", name, value])[:16] for name, value in service.image.args.items()}
    return {"dockerfile": service.image.dockerfile, "context": service.image.context, "args": args}


def image_fingerprint(infra_files: Mapping[str, str], image_settings: Mapping[str, Any]) -> str:
    """The fingerprint of an image: from its files (path to blob id) and ``settings_of(service)["image"]``."""
    return _digest({"kind": "image", "version": VERSION, "files": dict(infra_files), "settings": image_settings})


def container_fingerprint(image: str, settings: Mapping[str, Any]) -> str:
    """The fingerprint of a container: from that of its image and :func:`settings_of` the service."""
    return _digest({"kind": "container", "version": VERSION, "image": image, "settings": settings})


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The paths, in words such as ``image.args.PYTHON`` or ``ports[0]``, at which two settings differ; sorted."""
    return sorted(set(_differences(old, new, "")))


def _differences(old: Any, new: Any, path: str) -> list[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found: list[str] = []
        for key in {*old, *new}:
            inner = f"{path}.{key}" if path else str(key)
            if key not in old or key not in new:
                found.append(inner)
            else:
                found += _differences(old[key], new[key], inner)
        return found
    if path == "env" and isinstance(old, list) and isinstance(new, list):
        # Names: which ones came or went says more than which places of the list differ.
        return [f"env.{name}" for name in {*map(str, old)} ^ {*map(str, new)}]
    if isinstance(old, list) and isinstance(new, list):
        found = [f"{path}[{index}]" for index in range(min(len(old), len(new))) if not _same(old[index], new[index])]
        return found + [f"{path}[{index}]" for index in range(min(len(old), len(new)), max(len(old), len(new)))]
    return [] if _same(old, new) else [path]


def _same(old: Any, new: Any) -> bool:
    return _canonical(old) == _canonical(new)


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")


def _digest(value: Any) -> str:
    return hashlib.sha256(_canonical(value)).hexdigest()
