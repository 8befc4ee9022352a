"""Servers that are simulated: agents in this process that speak the real protocol, with delays and faults as told.

A simulated agent keeps the rules of the real one: it holds a lock, undoes what is only prepared and finishes what is
live when its input ends, and a next conversation finds what it left. ``VirtualLoop`` lets a rollout of hours run
in the seconds of work that it costs.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from lightship.errors import TransportError
from lightship_agent.protocol import decode_request, encode

__all__ = ["BEFORE", "NEW", "OLD", "Fault", "SimulatedServer", "VirtualLoop", "run_virtually"]

BEFORE, OLD, NEW = "0" * 40, "a" * 40, "b" * 40
Kind = Literal["refuse", "fail", "cut", "cut after", "kill"]
_T = TypeVar("_T")


@dataclass(frozen=True)
class Fault:
    """At an operation (``open`` is the connection itself) something goes wrong, once.

    ``cut``: the connection breaks before the request arrives; ``cut after``: before the answer does. ``kill``: the
    agent dies right there. For ``down`` seconds nothing connects.
    """

    op: str
    kind: Kind
    down: float = 0.0


@dataclass
class _Open:
    """A rollout under way."""

    commit: str
    before: str | None
    kind: str
    activated: bool = False
    verified: bool = False


@dataclass
class SimulatedServer:
    """One server: what it runs, what is wrong with it, and what it was asked. It is its own transport.

    ``broken`` releases fail their verification here; one that cannot even go back is ``stuck``.
    """

    server: str
    current: str | None = OLD
    delay: Callable[[str], float] = lambda op: 0.0
    fault: Fault | None = None
    broken: frozenset[str] = frozenset()
    stuck: bool = False
    files: int = 20
    subject: str = "Change a line"
    asked: list[str] = field(default_factory=list)
    flips: list[str] = field(default_factory=list)
    migrated: int = 0
    exit_status: int = 0

    def __post_init__(self) -> None:
        self.stable = self.current
        self.previous: str | None = BEFORE
        self.history: list[dict[str, Any]] = []
        self.traces: list[dict[str, Any]] = []
        self.rollout: _Open | None = None
        self.degraded = False
        self.log: list[str] = []
        self.on_prepare: Callable[[dict[str, Any]], None] = lambda args: None
        self._down_until = 0.0
        self._holder: _Agent | None = None
        self._free = asyncio.Event()
        self._free.set()

    async def open(self) -> _Agent:
        """Start an agent."""
        await asyncio.sleep(self.delay("open"))
        fault = self.take_fault("open")
        if fault:
            self.cut_off(fault)
        if asyncio.get_running_loop().time() < self._down_until:
            raise TransportError(f"{self.server} cannot be reached", code="transport")
        return _Agent(self)

    def take_fault(self, op: str) -> Fault | None:
        """The fault that is due at an operation; it comes once."""
        if self.fault is None or self.fault.op != op:
            return None
        fault, self.fault = self.fault, None
        return fault

    def cut_off(self, fault: Fault) -> None:
        """The network is gone for a while; at a fault of the connection itself for a moment at least."""
        self._down_until = asyncio.get_running_loop().time() + max(fault.down, 0.001 if fault.op == "open" else 0.0)

    # --- what a server does -----------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """As the real agent tells them."""
        workers = [{"id": n, "pid": n, "release": self.current, "state": "serving", "time": 1.0} for n in (1, 2)]
        known = dict.fromkeys(one for one in (self.current, self.stable, self.previous) if one)
        return {
            "hostname": self.server,
            "python": "3.11.2",
            "docker": {"version": "27.0"},
            "current": self.current,
            "stable": self.stable,
            "previous": self.previous,
            "releases": [{"commit": one, "created": 1.0, "state": "stable", "subject": self.subject} for one in known],
            "container": {"name": "shop-1", "instance": 1, "running": True, "status": "running", "settings": "x"},
            "slots": {"0": {"release": self.current, "running": True, "workers": workers}} if self.current else {},
            "disk": {"free_bytes": 1 << 34, "free_inodes": 1 << 20},
            "history": list(reversed(self.history[-20:])),
            "env_digest": "e" * 64,
        }

    def end(self, outcome: str) -> None:
        """The rollout is over."""
        assert self.rollout is not None
        entry = {"id": str(len(self.history)), "kind": self.rollout.kind, "commit": self.rollout.commit}
        self.history.append({**entry, "outcome": outcome, "started": 1.0, "seconds": 1.0})
        self.degraded = outcome == "degraded"
        self.rollout = None

    def flip(self, commit: str | None) -> None:
        """``current`` names another release."""
        self.current = commit
        self.flips.append(commit or "")

    def revert(self) -> str:
        """Back; what became of it."""
        assert self.rollout is not None
        outcome = "degraded" if self.stuck else "reverted"
        if not self.stuck:
            self.flip(self.rollout.before)
        self.end(outcome)
        return outcome

    def commit(self) -> None:
        """The release is stable."""
        assert self.rollout is not None
        if self.stable != self.rollout.commit:
            self.stable, self.previous = self.rollout.commit, self.stable
        self.end("done")

    def finish(self) -> str:
        """Nobody listens any more: undo what is only prepared, finish what is live."""
        if self.rollout is None:
            return ""
        if not self.rollout.activated:
            self.end("aborted")
            return "aborted"
        if self.rollout.commit in self.broken and not self.rollout.verified:
            return self.revert()
        self.commit()
        return "done"

    # --- the lock ---------------------------------------------------------------------

    async def lock(self, agent: _Agent, wait: float) -> bool:
        """Take the lock, waiting for it if need be."""
        until = asyncio.get_running_loop().time() + wait
        while self._holder is not None:
            left = until - asyncio.get_running_loop().time()
            if left <= 0:
                return False
            try:
                await asyncio.wait_for(self._free.wait(), left)
            except TimeoutError:
                return False
        self._holder = agent
        self._free.clear()
        return True

    def unlock(self, agent: _Agent) -> None:
        """The agent has ended."""
        if self._holder is agent:
            self._holder = None
            self._free.set()


class _RefusalError(Exception):
    def __init__(self, outcome: str, code: str, message: str) -> None:
        super().__init__(message)
        self.payload = {"outcome": outcome, "code": code, "message": message, "hint": "", "detail": {}}


class _Agent:
    """A simulated agent's process and the connection to it."""

    def __init__(self, server: SimulatedServer) -> None:
        self._server = server
        self._answers: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._requests: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._cut = False
        self._work = asyncio.create_task(self._run())

    async def send(self, line: bytes) -> None:
        if self._cut:
            raise TransportError(f"{self._server.server} does not listen any more", code="transport")
        self._requests.put_nowait(line)

    async def receive(self) -> bytes | None:
        return await self._answers.get()

    async def close(self, patience: float) -> int | None:
        self._requests.put_nowait(None)
        try:
            await asyncio.wait_for(asyncio.shield(self._work), patience)
        except TimeoutError:
            return None
        return 0

    def last_words(self) -> str:
        return ""

    async def _run(self) -> None:
        server = self._server
        while (line := await self._requests.get()) is not None:
            request = decode_request(line)
            op = request["op"]
            server.asked.append(op)
            fault = server.take_fault(op)
            if fault and fault.kind == "cut":
                self._lose(fault)
                break
            await asyncio.sleep(server.delay(op))
            if fault and fault.kind == "kill":
                self._lose(fault)
                server.unlock(self)  # and the rollout stays as it was
                return
            answer = await self._answer(request["id"], op, request["args"], fault)
            if fault and fault.kind == "cut after":
                self._lose(fault)
                break
            self._answers.put_nowait(encode({"id": request["id"], **answer})[:-1])
            if op == "bye":
                break
        if server.rollout is not None and server._holder is self:
            await asyncio.sleep(server.delay("finish"))
            server.finish()
        server.unlock(self)
        self._cut = True
        self._answers.put_nowait(None)

    def _lose(self, fault: Fault) -> None:
        self._cut = True
        self._server.cut_off(fault)
        self._answers.put_nowait(None)

    async def _answer(self, number: int, op: str, args: dict[str, Any], fault: Fault | None) -> dict[str, Any]:
        try:
            if fault and fault.kind in ("refuse", "fail"):
                self._fail(op, fault.kind)
            if op == "hello":
                return {"result": await self._hello(args)}
            if op in ("logs", "exec"):
                line = {"event": "log", "stream": "stdout", "text": f"a line of {self._server.server}"}
                self._answers.put_nowait(encode({"id": number, **line})[:-1])
            return {"result": getattr(self, f"_{op}", self._nothing)(args)}
        except _RefusalError as refusal:
            return {"error": refusal.payload}

    def _fail(self, op: str, kind: str) -> None:
        """The operation fails, and the agent does what the real one does then."""
        server = self._server
        if op in ("activate", "verify") and server.rollout is not None and kind == "fail":
            server.rollout.activated = True
            server.flip(server.rollout.commit)
            self._failed("it does not serve")
        if op == "prepare" and server.rollout is None:
            raise _RefusalError("refused", "boot-failed", "it does not start")
        raise _RefusalError("refused" if kind == "refuse" else "failed", "no-space", f"{op} was not possible")

    def _failed(self, message: str) -> None:
        outcome = self._server.revert()
        raise _RefusalError(outcome, "unhealthy" if outcome == "reverted" else "degraded", message)

    async def _hello(self, args: dict[str, Any]) -> dict[str, Any]:
        server, recovered = self._server, None
        if args["lock"]:
            if not await server.lock(self, float(args["wait"])):
                raise _RefusalError("locked", "locked", "somebody else is changing it")
            pending = server.rollout
            if pending is not None:
                recovered = {"commit": pending.commit, "outcome": server.finish()}
        return {"facts": server.facts(), "recovered": recovered}

    def _inspect(self, args: dict[str, Any]) -> dict[str, Any]:
        server = self._server
        live, commit = server.current, args["commit"]
        count = server.files if live and live != commit else 0
        files = [{"status": "M", "path": f"shop/pages/page_{number}.py"} for number in range(count)]
        answer = {"commit": commit, "subject": server.subject, "author": "A", "time": 1.0, "live": live}
        infra = {"Dockerfile": "1" * 40, "requirements.txt": "2" * 40}
        return {**answer, "infra": infra, "infra_live": infra, "files": files, "files_count": count, "count": 1}

    def _bye(self, args: dict[str, Any]) -> dict[str, Any]:
        if args.get("trace") is not None and self._server._holder is self:
            self._server.traces.insert(0, args["trace"])
        return {}

    def _traces(self, args: dict[str, Any]) -> dict[str, Any]:
        return {"traces": self._server.traces}

    def _prepare(self, args: dict[str, Any]) -> dict[str, Any]:
        server = self._server
        assert server._holder is self, "prepare without the lock"
        assert server.rollout is None, "a rollout is open already"
        server.on_prepare(args)
        server.migrated += args.get("migrate") is not None
        server.rollout = _Open(args["commit"], server.current, str(args.get("kind", "code")))
        return {"commit": args["commit"]}

    def _activate(self, args: dict[str, Any]) -> dict[str, Any]:
        server = self._server
        assert server.rollout is not None and not server.rollout.activated, "activate came without prepare"
        server.rollout.activated = True
        server.flip(server.rollout.commit)
        return {"flipped": 1.0}

    def _verify(self, args: dict[str, Any]) -> dict[str, Any]:
        server = self._server
        assert server.rollout is not None and server.rollout.activated, "verify came before activate"
        if server.rollout.commit in server.broken:
            self._failed("it answers with errors")
        server.rollout.verified = True
        return {"workers": server.facts()["slots"]["0"]["workers"]}

    def _commit(self, args: dict[str, Any]) -> dict[str, Any]:
        server = self._server
        assert server.rollout is not None and server.rollout.verified, "commit came before verify"
        server.commit()
        return {"stable": server.stable}

    def _revert(self, args: dict[str, Any]) -> dict[str, Any]:
        server = self._server
        assert server.rollout is not None, "there is no rollout to revert"
        if not server.rollout.activated:
            raise _RefusalError("refused", "not-activated", "there is nothing to go back from")
        before = server.rollout.before
        if server.revert() == "degraded":
            raise _RefusalError("degraded", "degraded", "going back failed")
        return {"current": before}

    def _abort(self, args: dict[str, Any]) -> dict[str, Any]:
        if self._server.rollout is not None:
            self._server.end("aborted")
        return {}

    def _status(self, args: dict[str, Any]) -> dict[str, Any]:
        return self._server.facts()

    def _exec(self, args: dict[str, Any]) -> dict[str, Any]:
        return {"status": self._server.exit_status}

    def _nothing(self, args: dict[str, Any]) -> dict[str, Any]:
        return {}


class _Hurry(selectors.DefaultSelector):
    """Does not wait: what is due later is due at once, and the clock goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        found = super().select(0 if timeout is None or timeout > 0 else timeout)
        if found or timeout == 0:
            return found
        if timeout is None:
            # Nothing is due: somebody outside (a signal, a thread) has to come.
            return super().select(0.01)
        self.now += timeout
        return found


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to what is due next."""

    def __init__(self) -> None:
        self._hurry = _Hurry()
        super().__init__(self._hurry)

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._hurry.now


def run_virtually(work: Callable[[], Coroutine[Any, Any, _T]]) -> tuple[_T, float]:
    """Run it; what it returns, and how many virtual seconds it took."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        loop = runner.get_loop()
        began = loop.time()
        return runner.run(work()), loop.time() - began


def named(count: int, make: Callable[[str], SimulatedServer] = SimulatedServer) -> Sequence[SimulatedServer]:
    """So many servers."""
    return [make(f"web{number}") for number in range(count)]


def cpu_seconds() -> float:
    """What this process has cost so far."""
    return time.process_time()
