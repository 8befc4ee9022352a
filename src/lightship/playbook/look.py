"""Tasks of their own, outside a rollout: what a host runs, and what it lacks to be a server."""

from __future__ import annotations

import shlex
from typing import Any

from lightship.errors import LightshipError
from lightship.model import Facts, Server
from lightship.operations.setup import ServerSetup, bring_to_ready
from lightship.operations.status import server_status
from lightship.playbook.job import Job
from lightship.playbook.place import Place
from lightship.playbook.task import Task
from lightship.result import ServerStatus
from lightship.transport.held import python_for
from lightship.transport.shell import Ran
from lightship_agent.records import asdict

__all__ = ["facts", "setup", "told"]


async def facts(job: Job, place: Place) -> ServerStatus:
    """What the host runs of the service."""
    task = Task(job, place)
    session = task.session(lock=False, ahead={"hello": (("bye", {}),)})
    try:
        await session.open()
        await session.end()
    except LightshipError as error:
        await session.end()
        raise task.clean(error) from None
    return server_status(session)


def told(status: ServerStatus) -> dict[str, Any]:
    """What a playbook gets to know: only what was read by its type, and what can be said in its own words."""
    found: Facts = status.facts or Facts("")
    serving = found.serving
    return {
        "current": found.current,
        "stable": found.stable,
        "previous": found.previous,
        "loaded": list(status.loaded),
        "workers": len(serving),
        "releases": [asdict(one) for one in found.releases],
        "container": None if found.container is None else asdict(found.container),
        "roles": {name: {"release": role.release, "problem": role.problem} for name, role in found.roles.items()},
        "hostname": found.hostname,
        "python": found.python,
        "docker": found.docker,
        "git": found.git,
        "free_bytes": found.free_bytes,
        "ready": bool(found.current) and set(status.loaded) == {found.current} and not found.roles_problem,
    }


async def setup(place: Place, root: str, *, check: bool = False) -> ServerSetup:
    """Bring the host to ready; with ``check`` only say what it lacks."""
    return await bring_to_ready(_TaskShell(place), root, dry_run=check)


class _TaskShell:
    """Commands on the host, as whoever Ansible becomes there."""

    def __init__(self, place: Place) -> None:
        self.server = Server(place.name, place.name, sudo=False)
        self.user = "root"
        self.python = python_for(place.python)
        self._place = place

    async def run(self, argv: list[str], data: bytes = b"", *, seconds: float = 60) -> Ran:  # noqa: ARG002
        """Run a command."""
        return self._place.run(shlex.join(argv), data)

    async def close(self) -> None:
        """Ansible ends its connection."""
