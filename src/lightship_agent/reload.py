"""The reload ways: how a container that runs comes to run another release.

``swap`` boots the release in the idle slot, where its workers wait at the gate until ``current`` names it.
``touch`` and ``chain`` try the release in a candidate process, and touch the file that the image's one uWSGI watches
after ``current`` was renamed.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from lightship_agent import TYPE_CHECKING, slots
from lightship_agent.container import Container, Engine, exec_command
from lightship_agent.errors import AgentFailure, Refused
from lightship_agent.failpoints import fail_point, register
from lightship_agent.paths import CONTAINER_CODE, ServicePaths
from lightship_agent.records import dataclass, replace
from lightship_agent.slots import MAIN, SLOT_NAMES, InstanceOrder, SlotOrder, SlotView, Worker
from lightship_agent.system import atomic_write, read_trusted, run

if TYPE_CHECKING:
    from typing import Any

__all__ = ["Booted", "Patience", "SlotReload", "TouchReload", "Watched", "live_slot", "wait_until"]

register(
    candidate__start="the release is about to be tried in a process of its own",
    candidate__done="the release has been tried in a process of its own",
    touch__before="the file that uWSGI watches is about to be touched",
    touch__after="it has been touched",
)

LOOK = 0.005
# How much longer than the candidate's own limit the whole `docker exec` may take.
EXEC_MARGIN = 15.0
TIMED_OUT = 124
PARK_SECONDS = 3.0
LONGEST = 86400.0
CONTAINER_LOOK = 0.25
WAITING = ("ready", "serving", "parked")


@dataclass(frozen=True)
class Patience:
    """Time limits in seconds: for a boot, and for requests in flight when a slot quits."""

    boot: float
    requests: float


@dataclass(frozen=True)
class Booted:
    """A release that was seen to boot."""

    slot: str
    workers: int
    import_seconds: float
    test_seconds: float


def wait_until(
    look: Callable[[], bool], seconds: float, *, alive: Callable[[], None] | None = None, every: float = LOOK
) -> bool:
    """Look every few milliseconds until it is so; False when the time is over. ``alive`` may raise to end the wait."""
    deadline = time.monotonic() + seconds
    next_alive = time.monotonic() + CONTAINER_LOOK
    while not look():
        now = time.monotonic()
        if now > deadline:
            return False
        if alive is not None and now > next_alive:
            alive()
            next_alive = now + CONTAINER_LOOK
        time.sleep(every)
    return True


def live_slot(order: InstanceOrder | None, current: str | None) -> str | None:
    """The slot that runs what ``current`` names, or None."""
    for name, slot in (order.slots if order else {}).items():
        if slot.release == current:
            return name
    return None


def import_failure(release: str, failure: slots.Failure) -> Refused:
    """The refusal for a release that does not boot: the traceback's last line is the message."""
    return Refused(
        "boot-failed",
        f"release {release[:7]} does not start: {failure.error}",
        hint="fix it and deploy again; what is live was not touched",
        detail={"error": failure.error, "traceback": failure.traceback, "commit": release},
    )


class Watched:
    """A container that must stay up while something is waited for."""

    def __init__(self, engine: Engine, container: str, checkpoint: Callable[[], None]) -> None:
        self.engine = engine
        self.container = container
        self._checkpoint = checkpoint
        self._restarts: int | None = None

    def alive(self) -> None:
        """Raise when the container is gone, stopped or was started again meanwhile, or the rollout was called off."""
        self._checkpoint()
        found = self.engine.container(self.container)
        if found is None or not found.running:
            raise Refused(
                "container-down",
                f"the container {self.container} is not running"
                + (f" (exit status {found.exit_code}{', out of memory' if found.oom_killed else ''})" if found else ""),
                hint="`lightship logs` shows what it said last",
                detail={"log": self.log(), "out_of_memory": bool(found and found.oom_killed)},
            )
        if self._restarts is None:
            self._restarts = found.restarts
        elif found.restarts > self._restarts:
            raise Refused(
                "container-restarted",
                f"the container {self.container} ended and was started again",
                detail={"log": self.log(), "out_of_memory": found.oom_killed},
            )

    def log(self, lines: int = 40) -> str:
        """The container's last output, for a person."""
        done = run(["docker", "logs", "--tail", str(lines), self.container], timeout=20)
        return (done.out + done.err)[-8000:]


