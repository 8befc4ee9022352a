"""What a rollout works with, and what it starts from: what serves, where the release is to boot, with which container.

The situation stands in the journal before anything happens, so the next conversation can undo or finish a rollout.
"""

from __future__ import annotations

from lightship_agent import TYPE_CHECKING, handover, slots
from lightship_agent import release as releases
from lightship_agent.errors import Refused
from lightship_agent.health import HealthCheck
from lightship_agent.instance import describe, settings_from
from lightship_agent.records import asdict, dataclass
from lightship_agent.reload import idle_slot, live_slot
from lightship_agent.roles import NO_WEB
from lightship_agent.state import load_state
from lightship_agent.warm import warm_slot

if TYPE_CHECKING:
    from typing import Any, Callable, ContextManager, Dict, Mapping, Optional

    from lightship_agent.git import Mirror
    from lightship_agent.instance import Instances
    from lightship_agent.journal import Journal
    from lightship_agent.paths import ServicePaths
    from lightship_agent.requests import PrepareRequest
    from lightship_agent.state import ServiceState
    from lightship_agent.system import Run

    Step = Callable[[str], ContextManager[Dict[str, Any]]]

__all__ = ["Situation", "Tools", "decide", "refuse_failed"]


@dataclass(frozen=True)
class Tools:
    """What a rollout works with. ``guard`` refuses when the lock was taken over, ``checkpoint`` after a call-off.

    ``run`` runs a program with the lock as its own, too: what it began is over before the next rollout begins.
    ``began`` is when the work for the rollout began, its image included.
    """

    paths: ServicePaths
    mirror: Mirror
    journal: Journal
    instances: Instances
    step: Step
    run: Run
    guard: Callable[[], None]
    checkpoint: Callable[[], None]
    who: str
    began: Optional[float] = None


@dataclass(frozen=True)
class Situation:
    """What a rollout found and decided: all that is needed to finish or to undo it. The journal keeps it.

    ``instance`` and ``slot`` are where the new release boots, the ``old_`` ones where the release before it runs.
    ``state`` are the service's pointers as they were found.
    """

    commit: str
    previous: Optional[str]
    way: str
    replaces: bool
    instance: int
    old_instance: int
    slot: str
    old_slot: Optional[str]
    generation: int
    patience: float
    boot_timeout: float
    soak: float
    keep: int
    health: Optional[Mapping[str, Any]]
    settings: Optional[Mapping[str, Any]]
    state: Optional[Mapping[str, Any]] = None
    proxy: Optional[Mapping[str, Any]] = None
    """What the service is to have of the proxy, and what it had (``proxy_config.Claim`` and ``Entry``)."""
    old_proxy: Optional[Mapping[str, Any]] = None
    assets: Optional[Mapping[str, Any]] = None
    keep_warm: int = 0
    warm: bool = False
    """Whether the release stands ready in its slot already, since it was kept warm: nothing is booted."""

    @property
    def stays(self) -> bool:
        """Whether the release is live in this slot already: its container is started at most, and nothing flips."""
        return self.way == "swap" and not self.replaces and self.slot == self.old_slot

    @property
    def touches(self) -> bool:
        """Whether uWSGI is made to reload itself."""
        return self.way in ("touch", "chain")

    @property
    def web(self) -> bool:
        """Whether this server has the web role."""
        return self.way != NO_WEB

    @property
    def health_check(self) -> Optional[HealthCheck]:
        """The health path, if there is one."""
        return HealthCheck.parse(self.health) if self.health else None


def refuse_failed(paths: ServicePaths, request: PrepareRequest) -> None:
    """A release that failed is not tried again unless that is asked for."""
    known = releases.load(paths, request.commit)
    if known and known.state == "failed" and not request.retry:
        raise Refused(
            "failed-before",
            f"release {request.commit[:7]} failed here before",
            hint="fix it and deploy the new commit, or try the same one again with --retry",
        )


def decide(tools: Tools, request: PrepareRequest) -> Situation:
    """What this rollout starts from and where the release is to boot."""
    state: ServiceState = load_state(tools.paths)
    current = releases.current_commit(tools.paths)
    replaces = request.kind != "code"
    old_order = slots.read_order(tools.paths, state.instance) if state.instance else None
    old_slot = live_slot(old_order, current)
    settings: Optional[Mapping[str, Any]] = None
    if replaces:
        settings = describe(request.container) if request.container else None
        if settings is None and request.stored:
            known = releases.load(tools.paths, request.commit)
            settings = known.extra.get("container") if known else None
        if settings is None:
            raise Refused(
                "no-settings",
                f"it is not known with which container release {request.commit[:7]} ran",
                hint="deploy its commit instead",
            )
        known_settings = settings_from(settings)
        if known_settings is not None:
            tools.instances.reference(known_settings)
    elif not state.instance or tools.instances.find(state.instance) is None:
        raise Refused(
            "no-container", "the service has no container here", hint="`lightship deploy --kind full` makes one"
        )
    # A container that is gone back to goes its own way.
    way = str((settings or {}).get("reload") or request.reload)
    proxied = handover.decide_proxy(tools, request.proxy if way != NO_WEB else None, settings)
    swap = way == "swap"
    slot = slots.SLOT_NAMES[0] if replaces else idle_slot(old_slot)
    if not replaces and request.commit == current and old_slot and _is_well(tools, state.instance, old_slot, current):
        # Two slots of one release have no gate between them: what serves, or will once its container runs, stays.
        slot = old_slot
    warm = None if replaces or not swap else warm_slot(tools.paths, state.instance, request, old_order, old_slot)
    return Situation(
        commit=request.commit,
        previous=current,
        way=way,
        replaces=replaces,
        instance=max(tools.instances.highest(), state.instance) + 1 if replaces else state.instance,
        old_instance=state.instance,
        slot=warm or slot if swap else slots.MAIN,
        old_slot=old_slot if swap else slots.MAIN,
        generation=state.generation + 1,
        patience=request.patience,
        boot_timeout=request.boot_timeout,
        soak=request.soak,
        keep=request.keep,
        health=request.health_raw,
        settings=proxied["settings"],
        state=asdict(state),
        proxy=proxied["proxy"],
        old_proxy=proxied["old_proxy"],
        assets=asdict(request.assets) if request.assets else None,
        keep_warm=request.keep_warm,
        warm=warm is not None,
    )


def _is_well(tools: Tools, instance: int, slot: str, release: str) -> bool:
    """Whether a slot serves the release, or its container does not run and is only to be started."""
    container = tools.instances.find(instance)
    if container is None or not container.running:
        return True
    return slots.read_slot(tools.paths, instance, slot).proven(release, None, ("serving",))
