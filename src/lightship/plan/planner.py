"""Facts and the desired state to a plan. Pure: no input, no output, no clock.

A plan's kind follows from what differs. The image's inputs or the container's settings: a container deploy; code as
well: a full deploy (container, then code); code alone: a code deploy; nothing: nothing to do.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal, Protocol

from lightship.model import Change, Container, Desired, Facts, Kind, Plan, ProxyClaim, Release, Step, short
from lightship_agent.records import replace

__all__ = ["PlannedService", "make_plan", "make_rollback_plan", "migrate_once"]

_SHOWN = 3
#: So many rollouts of a kind say how long the next one takes.
_REMEMBERED = 5
#: The names of steps are those that the agent reports.
_WEB_PROOF = (Step("workers", "see that every worker runs it"), Step("health", "ask the health path"))
_COMMIT = Step("commit", "write it down as stable", "and remove releases that are no longer kept")
_NO_WEB = "roles"
Override = Literal["code", "container", "full"]


class PlannedService(Protocol):
    """What a plan needs to know of a service's configuration."""

    @property
    def builds_image(self) -> bool:
        """Whether the image is built from a Dockerfile of the repository (or else pulled)."""

    @property
    def image_name(self) -> str:
        """The image's name, as far as it is known before it is made."""

    @property
    def check_names(self) -> Sequence[str]:
        """The configured checks."""

    @property
    def reload(self) -> str:
        """The reload way: swap, touch or chain, or roles where there is no web role."""

    @property
    def migrates(self) -> bool:
        """Whether migrations are configured."""

    @property
    def role_names(self) -> Sequence[str]:
        """The roles beside web that the server plays."""

    @property
    def proxy(self) -> ProxyClaim | None:
        """What the service wants of the proxy; none without one."""


def make_plan(
    service: PlannedService,
    facts: Facts,
    change: Change,
    desired: Desired,
    kind_override: Override | None = None,
    *,
    retry: bool = False,
) -> Plan:
    """The plan for one server. ``kind_override`` is the user's ``--kind``; ``retry`` lets a failed release in again."""
    container = _container_reasons(facts, change, desired)
    code = (*_code_reasons(facts, change), *_proxy_reasons(service, facts))
    kind: Kind
    why: tuple[str, ...]
    if kind_override is not None:
        kind = kind_override
        why = (f"asked for with --kind {kind_override}", *container, *code)
    elif container:
        kind = "full" if facts.container is None or change.code_changed else "container"
        # What made the container's kind is told already; of the rest only the code is news.
        why = (*container, *(_code_files(change) if facts.container is not None else ()))
    else:
        kind = "code" if code else "nothing"
        why = code or (f"{short(change.commit)} is live already",)
    return Plan(
        kind=kind,
        commit=change.commit,
        why=why,
        steps=_steps(service, facts, change, kind),
        change=change,
        expected_seconds=expected_seconds(facts, kind),
        blocked="" if retry or kind == "nothing" else _blocked(facts, change.commit),
    )


def make_rollback_plan(service: PlannedService, facts: Facts, commit: str) -> Plan:
    """The plan to go back to a release that the server has: a code deploy without the fetch."""
    release = facts.release(commit)
    change = Change(
        commit=commit,
        subject=release.subject if release else "",
        live=facts.current,
        ahead=False,
    )
    live = facts.current == commit and set(facts.loaded) <= {commit} and not facts.roles_problem and _running(facts)
    if live and facts.stable == commit:
        return Plan("nothing", commit, (f"{short(commit)} is live already",), (), change)
    why = [_unproven(commit) if live else f"back from {short(facts.current)} to {short(commit)}"]
    if facts.container is None or (release and _ran_elsewhere(release, facts.container)):
        why.append("it ran in a container of another image")
        seconds = expected_seconds(facts, "container")
        return Plan(
            "container", commit, tuple(why), _container_steps(service, facts, commit), change, expected_seconds=seconds
        )
    seconds = expected_seconds(facts, "code")
    return Plan("code", commit, tuple(why), _code_steps(service, facts, commit), change, expected_seconds=seconds)


def _ran_elsewhere(release: Release, container: Container) -> bool:
    """Whether a release ran in a container of another image. A name that moved stands for another one, too."""
    moved = release.image_id not in ("", container.image_id) and bool(container.image_id)
    return moved or release.fingerprint not in ("", container.fingerprint)


def expected_seconds(facts: Facts, kind: Kind) -> float | None:
    """The median of what the last rollouts of this kind took on this server; ``None`` when it has seen none."""
    took = [entry.seconds for entry in facts.history if entry.kind == kind and entry.outcome == "done"]
    return statistics.median(took[:_REMEMBERED]) if took else None