class SlotReload:
    """The swap."""

    def __init__(
        self,
        paths: ServicePaths,
        engine: Engine,
        container: Container,
        patience: Patience,
        checkpoint: Callable[[], None],
        guard: Callable[[], None],
    ) -> None:
        self.guard = guard
        self.paths = paths
        self.instance = container.instance
        self.patience = patience
        self.watched = Watched(engine, container.name, checkpoint)

    def boot(self, order: InstanceOrder, release: str, generation: int, idle: str) -> Booted:
        """Boot the release in the idle slot and wait until each of its workers stands at the gate."""
        self.guard()
        slots.write_order(self.paths, self.instance, _with_slot(order, idle, SlotOrder(release, generation)))
        return self.wait_booted(idle, release, generation)

    def wait_booted(self, slot: str, release: str, generation: int) -> Booted:
        """Wait until every worker of the slot has announced the release; raises ``Refused`` when it cannot boot."""
        view: list[SlotView] = []

        def seen() -> bool:
            failure = slots.read_failure(self.paths, self.instance, slot, generation)
            if failure:
                raise import_failure(release, failure)
            booted = slots.read_booted(self.paths, self.instance, slot, generation)
            if not booted:
                return False
            wanted = max(1, slots.worker_count(booted))
            if len(slots.read_workers(self.paths, self.instance, slot)) < wanted:
                return False
            view[:] = [slots.read_slot(self.paths, self.instance, slot)]
            return view[0].proven(release, generation, WAITING)

        if not wait_until(seen, self.patience.boot, alive=self.watched.alive):
            raise Refused(
                "boot-timeout",
                f"release {release[:7]} did not start within {self.patience.boot:g} s",
                hint="if it needs longer, raise `boot_timeout`; `lightship logs` shows what it said",
                detail={"log": self.watched.log()},
            )
        return _booted(slot, view[0])

    def wait_serving(self, release: str, slot: str) -> list[Worker]:
        """Wait until every worker of the slot serves, and no idle worker of the other one does."""
        view: list[SlotView] = []

        def seen() -> bool:
            view[:] = [slots.read_slot(self.paths, self.instance, slot)]
            return view[0].proven(release, None, ("serving",))

        if not wait_until(seen, self.patience.boot, alive=self.watched.alive):
            raise AgentFailure(
                "not-serving", f"not every worker of slot {slot} serves release {release[:7]}", detail=_states(view)
            )
        return view[0].workers

    def wait_drained(self, slot: str) -> bool:
        """Wait until no worker of the slot has a request any more; False when patience ends first."""

        def drained() -> bool:
            workers = slots.read_workers(self.paths, self.instance, slot)
            return all(worker.state != "serving" for worker in workers)

        return wait_until(drained, self.patience.requests)

    def wait_parked(self, slot: str) -> list[Worker]:
        """Wait until the workers of the slot that left take no new request; returns those still in one."""
        busy: list[Worker] = []

        def quiet() -> bool:
            view = slots.read_slot(self.paths, self.instance, slot)
            busy_ones = {entry.id for entry in view.stats or () if entry.status == "busy"}
            left = [worker for worker in view.workers if worker.state == "serving"]
            busy[:] = left
            return all(worker.id in busy_ones for worker in left) if view.stats else not left

        if not wait_until(quiet, PARK_SECONDS):
            raise AgentFailure(
                "not-parked",
                f"idle workers of slot {slot} still take requests",
                detail={"workers": [w.as_dict() for w in busy]},
            )
        return busy


