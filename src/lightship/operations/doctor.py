"""``lightship doctor``: a service and its servers from end to end. Nothing is changed."""

from __future__ import annotations

import calendar
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from lightship.errors import LightshipError
from lightship.model import Certificate, Facts, ProxyFacts
from lightship.operations.context import Context
from lightship.operations.fleet import at_most
from lightship.operations.roles import NO_WEB
from lightship.operations.setup import find_facts
from lightship.plan.setup import plan_setup
from lightship.rollout import Session
from lightship.source.remote import resolve
from lightship.transport.shell import Shells, run_program
from lightship_agent.records import dataclass

if TYPE_CHECKING:
    from lightship.config.schema import Service

__all__ = [
    "Check",
    "CheckState",
    "DoctorResult",
    "doctor",
    "judge_clock",
    "judge_examined",
    "judge_proxy",
    "judge_service",
]

CheckState = Literal["ok", "warning", "wrong", "unknown"]
_CLOCK_SECONDS = 5.0
_LOW_BYTES, _LEAST_BYTES = 1024**3, 128 * 1024**2
_LOW_INODES, _LEAST_INODES = 20_000, 2_000
_GIT_SECONDS = 15.0
#: A certificate of ACME is renewed 30 days before its end.
_CERTIFICATE_DAYS = 14


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. ``server`` is empty for what is looked at from here."""

    name: str
    state: CheckState
    message: str
    hint: str = ""
    server: str = ""


@dataclass(frozen=True, slots=True)
class DoctorResult:
    """All checks."""

    service: str
    checks: tuple[Check, ...]

    @property
    def exit_status(self) -> int:
        """5 when something is wrong."""
        return 5 if any(one.state == "wrong" for one in self.checks) else 0


async def doctor(context: Context) -> DoctorResult:
    """Look at everything."""
    count = len(context.servers)
    checks = [Check("configuration", "ok", f"{context.service.name}, {count} server{'s' if count != 1 else ''}")]
    checks += _secrets(context)
    checks.append(await _git_host(context))
    shells = Shells()
    for found in await at_most(lambda name: _server(context, shells, name), context.names):
        checks += found
    return DoctorResult(context.service.name, tuple(checks))


def _secrets(context: Context) -> list[Check]:
    from lightship.config.secrets import resolve_one  # noqa: PLC0415

    checks = []
    for name, source in context.service.secrets.items():
        warnings: list[str] = []
        try:
            resolve_one(name, source, context.config.directory, warn=warnings.append)
        except LightshipError as error:
            checks.append(Check(f"secret {name}", "wrong", error.message, error.hint or "make its source readable"))
            continue
        state: CheckState = "warning" if warnings else "ok"
        checks.append(Check(f"secret {name}", state, "; ".join(warnings) or "there"))
    return checks


async def _git_host(context: Context) -> Check:
    service = context.service
    try:
        found = await resolve(service.repository, service.branch, timeout=_GIT_SECONDS)
    except LightshipError as error:
        name = "branch" if error.code == "no-such-ref" else "git host"
        return Check(name, "wrong", error.message, error.hint)
    return Check("git host", "ok", f"{service.branch} is at {found.commit[:7]}")


async def _server(context: Context, shells: Shells, name: str) -> list[Check]:
    server, service = context.server(name), context.service_on(name)
    try:
        shell = await shells.open(server)
    except LightshipError as error:
        what = "host key" if error.code.startswith("host-key") else "connection"
        return [Check(what, "wrong", error.message, error.hint, name)]
    checks = [Check("connection", "ok", "this machine" if server.local else "host key known, logged in", "", name)]
    try:
        try:
            before = time.time()
            prefix, facts = await find_facts(shell, service.root)
            checks += _ready(facts, name)
            if facts.get("looked") is False or facts.get("uid") != 0:
                return checks
            checks.append(judge_clock(before, float(facts["time"]), time.time(), name))
            answer = await run_program(shell, prefix, _request(service))
        finally:
            await shell.close()
        running = None
        if facts["engine"].get("version"):
            session = Session(context.connect(name), context.hello(why="doctor", lock=False), context.emit)
            await session.open()
            await session.bye()
            running = session.facts
            checks += judge_service(running, name)
            checks += judge_proxy(service.behind is not None, running.proxy, time.time(), name)
        return checks + judge_examined(service, answer["examined"], running, name)
    except LightshipError as error:
        return [*checks, Check("server", "wrong", error.message, error.hint, name)]


def _ready(facts: Mapping[str, Any], name: str) -> list[Check]:
    """What setup would change or leave to a person is wrong."""
    return [
        Check(
            one.name,
            "ok" if one.state == "ok" else "wrong",
            one.message,
            one.hint if one.state != "change" else f"lightship setup --server {name}",
            name,
        )
        for one in plan_setup(facts).items
    ]


def _ports(service: Service) -> list[int]:
    """The server's ports that the service publishes, or that the proxy is to have for it."""
    if service.behind is not None:
        proxy = service.behind
        return [port for port in (proxy.http, proxy.https if proxy.certificates else None) if port]
    found = [port.partition("/")[0].split(":") for port in service.ports]
    return [int(parts[-2]) for parts in found if len(parts) > 1 and parts[-2].isdigit()]


