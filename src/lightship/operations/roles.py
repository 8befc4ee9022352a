"""Which roles a server plays, as the service that it runs: the same one, with what belongs to its roles alone. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightship.errors import ConfigurationError
from lightship.model import Server

if TYPE_CHECKING:
    from lightship.config.schema import Service

__all__ = ["NO_WEB", "WEB", "part_services", "played"]

WEB = "web"
NO_WEB = "roles"
"""The reload way of a server that runs no uWSGI, as the agent knows it."""


def played(service: Service, server: Server) -> tuple[str, ...]:
    """The roles that a server plays: those it names, or else all that the service has."""
    return (WEB, *service.roles) if server.roles is None else server.roles


def part_services(service: Service, servers: Sequence[Server]) -> dict[str, Service]:
    """For each server by name the service as it runs there.

    A role with ``once`` is left to the first server that plays it. A server without ``web`` publishes no ports. Raises
    ``ConfigurationError`` for a role that the service does not have.
    """
    taken: set[str] = set()
    parts: dict[tuple[str, ...], Service] = {}
    found: dict[str, Service] = {}
    for server in servers:
        names = played(service, server)
        unknown = [name for name in names if name != WEB and name not in service.roles]
        if unknown:
            raise ConfigurationError(
                f"the server {server.name} has the role {unknown[0]}, which the service {service.name} does not have",
                hint=f"describe it under `roles`; there are: {', '.join((WEB, *service.roles))}",
                code="role",
            )
        mine = tuple(name for name in names if name == WEB or not (service.roles[name].once and name in taken))
        taken.update(mine)
        if mine not in parts:
            parts[mine] = _part(service, mine)
        found[server.name] = parts[mine]
    return found


def _part(service: Service, names: Sequence[str]) -> Service:
    roles = {name: role for name, role in service.roles.items() if name in names}
    if WEB in names:
        return service if len(roles) == len(service.roles) else service.model_copy(update={"roles": roles})
    return service.model_copy(update={"roles": roles, "reload": NO_WEB, "ports": (), "proxy": "none"})