class TouchReload:
    """The classic: one uWSGI that watches a file, and a candidate process that tries the release first."""

    def __init__(
        self,
        paths: ServicePaths,
        engine: Engine,
        container: Container,
        patience: Patience,
        checkpoint: Callable[[], None],
    ) -> None:
        self.paths = paths
        self.engine = engine
        self.container = container
        self.patience = patience
        self.watched = Watched(engine, container.name, checkpoint)

    def boot(self, release: str) -> Booted:
        """Import and test the release in a process of its own in the same container.

        It is run by ``boot/command.py``: a process in a container does not end with the ``docker exec`` that began it.
        """
        started, python = time.monotonic(), self.container.python
        command = [python, "-I", "-S", f"{CONTAINER_CODE}/boot/command.py", f"{self.patience.boot:g}", "0"]
        command += [python, f"{CONTAINER_CODE}/boot/entry.py", "--candidate", release]
        env = {"LIGHTSHIP_SLOT": "candidate"}
        argv = exec_command(self.container.name, "/", command, user=self.container.user, env=env, interactive=True)
        fail_point("candidate.start")
        done = run(argv, timeout=self.patience.boot + EXEC_MARGIN, hold_input=True)
        fail_point("candidate.done")
        if done.timed_out or done.status == TIMED_OUT:
            raise Refused(
                "boot-timeout",
                f"release {release[:7]} was not imported within {self.patience.boot:g} s",
                hint="if it needs longer, raise `boot_timeout`",
            )
        if done.status != 0:
            failure = self._failure("candidate", release)
            text = done.err.strip() or done.out.strip()
            last = text.splitlines()[-1] if text else f"exit status {done.status}"
            raise import_failure(release, failure or slots.Failure(last[:2000], text[-16000:], release))
        return Booted(MAIN, 0, time.monotonic() - started, 0.0)

    def touch(self, mark: str) -> None:
        """Make uWSGI reload. It compares whole seconds and wants a newer one: the time must be past the last touch.

        ``mark`` stays in the file and says what it was touched for.
        """
        fail_point("touch.before")
        path = self.paths.reload
        try:
            last = int(path.stat().st_mtime)
        except FileNotFoundError:
            last = 0
        moment = max(int(time.time()), last + 1)
        atomic_write(path, f"{mark}\n".encode(), 0o644, durable=False, moment=moment)
        fail_point("touch.after")

    def touched(self, mark: str) -> bool:
        """Whether the last touch was this one. A second one would reload once more, while the first is watched."""
        return read_trusted(self.paths.reload, 1000) == f"{mark}\n".encode()

    def serves(self, release: str) -> bool:
        """Whether every worker of the one uWSGI runs the release as things are."""
        return slots.read_slot(self.paths, self.container.instance, MAIN).proven(release, None, ("serving",))

    def wait_serving(self, release: str, *, new: bool = False) -> list[Worker]:
        """Wait until every worker of the one uWSGI says that it runs the release.

        A ``new`` one that cannot be loaded ends the wait at once. One that ran before is tried until it comes up, as
        Supervisor does: what it lacked may have been a database that was not there yet.
        """
        view: list[SlotView] = []

        def seen() -> bool:
            failure = self._failure(MAIN, release) if new else None
            if failure:
                raise import_failure(release, failure)
            view[:] = [slots.read_slot(self.paths, self.container.instance, MAIN)]
            return view[0].proven(release, None, ("serving",))

        if not wait_until(seen, self.patience.boot, alive=self.watched.alive):
            raise AgentFailure("not-serving", f"not every worker runs release {release[:7]}", detail=_states(view))
        return view[0].workers

    def _failure(self, slot: str, release: str) -> slots.Failure | None:
        """Why the release could not be loaded there; what another one left behind is none of it."""
        found = slots.read_failure(self.paths, self.container.instance, slot, None)
        return found if found and found.release == release else None


def _with_slot(order: InstanceOrder, name: str, slot: SlotOrder) -> InstanceOrder:
    return replace(order, slots={**order.slots, name: slot})


def _booted(slot: str, view: SlotView) -> Booted:
    found: dict[str, Any] = dict(view.booted or {})
    return Booted(slot, len(view.workers), _seconds(found.get("import_seconds")), _seconds(found.get("test_seconds")))


def _seconds(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and 0 <= value < LONGEST else 0.0


def _states(view: list[SlotView]) -> dict[str, Any]:
    seen: tuple[SlotView, ...] = tuple(view)
    return {
        "workers": [worker.as_dict() for each in seen for worker in each.workers],
        "stats": bool(seen and seen[0].stats),
    }


def idle_slot(live: str | None) -> str:
    """The slot that does not serve."""
    return SLOT_NAMES[1] if live == SLOT_NAMES[0] else SLOT_NAMES[0]
