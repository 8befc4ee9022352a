"""What the processes of an instance's roles run: told, waited for, and seen.

Three witnesses must agree on a process before it counts. The process itself announces its number and release (before it
becomes the service's command, as root, where the service cannot write). The keeper tells what Supervisor says of it:
that it is RUNNING under that number. And this server's own kernel knows a process of that number in the container, and
for how long it has been up. The first two lie under ``run/``, and are read like anything that a container may have
written.

An image's own program (``program``) does not announce itself: the keeper does so for the process that it had started.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Collection, Mapping

from lightship_agent import TYPE_CHECKING, slots
from lightship_agent.container import Container, Engine
from lightship_agent.errors import AgentFailure, Refused
from lightship_agent.failpoints import fail_point, register
from lightship_agent.paths import ServicePaths
from lightship_agent.processes import processes_of
from lightship_agent.records import dataclass, replace
from lightship_agent.reload import Watched, wait_until
from lightship_agent.roles import MOST_PROCESSES, RoleOrder
from lightship_agent.system import read_untrusted

if TYPE_CHECKING:
    from typing import Any

__all__ = ["RoleProcess", "RoleView", "Roles", "read_roles", "roles_facts"]

register(
    roles__move="the roles are about to be told to run another release",
    roles__moved="the roles have been told to run another release",
    roles__proven="every process of every role was seen to run the release",
    roles__rest="the roles are about to be told to stop",
    roles__rested="the roles have stopped",
)

MAX_STATUS = 256 * 1024
MAX_ANNOUNCEMENT = 4096
# How long the keeper of the roles may take to say its first word after the container has started.
FIRST_WORD = 20.0
# How much longer than its patience and its start the restart of a role may take on a busy machine.
MARGIN = 30.0
# A process counts as up that long; the kernel's clock ticks 100 times a second.
TICK = 0.02


@dataclass(frozen=True)
class RoleProcess:
    """One process of a role, as it was seen. ``problem`` says why it does not count, and is empty when it does."""

    role: str
    process: int
    pid: int
    release: str | None
    state: str
    problem: str = ""
    ends: int = 0
    up: float = 0.0
    """Seconds since its start, by this server's kernel."""

    def as_dict(self) -> dict[str, Any]:
        """As facts and results carry it."""
        return {
            "role": self.role,
            "process": self.process,
            "pid": self.pid,
            "release": self.release,
            "state": self.state,
        }


@dataclass(frozen=True)
class RoleView:
    """One role as it was seen."""

    name: str
    order: RoleOrder
    processes: tuple[RoleProcess, ...]
    missing: int
    heard: bool
    """Whether the keeper acts on this very order."""

    @property
    def problem(self) -> str:
        """What is not as ordered, in words; empty when all is."""
        if not self.heard:
            return f"the role {self.name} was not taken up"
        first = next((one.problem for one in self.processes if one.problem), "")
        if self.missing or first:
            count = len(self.processes) + self.missing
            well = sum(not one.problem for one in self.processes)
            return f"{well} of {count} processes of the role {self.name} run" + (f": {first}" if first else "")
        return ""

    @property
    def ended(self) -> str:
        """How a process of this generation ended, if one has."""
        return next((one.problem or "it ended" for one in self.processes if one.ends), "") if self.heard else ""

    @property
    def stopped(self) -> bool:
        """Whether none of its processes is left."""
        return not any(one.pid for one in self.processes)


def _number(value: Any, most: int = 2**31) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most else 0


def _text(value: Any, longest: int) -> str:
    return value[:longest] if isinstance(value, str) else ""