def _request(service: Service) -> dict[str, Any]:
    ports, health, proxy = _ports(service), service.health, service.behind
    address, credentials = service.repository.access()
    return {
        "do": "examine",
        "root": service.root,
        "service": service.name,
        "ports": ports,
        # Credentials are not sent for a look; a deploy hands them over its own way.
        "repository": "" if credentials or service.source == "push" else address,
        "ref": service.branch,
        "health": {
            "port": ports[0],
            "address": (proxy.address if proxy else None) or "127.0.0.1",
            "path": health.path,
            # The proxy knows the service by its names.
            "host": proxy.hosts[0] if proxy and proxy.hosts else health.host,
            "body": health.body,
            "timeout": health.timeout,
        }
        if ports and (proxy is None or proxy.http is not None)
        else None,
    }


def judge_clock(before: float, there: float, after: float, name: str) -> Check:
    """The server's clock against ours, which were read around it."""
    differs = max(before - there, there - after, 0.0)
    if differs > _CLOCK_SECONDS:
        return Check("clock", "wrong", f"differs by {differs:.0f} s", "have a time service run on both", name)
    return Check("clock", "ok", "as here", "", name)


def judge_service(facts: Facts, name: str) -> list[Check]:
    """What the agent found of the service."""
    if facts.current is None and not facts.history:
        return [Check("service", "warning", "nothing was deployed there yet", "lightship deploy", name)]
    checks = []
    container = facts.container
    if container is None:
        checks.append(Check("container", "wrong", "there is none", "lightship deploy --kind container", name))
    elif not container.running or container.status == "restarting":
        said = container.status or "stopped"
        checks.append(Check("container", "wrong", f"{container.name} is {said}", "see why: lightship logs", name))
    else:
        checks.append(Check("container", "ok", f"{container.name} runs", "", name))
        others = [one[:7] for one in facts.loaded if one != facts.current]
        if facts.web and not facts.serving:
            checks.append(Check("workers", "wrong", "none says that it serves", "see why: lightship logs", name))
        elif others:
            text = f"some run {', '.join(others)}, and {(facts.current or 'nothing')[:7]} is current"
            checks.append(Check("workers", "wrong", text, "lightship deploy", name))
        elif facts.web:
            checks.append(Check("workers", "ok", f"{len(facts.serving)} serve", "", name))
        checks += _roles(facts, name)
    if facts.stable is not None and facts.current != facts.stable:
        text = f"{(facts.current or 'nothing')[:7]} is current, {facts.stable[:7]} was the last stable one"
        checks.append(Check("rollout", "wrong", text, "a rollout was interrupted; the next deploy ends it", name))
    elif facts.history and facts.history[0].outcome == "degraded":
        checks.append(Check("rollout", "wrong", "the last one ended degraded", "lightship status; then deploy", name))
    else:
        checks.append(Check("rollout", "ok", "none is unfinished", "", name))
    return checks


def _roles(facts: Facts, name: str) -> list[Check]:
    """Whether each role's processes are there."""
    return [
        Check(f"role {role}", "wrong", found.problem, "see why: lightship logs; then lightship deploy", name)
        if found.problem
        else Check(f"role {role}", "ok", f"{len(found.processes)} run", "", name)
        for role, found in facts.roles.items()
    ]