def migrate_once(plans: Sequence[Plan]) -> list[Plan]:
    """The plans of a rollout's servers, with the migrations on the first one that is changed, and nowhere else.

    The servers share a database, so whoever lacks migrations, they are run once, before another server boots the code.
    """
    step = next((step for plan in plans for step in plan.steps if step.name == "migrate"), None)
    first = next((index for index, plan in enumerate(plans) if not plan.nothing_to_do), None)
    if step is None:
        return list(plans)
    return [_with_migration(plan, step if index == first else None) for index, plan in enumerate(plans)]


def _with_migration(plan: Plan, step: Step | None) -> Plan:
    own = next((one for one in plan.steps if one.name == "migrate"), None)
    steps = [one for one in plan.steps if one.name != "migrate"]
    if step is not None:
        # Before the release is booted: its first page may need what the migrations bring.
        boot = next(index for index, one in enumerate(steps) if one.name in ("boot", "try"))
        steps.insert(boot, own or step)
    return replace(plan, steps=tuple(steps))


def _running(facts: Facts) -> bool:
    return facts.container is not None and facts.container.running


def _container_reasons(facts: Facts, change: Change, desired: Desired) -> tuple[str, ...]:
    if facts.container is None:
        return ("the first deploy: no container here yet",)
    reasons: list[str] = []
    if facts.container.fingerprint != desired.fingerprint:
        files = change.infra_changed
        reasons.append(f"{_some(files)} changed" if files else "the image was made from other files")
    if change.env_changed:
        reasons.append("environment or secrets changed")
    if facts.container.settings != desired.settings:
        changed = [name for name in desired.settings_changed if not (change.env_changed and name.startswith("env."))]
        names = list(dict.fromkeys(name.partition("[")[0] for name in changed))
        if names or not (desired.settings_changed or reasons):
            reasons.append(f"{_some(names)} in lightship.yml changed" if names else "settings of the container changed")
    return tuple(reasons)


def _code_reasons(facts: Facts, change: Change) -> tuple[str, ...]:  # noqa: PLR0911 - one for each reason
    if facts.current is None:
        # A container without a release: a first deploy that was cut off.
        return ("the first release in this container",) if facts.container is not None else ()
    if facts.current != change.commit:
        if not change.files_count and not change.files:
            return (f"{short(change.commit)} is to be live, with the same files as {short(facts.current)}",)
        count = change.files_count or len(change.files)
        return (f"{count} file{'s' if count != 1 else ''} changed ({_some([one.path for one in change.files])})",)
    if facts.container is not None and not facts.container.running:
        return (f"the container {facts.container.name} does not run ({facts.container.status or 'stopped'})",)
    others = [commit for commit in facts.loaded if commit != change.commit]
    if others:
        return (f"{_who_run(facts, others)} {', '.join(map(short, others))} and not {short(change.commit)}",)
    if facts.container is not None and facts.web and not facts.serving:
        return (f"no worker serves {short(change.commit)}",)
    if facts.roles_problem:
        return (facts.roles_problem,)
    if facts.stable != change.commit:
        return (_unproven(change.commit),)
    return ()


def _who_run(facts: Facts, others: Sequence[str]) -> str:
    """Those that run another release: workers, or processes of roles, or both."""
    roles = dict.fromkeys(one.role for one in facts.processes if one.release in others)
    web = any(worker.release in others for worker in facts.serving)
    names = [*(["workers"] if web else []), *(f"the role {role}" for role in roles)]
    return f"{' and '.join(names)} run{'s' if names and len(roles) == 1 and not web else ''}"


def _proxy_reasons(service: PlannedService, facts: Facts) -> tuple[str, ...]:
    if service.proxy is None or facts.container is None:
        return ()
    if facts.proxy is None:
        return ("the proxy does not serve it yet",)
    return () if facts.proxy.claim == service.proxy else ("proxy in lightship.yml changed",)


def _unproven(commit: str) -> str:
    """A rollout that could not be ended, nor taken back, leaves such a release; what is next proves it, and ends it."""
    return f"{short(commit)} is live, and was never written down as stable"


def _code_files(change: Change) -> tuple[str, ...]:
    infra = {*change.infra, *(change.infra_live or {})}
    code = [one.path for one in change.files if one.path not in infra]
    return (f"code changed ({_some(code)})",) if code else ()


def _some(names: Sequence[str]) -> str:
    if len(names) > _SHOWN:
        return f"{', '.join(names[:_SHOWN])} and {len(names) - _SHOWN} more"
    return ", ".join(names)


