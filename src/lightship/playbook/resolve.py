"""The first task of a rollout, once for all hosts: read the configuration, ask the git host, get the secrets."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightship.errors import UsageError
from lightship.model import Server
from lightship.operations.context import Context
from lightship.operations.deploy import Wanted, check_wanted, known_ref, service_secrets
from lightship.operations.roles import played
from lightship.operations.rollback import check_back
from lightship.operations.rolling import Rolling, strategy_of
from lightship.playbook.job import Job, private_folder
from lightship.rollout.events import Event, Note
from lightship.transport.base import Transport
from lightship_agent.records import dataclass, field, replace

if TYPE_CHECKING:
    from lightship.config.schema import Service
    from lightship.rollout import Amount

__all__ = ["Given", "Resolved", "resolve", "told"]


@dataclass(frozen=True, slots=True)
class Given:
    """What only a playbook can say: the roles of hosts by its variables, and secrets from its vault."""

    roles: Mapping[str, Sequence[str]] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Resolved:
    """The job, and what a playbook has to know of it before it goes on."""

    job: Job
    service: str
    serial: tuple[str, ...]
    """The batches, as Ansible's ``serial`` takes them: the canary, then the others."""


async def resolve(job: Job, wanted: Wanted, given: Given, folder: Path, tell: Callable[[str], None]) -> Resolved:
    """Find out what the rollout is about. ``folder`` is a place for its papers."""

    def emit(event: Event) -> None:
        if isinstance(event, Note):
            tell(event.text)

    if job.source.settings is None and job.source.config is None:
        from lightship.config.load import find  # noqa: PLC0415

        job = replace(job, source=replace(job.source, config=str(find())))
    loaded = job.source.load()
    service = loaded.service(job.source.service, job.source.stage)
    job = replace(
        job,
        source=replace(job.source, service=service.name, stage=service.stage),
        root=service.root,
        roles=_roles(service, job.hosts, given.roles),
        folder=str(private_folder(folder / f"lightship-{secrets.token_hex(8)}")),
    )
    context = job.context(emit, _nowhere)
    strategy = strategy_of(service, Rolling())
    serial = _serial(len(job.hosts), strategy.canaries(len(job.hosts)), strategy.batch)
    if job.kind == "rollback":
        check_back(job.to, Rolling())
        return Resolved(job, service.name, serial)
    return Resolved(await _found(job, context, wanted, given.secrets), service.name, serial)


async def _found(job: Job, context: Context, wanted: Wanted, given: Mapping[str, str]) -> Job:
    check_wanted(wanted)
    for name, value in given.items():
        _check_secret(name, value)
    own = {name: source for name, source in context.service.secrets.items() if name not in given}
    context = replace(context, service=context.service.model_copy(update={"secrets": own}))
    found, values = await asyncio.gather(known_ref(context, wanted), service_secrets(context))
    if found is None:
        raise UsageError(
            f"{wanted.commit} is not a whole commit",
            hint="give all its digits; hosts that differ may know different commits that begin so",
            code="bad-commit",
        )
    hidden = {**{name: value.reveal() for name, value in values.items()}, **given}
    env = {**context.service.env, **hidden}
    return replace(job, ref=found.ref, commit=found.commit, env=env, secret=tuple(hidden))


def _check_secret(name: str, value: str) -> None:
    """By the rules for what stands in lightship.yml; the value is not told."""
    from lightship.config.rules import ENV_NAME, ENV_VALUE, RuleError  # noqa: PLC0415

    for what, rule, text in ((f"the name {name[:100]!r}", ENV_NAME, name), (f"the value of {name}", ENV_VALUE, value)):
        try:
            rule(text)
        except RuleError as error:
            raise UsageError(f"secrets: {what} {error.rule}", code="bad-value") from None


def _nowhere(name: str) -> Transport:
    raise AssertionError(f"nobody connects to {name} yet")


def _roles(
    service: Service, hosts: Sequence[str], given: Mapping[str, Sequence[str]]
) -> dict[str, tuple[str, ...] | None]:
    """The roles of each host: as its variables say, or as the server of that name or address has them."""
    known: dict[str, Server] = {}
    for server in () if service.inventory else service.machines:
        known.setdefault(server.host, server)
        known[server.name] = server
    found: dict[str, tuple[str, ...] | None] = {}
    for host in hosts:
        if host in given:
            found[host] = tuple(map(str, given[host]))
        else:
            found[host] = played(service, known[host]) if host in known else None
    return found


def _serial(hosts: int, canaries: int, batch: Amount) -> tuple[str, ...]:
    size = max(1, batch.of(hosts))
    return (*((str(canaries),) if canaries else ()), str(size))


def told(found: Resolved) -> dict[str, Any]:
    """What the task returns, beside the sealed job."""
    job = found.job
    return {
        "service": found.service,
        "kind": job.kind,
        "ref": job.ref,
        "commit": job.commit,
        "hosts": list(job.hosts),
        "serial": list(found.serial),
    }