def judge_proxy(wanted: bool, proxy: ProxyFacts | None, now: float, name: str) -> list[Check]:
    """What the agent found of the proxy: whether it leads to the service, and how long its certificates last."""
    if proxy is None:
        text = "it does not serve the service yet"
        return [Check("proxy", "warning", text, "lightship deploy", name)] if wanted else []
    if proxy.problem:
        hint = f"docker logs {proxy.container}; `lightship proxy` puts it right"
        return [Check("proxy", "wrong", proxy.problem, hint, name)]
    checks = [Check("proxy", "ok", f"{proxy.container} leads to the service", "", name)]
    if proxy.maintenance is not None:
        checks.append(Check("maintenance", "warning", "visitors are turned away", "lightship maintenance off", name))
    return [*checks, *(_certificate(one, now, name) for one in proxy.certificates)]


def _certificate(found: Certificate, now: float, name: str) -> Check:
    try:
        until = calendar.timegm(time.strptime(found.until, "%b %d %H:%M:%S %Y GMT"))
    except ValueError:
        return Check("certificate", "unknown", f"{found.path}: the proxy does not say how long it is valid", "", name)
    days = int((until - now) // 86400)
    text = f"{found.path}: valid for {days} days" if until > now else f"{found.path}: expired"
    state: CheckState = "wrong" if until <= now else "warning" if days < _CERTIFICATE_DAYS else "ok"
    return Check("certificate", state, text, "" if state == "ok" else "renew it, then: lightship proxy", name)


def judge_examined(service: Service, found: Mapping[str, Any], facts: Facts | None, name: str) -> list[Check]:
    """What the program found: space, the git host, ports, health."""
    checks = [_space(found, name), _git_from_there(found.get("git"), service, name)]
    if found.get("unfinished"):
        text = "one was begun and has not ended: it is under way, or was interrupted"
        checks.append(Check("journal", "warning", text, "if nobody deploys now, the next deploy ends it", name))
    up = facts is not None and facts.container is not None and facts.container.running
    if facts is not None:
        own = found.get("proxy_ports", []) if service.behind is not None else []
        taken = [] if up else [str(port) for port in found.get("listening", []) if port not in own]
        text = f"somebody else listens on {', '.join(taken)}" if taken else "nobody else has them"
        hint = "see who: ss -ltnp; or take another port" if taken else ""
        checks.append(Check("ports", "wrong" if taken else "ok", text, hint, name))
    away = facts is not None and facts.proxy is not None and facts.proxy.maintenance is not None
    if service.reload != NO_WEB:
        checks.append(_health(service, found.get("health") if up and not away else None, name))
    return checks


def _space(found: Mapping[str, Any], name: str) -> Check:
    size, inodes = int(found["free_bytes"]), found.get("free_inodes")
    few = inodes is not None
    text = f"{size // 1024**2} MiB" + (f" and {inodes} inodes" if few else "") + " free"
    state: CheckState = "ok"
    if size < _LOW_BYTES or (few and int(inodes or 0) < _LOW_INODES):
        state = "warning"
    if size < _LEAST_BYTES or (few and int(inodes or 0) < _LEAST_INODES):
        state = "wrong"
    return Check("space", state, text, "" if state == "ok" else "free some: docker system df shows Docker's", name)


def _git_from_there(git: Mapping[str, Any] | None, service: Service, name: str) -> Check:
    if service.source == "push":
        return Check("git from there", "ok", "not needed: the code is sent from here", "", name)
    if git is None:
        return Check("git from there", "unknown", "not asked: the address has credentials", "", name)
    if git.get("status") == 0:
        if git.get("found"):
            return Check("git from there", "ok", "the git host answers", "", name)
        return Check("git from there", "wrong", f"no {service.branch} there", "is it pushed?", name)
    lines = str(git.get("output", "")).splitlines()
    text = next((one for one in lines if "Host key" in one or one.startswith("fatal:")), lines[-1] if lines else "")
    hint = "as root there: git ls-remote; it needs a key, and the git host's key in /root/.ssh/known_hosts"
    return Check("git from there", "wrong", text or "no answer in time", hint, name)


def _health(service: Service, health: Mapping[str, Any] | None, name: str) -> Check:
    path = service.health.path
    if health is None:
        return Check("health", "unknown", f"{path} was not asked for", "", name)
    status = health.get("status")
    if status is None:
        return Check("health", "wrong", f"{path}: {health.get('error')}", "see why: lightship logs", name)
    if not service.health.accepts(int(status)) or not health.get("body"):
        what = f"{path} answered {status}" + ("" if health.get("body") else ", without the expected text")
        return Check("health", "wrong", what, "see why: lightship logs", name)
    return Check("health", "ok", f"{path} answered {status}", "", name)