def _blocked(facts: Facts, commit: str) -> str:
    release = facts.release(commit)
    if release is None or release.state != "failed":
        return ""
    return f"{short(commit)} failed here before"


def _steps(service: PlannedService, facts: Facts, change: Change, kind: Kind) -> tuple[Step, ...]:
    if kind == "nothing":
        return ()
    before = _before(service, change, kind)
    if kind == "code":
        return _code_steps(service, facts, change.commit, before)
    image = (
        Step("build", "build the image", f"{service.image_name}; once for all servers, unless it is there already")
        if service.builds_image
        else Step("pull", "pull the image", service.image_name)
    )
    return (image, *_container_steps(service, facts, change.commit, before))


def _before(service: PlannedService, change: Change, kind: Kind) -> tuple[Step, ...]:
    """What runs in the new tree before it is booted: its first page may need what the migrations bring.

    To ask the database costs as long as a whole code deploy, so it is asked when it may have to change: when files that
    are migrations differ, or the container (and with it what is installed), or when it is not known what differs.
    """
    checks = tuple(Step(f"check {name}", f"check: {name}", "in the new release's tree") for name in service.check_names)
    unknown = change.live is None or change.files_count > len(change.files)
    if not service.migrates or not (change.migrations or unknown or kind != "code"):
        return checks
    detail = _some(list(change.migrations)) if change.migrations else "whatever the database still lacks"
    return (*checks, Step("migrate", "run the migrations", detail))


def _proof(service: PlannedService) -> tuple[Step, ...]:
    """What is seen after the flip, and the end."""
    web = _WEB_PROOF if service.reload != _NO_WEB else ()
    names = ", ".join(service.role_names)
    roles = (Step("roles", f"restart {names} on it", "jobs in flight are finished first"),) if names else ()
    return (*web, *roles, _COMMIT)


def _container_steps(
    service: PlannedService, facts: Facts, full: str, before: tuple[Step, ...] = ()
) -> tuple[Step, ...]:
    commit = short(full)
    names = ", ".join(facts.roles)
    rest = (
        (Step("rest", f"stop {names} in {facts.container.name}", "jobs in flight are finished first"),)
        if facts.container and names
        else ()
    )
    beside = service.proxy is not None and service.reload == "swap"
    return (
        *(
            (Step("proxy", "see that the proxy runs", "and can have what the service wants of it"),)
            if service.proxy
            else ()
        ),
        Step("tree", f"lay out the release {commit}"),
        Step("start", "start the new container", "beside the old one")
        if beside and facts.container
        else Step("start", "start the new image", "in a container that nobody can reach"),
        *before,
        Step("try", f"boot {commit} there"),
        *rest,
        _switch(service, facts, commit),
        *_proof(service),
    )


def _switch(service: PlannedService, facts: Facts, commit: str) -> Step:
    """How one container takes the place of the other, and whether visitors notice."""
    old = facts.container
    behind = facts.proxy is not None
    if service.proxy is not None and (old is None or behind):
        what = "let the proxy lead to the new container" + (f" on {commit}" if old is None else "")
        return Step("flip", what, f"{old.name} finishes its requests" if old else "")
    if old is None:
        return Step("flip", f"start the new container on {commit}")
    if service.proxy is not None:
        return Step(
            "flip",
            f"stop {old.name}, and let the proxy take its ports",
            "once, for a second or two, the site does not answer",
        )
    if behind:
        return Step(
            "flip",
            f"take the ports from the proxy, and start the new container on {commit}",
            f"for as long as that takes the site does not answer; {old.name} is kept until the new one is proven",
        )
    return Step(
        "flip",
        f"stop {old.name}, start the new container on {commit}",
        "for as long as that takes the site does not answer; the old one is kept until the new one is proven"
        if service.reload != _NO_WEB
        else "the old one is kept until the new one is proven",
    )


def _code_steps(service: PlannedService, facts: Facts, commit: str, before: tuple[Step, ...] = ()) -> tuple[Step, ...]:
    name = short(commit)
    start = () if _running(facts) else (Step("start", "start the container"),)
    if service.reload == "swap":
        boot = Step("boot", f"boot {name} in the idle slot", "beside the one that serves")
        flip = Step("flip", f"point current at {name}", "one rename: its workers begin to accept")
    elif service.reload == _NO_WEB:
        boot = Step("boot", f"import {name} in a candidate process")
        flip = Step("flip", f"point current at {name}")
    else:
        boot = Step("boot", f"import {name} in a candidate process")
        flip = Step("flip", f"point current at {name}", f"and reload the workers ({service.reload})")
    return (Step("tree", f"lay out the release {name}"), *start, *before, boot, flip, *_proof(service))
