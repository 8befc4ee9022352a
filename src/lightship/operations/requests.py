"""The arguments of the agent's operations, from the configuration and what is known. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightship.image import Wanted, built_name
from lightship.model import Change, Desired, Facts, Plan, ProxyClaim
from lightship.source.fingerprint import differences, image_fingerprint, role_settings, settings_of
from lightship_agent.records import dataclass

if TYPE_CHECKING:
    from lightship.config.schema import Service

__all__ = [
    "PlannedShape",
    "desired_state",
    "health_args",
    "image_name",
    "inspect_args",
    "prepare_args",
    "proxy_args",
    "settings_differences",
    "settings_text",
    "wanted_image",
]


@dataclass(frozen=True, slots=True)
class PlannedShape:
    """What ``plan.make_plan`` wants to know of a service."""

    builds_image: bool
    image_name: str
    check_names: Sequence[str]
    reload: str
    migrates: bool
    role_names: Sequence[str] = ()
    proxy: ProxyClaim | None = None


def planned_shape(service: Service, fingerprint: str = "") -> PlannedShape:
    """The service as the planner sees it."""
    built = not isinstance(service.image, str)
    claim = proxy_args(service)
    return PlannedShape(
        built,
        image_name(service, fingerprint),
        tuple(check.name for check in service.checks),
        service.reload,
        service.migrate is not None,
        tuple(service.roles),
        None if claim is None else ProxyClaim.from_json(claim),
    )


def settings_text(service: Service) -> str:
    """The container's settings as the label that the container carries."""
    return json.dumps(settings_of(service), sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def settings_differences(old: str, new: str) -> list[str]:
    """Which settings differ between two labels; none when the old one cannot be read."""
    try:
        before, after = json.loads(old), json.loads(new)
    except ValueError:
        return []
    return differences(before, after) if isinstance(before, dict) and isinstance(after, dict) else []


def desired_state(service: Service, change: Change, facts: Facts) -> Desired:
    """What the configuration and the commit ask for."""
    settings = settings_text(service)
    live = facts.container.settings if facts.container is not None else ""
    # Of a built image the inputs are its fingerprint already.
    changed = tuple(path for path in settings_differences(live, settings) if not path.startswith("image.args"))
    return Desired(
        fingerprint=image_fingerprint(change.infra, settings_of(service)["image"]),
        settings=settings,
        settings_changed=changed,
    )


def image_name(service: Service, fingerprint: str) -> str:
    """The image's name: as configured, or after what it is built from."""
    if isinstance(service.image, str):
        return service.image
    return built_name(service.name, fingerprint, service.registry)


def inspect_args(service: Service, ref: str, commit: str, env: Mapping[str, str] | None) -> dict[str, Any]:
    """``inspect``: say what the commit would change, and fetch it first unless it is sent from here."""
    return {
        "repository": None if service.source == "push" else service.repository.reveal(),
        "ref": ref,
        "commit": commit,
        "infra": list(service.infra_globs),
        "migrations": list(service.migrate.files) if service.migrate else [],
        "env": None if env is None else dict(env),
    }


def wanted_image(service: Service, commit: str, desired: Desired) -> Wanted:
    """The image that the servers are to have, and how it is built where nobody has it yet."""
    name = image_name(service, desired.fingerprint)
    if isinstance(service.image, str):
        return Wanted(name)
    build = {
        "commit": commit,
        "tag": name,
        "dockerfile": service.image.dockerfile,
        "context": service.image.context,
        "args": dict(service.image.args),
        "labels": {"lightship.service": service.name, "lightship.fingerprint": desired.fingerprint},
    }
    return Wanted(name, build, pushed=service.registry is not None)


def health_args(service: Service) -> dict[str, Any]:
    """What a healthy service answers, as the agent reads it."""
    health = service.health
    return {
        "path": health.path,
        "host": health.host,
        "status": [str(status) for status in health.status],
        "body": health.body,
        "timeout": health.timeout,
    }


def proxy_args(service: Service) -> dict[str, Any] | None:
    """What the service wants of the proxy, as the agent reads it; ``None`` without one."""
    wanted = service.behind
    if wanted is None:
        return None
    return {
        "hosts": list(dict.fromkeys(wanted.hosts)),
        "address": wanted.address or "",
        "http": wanted.http or 0,
        "https": wanted.https if wanted.certificates else 0,
        "certificates": list(wanted.certificates),
        "redirect": wanted.redirect and bool(wanted.certificates) and wanted.http is not None,
        "timeout": wanted.timeout,
        "port": wanted.port,
        "image": wanted.image,
        "acme_port": wanted.acme_port or 0,
    }


def _migrate_args(service: Service, plan: Plan) -> dict[str, Any] | None:
    """``migrate``, when the plan has such a step."""
    if service.migrate is None or not any(step.name == "migrate" for step in plan.steps):
        return None
    migration = service.migrate
    return {"command": list(migration.command), "timeout": migration.timeout, "state": list(migration.state)}


def prepare_args(
    service: Service, plan: Plan, *, retry: bool, why: str, container: Mapping[str, Any] | None
) -> dict[str, Any]:
    """``prepare``: everything that is done before the flip."""
    return {
        "commit": plan.commit,
        "kind": plan.kind,
        "app": service.app,
        "health": health_args(service),
        "patience": service.patience,
        "boot_timeout": service.boot_timeout,
        "soak": service.soak,
        "reload": service.reload,
        "shared": list(service.shared),
        "keep": service.keep,
        "keep_warm": service.keep_warm if service.reload == "swap" else 0,
        "checks": [
            {
                "name": check.name,
                "command": list(check.command),
                "timeout": check.timeout,
                "required": check.required,
            }
            for check in service.checks
            if any(step.name == f"check {check.name}" for step in plan.steps)
        ],
        "migrate": _migrate_args(service, plan),
        "retry": retry,
        "why": why,
        "container": None if container is None else dict(container),
        "proxy": proxy_args(service),
        "assets": None
        if service.assets is None
        else {"directory": service.assets.directory, "seconds": service.assets.days * 86400},
    }


def container_args(service: Service, desired: Desired, env: Mapping[str, str]) -> dict[str, Any]:
    """What the next instance is started with."""
    return {
        "image": image_name(service, desired.fingerprint),
        "options": list(service.options),
        "ports": list(service.ports),
        "volumes": list(service.volumes),
        "env": dict(env),
        "secrets": sorted(service.secrets),
        "fingerprint": desired.fingerprint,
        "settings_digest": desired.settings,
        "labels": {},
        "roles": role_settings(service),
    }
