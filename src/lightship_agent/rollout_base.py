"""What the phases of a rollout share: its container, the slots and roles in it, and what they are told to run."""

from __future__ import annotations

from lightship_agent import TYPE_CHECKING, slots
from lightship_agent import release as releases
from lightship_agent.errors import AgentFailure
from lightship_agent.instance import require, settings_from
from lightship_agent.records import replace
from lightship_agent.reload import Patience, SlotReload, TouchReload
from lightship_agent.roles import NO_WEB, role_orders
from lightship_agent.running import Roles
from lightship_agent.slots import InstanceOrder, SlotOrder

if TYPE_CHECKING:
    from typing import Any, Dict, List, Mapping, Optional

    from lightship_agent.checks import Warnings
    from lightship_agent.container import Container, ContainerSettings
    from lightship_agent.requests import PrepareRequest
    from lightship_agent.roles import RoleOrder
    from lightship_agent.situation import Situation, Tools
    from lightship_agent.slots import Worker

__all__ = ["RolloutBase"]


class RolloutBase:
    """One rollout: its tools, its situation, how far it has come, and what it reaches."""

    def __init__(self, tools: Tools, situation: Situation) -> None:
        self.tools = tools
        self.situation = situation
        self.warnings: Optional[Warnings] = None
        self.migration: Optional[Dict[str, Any]] = None
        self.activated = False
        self.verified = False

    @property
    def touch_mark(self) -> str:
        """What the watched file says when it was touched for this rollout."""
        return f"{self.situation.commit} {self.situation.generation}"

    def container(self) -> Container:
        """The container that runs the release, or is to."""
        number = self.situation.instance
        return require(self.tools.instances.find(number), self.tools.instances.name(number))

    def serving_slot(self) -> str:
        """The slot that the release serves in."""
        return self.situation.slot if self.situation.way == "swap" else slots.MAIN

    def _patience(self) -> Patience:
        return Patience(self.situation.boot_timeout, self.situation.patience)

    def slot_reload(self, container: Container) -> SlotReload:
        """Starts and watches the slots of a container."""
        tools = self.tools
        return SlotReload(
            tools.paths, tools.instances.engine, container, self._patience(), self.called_off, tools.guard
        )

    def touch_reload(self, container: Container) -> TouchReload:
        """Has the uWSGI of a container reload itself."""
        tools = self.tools
        return TouchReload(tools.paths, tools.instances.engine, container, self._patience(), self.called_off)

    def roles(self, container: Container) -> Roles:
        """The roles of a container."""
        tools = self.tools
        return Roles(tools.paths, tools.instances.engine, container, self.called_off, tools.guard)

    def called_off(self) -> None:
        """Before the flip a rollout ends when nobody listens any more; after it, it is finished."""
        if not self.activated:
            self.tools.checkpoint()

    def wait_serving(self, container: Container, commit: str, slot: Optional[str]) -> List[Worker]:
        """See each worker of a container serve a release."""
        # On the way back it is the old container's way that counts.
        way = container.reload or self.situation.way
        if way == NO_WEB:
            return []
        if way == "swap":
            return self.slot_reload(container).wait_serving(commit, slot or "0")
        new = commit == self.situation.commit != self.situation.previous
        return self.touch_reload(container).wait_serving(commit, new=new)

    def drained(self, old: Container) -> bool:
        """Let the old container finish its requests and take no more; then it can be stopped at once.

        To stop it in good order takes Supervisor and uWSGI, which look once a second, 3 to 4 s in which nobody serves.
        """
        slot = self.situation.old_slot
        if old.reload != "swap" or slot not in slots.SLOT_NAMES:
            return False
        self.tools.instances.close_gate(old.instance)
        return self.slot_reload(old).wait_drained(slot)

    def flip_back(self, previous: str) -> None:
        """Have ``current`` name the release before, if it does not."""
        if releases.current_commit(self.tools.paths) != previous:
            releases.flip(self.tools.paths, previous, self.tools.guard)

    def order(self, request: PrepareRequest, running: Mapping[str, Optional[str]]) -> InstanceOrder:
        """What the instance is to run, with the generations that run already kept."""
        known = slots.read_order(self.tools.paths, self.situation.instance)
        found: Dict[str, SlotOrder] = {}
        for name, commit in running.items():
            if known and name in known.slots and known.slots[name].release == commit:
                found[name] = known.slots[name]
            elif commit:
                found[name] = SlotOrder(commit, self.situation.generation)
        web, roles = self.situation.web, self._role_orders(known)
        health = request.health_raw if web else None
        return InstanceOrder(request.app, health, request.patience, request.shared, found, roles, web)

    def _role_orders(self, known: Optional[InstanceOrder]) -> Mapping[str, RoleOrder]:
        """The roles as they are told already, or those of a new container, which rest until it serves."""
        if self.situation.replaces:
            return role_orders(self.settings().roles)
        return known.roles if known else {}

    def write_order(self, order: InstanceOrder) -> None:
        """Tell the instance what to run."""
        self.tools.guard()
        slots.write_order(self.tools.paths, self.situation.instance, order)

    def leave_only(self, *names: Optional[str]) -> None:
        """Leave only these slots to the keeper; it stops any other one when its requests are done."""
        known = slots.read_order(self.tools.paths, self.situation.instance)
        if known is None:
            return
        kept = {name: order for name, order in known.slots.items() if name in names}
        if kept != known.slots:
            self.write_order(replace(known, slots=kept))

    def settings(self) -> ContainerSettings:
        """What the instance's container is made with."""
        settings = settings_from(self.situation.settings or {})
        if settings is None:
            raise AgentFailure("no-settings", f"nothing is known of the container of {self.situation.commit[:7]}")
        return settings

    def remembered(self, commit: Optional[str]) -> Optional[Mapping[str, Any]]:
        """The settings of the container that a release ran in."""
        found = releases.load(self.tools.paths, commit) if commit else None
        return found.extra.get("container") if found else None

    def env(self, request: PrepareRequest) -> Dict[str, str]:
        """The variables of the container: those that came, or the ones it has."""
        if request.env is not None:
            return dict(request.env)
        if not self.tools.paths.env.exists():
            return {}
        lines = self.tools.paths.env.read_text(encoding="utf-8").splitlines()
        return dict(line.partition("=")[::2] for line in lines if line)