def _json(paths: ServicePaths, instance: int, folder: str, name: str, size: int) -> Mapping[str, Any]:
    """What the container says there; an empty object for what is missing, too large, or none."""
    place = paths.roles(instance) / folder if folder else paths.roles(instance)
    try:
        data = read_untrusted(place, name, size)
        found = json.loads(data.decode("utf-8")) if data is not None else {}
    except (AgentFailure, OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _status(paths: ServicePaths, instance: int) -> Mapping[str, Any]:
    return _json(paths, instance, "", "status.json", MAX_STATUS)


def problems(paths: ServicePaths, instance: int) -> list[str] | None:
    """What the keeper says is in the way of the roles; None while it says nothing."""
    found = _status(paths, instance).get("problems")
    return [_text(each, 500) for each in found[:10]] if isinstance(found, list) else None


def read_roles(
    paths: ServicePaths, instance: int, orders: Mapping[str, RoleOrder], first_pid: int
) -> dict[str, RoleView]:
    """The roles of an instance as they are. ``first_pid`` is the container's first process, 0 when there is none."""
    if not orders:
        return {}
    told = _status(paths, instance).get("roles")
    known = processes_of(first_pid) if first_pid else None
    found: dict[str, RoleView] = {}
    for name, order in orders.items():
        role = told.get(name) if isinstance(told, dict) else None
        found[name] = _view(paths, instance, name, order, role if isinstance(role, dict) else {}, known or {})
    return found


def _view(
    paths: ServicePaths,
    instance: int,
    name: str,
    order: RoleOrder,
    told: Mapping[str, Any],
    known: Mapping[int, float],
) -> RoleView:
    listed = told.get("processes")
    entries = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    entries = entries[:MOST_PROCESSES]
    wanted = order.generation if order.release else None
    heard = bool(told) and told.get("wanted") == wanted
    processes = tuple(
        _process(paths, instance, name, order, index, entry, known) for index, entry in enumerate(entries)
    )
    expected = order.processes if order.command else max(1, len(entries))
    return RoleView(name, order, processes, max(0, expected - len(processes)), heard)


def _process(
    paths: ServicePaths,
    instance: int,
    role: str,
    order: RoleOrder,
    index: int,
    entry: Mapping[str, Any],
    known: Mapping[int, float],
) -> RoleProcess:
    """What the three witnesses say of one process."""
    pid, state, ends = _number(entry.get("pid")), _text(entry.get("state"), 20), _number(entry.get("ends"))
    announced = _json(paths, instance, role, f"{index}.json", MAX_ANNOUNCEMENT)
    release = announced.get("release")
    release = release if isinstance(release, str) and re.fullmatch(r"[0-9a-f]{40}", release) else None
    own = pid > 0 and announced.get("pid") == pid and pid in known
    problem = ""
    if ends and state != "STOPPED":  # what somebody stopped is that, whatever was before it
        problem = _text(entry.get("ended"), 500) or "it ended"
    elif not own:
        problem = f"it is {state or 'unknown'}" if state not in ("RUNNING", "STARTING") else "it is not there yet"
    elif release != order.release or announced.get("generation") != order.generation:
        problem = f"it runs {(release or 'nothing')[:7]}"
    elif state != "RUNNING" or known[pid] + TICK < order.settle:
        problem = "it has just started"
    if ends and own and state == "RUNNING" and known[pid] >= order.settle:
        # It has come up in the end. Who waits for a first start has heard of the failure before.
        problem = "" if release == order.release else problem
    return RoleProcess(
        role,
        index,
        pid if pid in known else 0,
        release if own else None,
        state,
        problem,
        ends,
        known.get(pid, 0.0),
    )


def roles_facts(
    paths: ServicePaths, instance: int, orders: Mapping[str, RoleOrder], first_pid: int
) -> dict[str, dict[str, Any]]:
    """The roles as the facts carry them: what each is to run, and its processes that are there."""
    return {
        name: {
            "release": view.order.release,
            "generation": view.order.generation,
            "program": bool(view.order.program),
            "wanted": len(view.processes) + view.missing,
            "problem": view.problem if first_pid else "the container does not run",
            "processes": [one.as_dict() for one in view.processes if one.pid and one.release],
        }
        for name, view in read_roles(paths, instance, orders, first_pid).items()
    }


class Roles:
    """The roles of one container that runs."""

    def __init__(
        self,
        paths: ServicePaths,
        engine: Engine,
        container: Container,
        checkpoint: Callable[[], None],
        guard: Callable[[], None],
    ) -> None:
        self.paths = paths
        self.engine = engine
        self.container = container
        self.instance = container.instance
        self.guard = guard
        self.watched = Watched(engine, container.name, checkpoint)

    @property
    def orders(self) -> Mapping[str, RoleOrder]:
        """What the roles were told."""
        order = slots.read_order(self.paths, self.instance)
        return order.roles if order else {}

    def look(self) -> dict[str, RoleView]:
        """The roles as they are."""
        return read_roles(self.paths, self.instance, self.orders, self._first_pid())

    def _first_pid(self) -> int:
        # A container that the engine has started again has another first process.
        found = self.engine.container(self.container.name)
        return found.pid if found and found.running else 0

    def wait_ready(self) -> None:
        """See in the container that Supervisor has what the roles need; raises ``Refused`` when it has not."""
        if not self.orders:
            return
        seen: list[list[str] | None] = [None]

        def heard() -> bool:
            seen[0] = problems(self.paths, self.instance)
            return seen[0] is not None

        if not wait_until(heard, FIRST_WORD, alive=self.watched.alive):
            raise Refused(
                "roles-not-included",
                "Supervisor in the container knows nothing of the roles",
                hint="the image's supervisord.conf must end with: [include] files = "
                "/srv/lightship/code/instances/%(ENV_LIGHTSHIP_INSTANCE)s.conf (docs/how-to/roles.md); "
                "what is live was not touched",
                detail={"log": self.watched.log()},
            )
        if seen[0]:
            raise Refused(
                "roles-not-possible",
                "; ".join(seen[0]),
                hint="see docs/how-to/roles.md; what is live was not touched",
                detail={"problems": seen[0]},
            )

    def move(self, release: str, generation: Callable[[], int], *, programs: bool = False) -> list[RoleProcess]:
        """Have every role run the release, and wait until each process was seen to; those that do so already go on.

        ``generation`` gives a number that no order had before. With ``programs`` the image's own are restarted in any
        case: what they run hangs on when they were started.
        """
        views = self.look()
        due = {
            name
            for name, view in views.items()
            if view.order.release != release or view.problem or (programs and view.order.program)
        }
        if not due:
            return self._seen()
        number = generation()
        self.guard()
        fail_point("roles.move")
        begun = time.monotonic()
        orders = {
            name: view.order.running(release, number) if name in due else view.order for name, view in views.items()
        }
        changed = {name for name in due if orders[name] != views[name].order}
        if changed:
            self._write(orders)
        fail_point("roles.moved")
        self._wait(release, begun, changed)
        fail_point("roles.proven")
        return self._seen()

    def _problem(self) -> str:
        return next((view.problem for view in self.look().values() if view.problem), "")

    def _seen(self) -> list[RoleProcess]:
        return [one for view in self.look().values() for one in view.processes]

    def _write(self, orders: Mapping[str, RoleOrder]) -> None:
        known = slots.read_order(self.paths, self.instance)
        if known is not None:
            slots.write_order(self.paths, self.instance, replace(known, roles=orders))

    def _wait(self, release: str, begun: float, changed: Collection[str]) -> None:
        """Wait until every process was seen to run it, those of ``changed`` roles to have been started since then."""
        orders = self.orders
        seconds = max(order.patience + order.settle for order in orders.values()) + MARGIN
        first = self._first_pid()

        def seen() -> bool:
            views = read_roles(self.paths, self.instance, orders, first).values()
            for view in views:
                if view.ended:
                    raise self._failed(release, f"the role {view.name} does not stay up: {view.ended}")
            oldest = max((one.up for view in views if view.name in changed for one in view.processes), default=0.0)
            return oldest <= time.monotonic() - begun + TICK and not any(view.problem for view in views)

        def alive() -> None:
            nonlocal first
            self.watched.alive()
            first = self._first_pid()

        if not wait_until(seen, seconds, alive=alive, every=0.02):
            raise self._failed(release, self._problem() or "the roles were not seen to run it in time")

    def _failed(self, release: str, what: str) -> AgentFailure:
        log = _without_supervisor(self.watched.log(80))
        return AgentFailure("role-failed", f"release {release[:7]}: {what}", detail={"log": log})

    def rest(self) -> bool:
        """Have every role stop, and wait for its jobs in flight; False when some still run after all patience."""
        orders = self.orders
        if not orders:
            return True
        self.guard()
        fail_point("roles.rest")
        if any(order.release for order in orders.values()):
            self._write({name: order.resting() for name, order in orders.items()})
        orders = self.orders
        seconds = max(order.patience for order in orders.values()) + MARGIN

        def stopped() -> bool:
            first = self._first_pid()
            if not first or problems(self.paths, self.instance) is None:
                return True  # nobody is there to run any, or to be told
            return all(
                view.heard and view.stopped for view in read_roles(self.paths, self.instance, orders, first).values()
            )

        rested = wait_until(stopped, seconds, every=0.02)
        fail_point("roles.rested")
        return rested

    def same(self, before: list[RoleProcess]) -> None:
        """See that the processes are still those; raises ``AgentFailure`` when one is not."""
        views = self.look()
        now = {(one.role, one.process): one for view in views.values() for one in view.processes}
        for one in before:
            found = now.get((one.role, one.process))
            if found is None or found.pid != one.pid or found.ends > one.ends:
                how = found.problem if found and found.problem else "it is gone"
                raise AgentFailure(
                    "soak-failed",
                    f"a process of the role {one.role} did not survive the soak: {how}",
                    detail={"log": _without_supervisor(self.watched.log(80))},
                )


_SUPERVISOR = r"\d{4}-\d\d-\d\d [\d:,]+ (?:INFO|WARN|CRIT|ERRO|DEBG) |lightship (?:roles|keeper): "


def _without_supervisor(log: str) -> str:
    """A container's log without what Supervisor and the keepers say: the last line is to be the service's own."""
    return "\n".join(line for line in log.splitlines() if not re.match(_SUPERVISOR, line))
