"""A commit on its way from the controller to agents, each a real process, over the real conversation."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightship.errors import LightshipError, RefusedError, TransportError, UsageError
from lightship.operations import code as codes
from lightship.operations.code import Pushed
from lightship.operations.context import Context, load_context
from lightship.rollout import Session
from lightship.rollout.events import Event, StepDone, StepFailed
from lightship.source.mirror import SourceMirror
from lightship.source.remote import Resolved
from lightship.transport.local import LocalTransport
from lightship.transport.zipapp import agent_file
from support.repo import Repository

# More than a piece of a pack, and nothing that could be packed smaller.
NOISE = random.Random(1).randbytes(3 * codes.PIECE + 1000)


class Fleet:
    """A service with ``source: push`` on so many servers, which are folders of this machine."""

    def __init__(self, folder: Path, count: int = 2) -> None:
        self.origin = Repository(folder / "origin")
        self.folder = folder
        self.names = [f"web{number}" for number in range(count)]
        self.events: list[Event] = []
        service = {"repository": str(self.origin.remote), "source": "push", "servers": self.names}
        (folder / "lightship.yml").write_text(json.dumps({"services": {"shop": service}}))
        self.agent = agent_file(folder / "cache")
        self.context: Context = load_context("shop", folder / "lightship.yml", self.events.append)

    @property
    def mirror(self) -> SourceMirror:
        return SourceMirror(self.context.service.repository, folder=self.folder / "cache" / "mirrors")

    async def sessions(self, *, lock: bool = False) -> list[Session]:
        hello = self.context.hello(why="test", lock=lock)
        opened = []
        for name in self.names:
            session = Session(LocalTransport(self.agent, server=name), hello, self.events.append)
            opened.append(await session.open(root=str(self.folder / name)))
        return opened

    def push(self, commit: str, *, lock: bool = False) -> dict[str, int]:
        """Bring the commit to all servers; how many bytes each got."""
        self.events.clear()

        async def go() -> None:
            opened = await self.sessions(lock=lock)
            code = Pushed(self.context, self.mirror)
            try:
                resolved = Resolved("main", commit, "branch")
                await asyncio.gather(*(code.bring(session, resolved) for session in opened))
                for session in opened:
                    answer = await session.call("inspect", {"commit": commit, "ref": "main"})
                    assert answer["commit"] == commit
            finally:
                await code.close()
                await asyncio.gather(*(session.close() for session in opened))

        asyncio.run(go())
        done = [one for one in self.events if isinstance(one, StepDone) and one.step == "push"]
        return {one.server: one.detail["bytes"] for one in done}


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


def test_all_get_the_whole_once_and_then_what_differs(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, ...]] = []
    whole = SourceMirror.pack

    async def counted(self: SourceMirror, commit: str, haves: Any) -> Any:
        made.append(tuple(haves))
        return await whole(self, commit, haves)

    monkeypatch.setattr(SourceMirror, "pack", counted)
    first = fleet.origin.commit("first", {"noise": NOISE, "a": "1\n"})
    sent = fleet.push(first)
    assert set(sent) == set(fleet.names)
    assert min(sent.values()) > len(NOISE)
    assert fleet.push(first) == {}, "and nothing again"
    second = fleet.origin.commit("second", {"a": "2\n"})
    sent = fleet.push(second)
    assert max(sent.values()) < 1000
    assert made == [(), (first,)], "one pack for all servers that have the same"
    # One that lags behind gets a pack of its own.
    fleet.names = ["web0"]
    third = fleet.origin.commit("third", {"a": "3\n"})
    fleet.push(third)
    fleet.names = ["web0", "web1"]
    fourth = fleet.origin.commit("fourth", {"a": "4\n"})
    fleet.push(fourth)
    assert set(made[3:]) == {(second,), (third,)}


def test_with_the_lock_and_from_an_empty_cache_it_is_the_same(fleet: Fleet) -> None:
    first = fleet.origin.commit("first", {"noise": NOISE})
    fleet.push(first, lock=True)
    fleet.agent = agent_file(fleet.folder / "cache2")
    for path in sorted((fleet.folder / "cache" / "mirrors").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    sent = fleet.push(fleet.origin.commit("second", {"a": "2\n"}), lock=True)
    assert max(sent.values()) < 1000


def broken(session: Session, change: Callable[[dict[str, Any]], None]) -> None:
    """From now on the session's requests are changed on their way."""
    call = session.call

    async def changed(op: str, args: Any = None, **more: Any) -> Any:
        args = dict(args or {})
        change(args)
        return await call(op, args, **more)

    session.call = changed  # type: ignore[method-assign]


def _cut(args: dict[str, Any]) -> None:
    if args.get("part") == "data":
        args["data"] = args["data"][:400]


def _not_base64(args: dict[str, Any]) -> None:
    if args.get("part") == "data":
        args["data"] = args["data"][:-1]


def _huge(args: dict[str, Any]) -> None:
    if args.get("part") == "begin":
        args["size"] = 1 << 39


@pytest.mark.parametrize(
    ("change", "error", "code"),
    [(_cut, RefusedError, "pack-broken"), (_not_base64, UsageError, "bad-value"), (_huge, RefusedError, "no-space")],
)
def test_what_goes_wrong_on_the_way_is_an_error_and_the_next_one_works(
    fleet: Fleet, change: Callable[[dict[str, Any]], None], error: type[LightshipError], code: str
) -> None:
    commit = fleet.origin.commit("first", {"noise": NOISE})

    async def go() -> None:
        first, *others = await fleet.sessions()
        pushed = Pushed(fleet.context, fleet.mirror)
        resolved = Resolved("main", commit, "branch")
        try:
            broken(first, change)
            with pytest.raises(error) as caught:
                await pushed.bring(first, resolved)
            assert caught.value.code == code
            assert [one.step for one in fleet.events if isinstance(one, StepFailed)] == ["push"]
            # In the same conversation, too.
            del first.call
            await pushed.bring(first, resolved)
            assert (await first.call("receive", {"part": "ask", "commit": commit}))["has"] is True
        finally:
            await pushed.close()
            await asyncio.gather(*(session.close() for session in (first, *others)))

    asyncio.run(go())


def test_an_agent_that_dies_meanwhile_leaves_a_server_that_the_next_push_serves(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = fleet.origin.commit("first", {"noise": NOISE})
    monkeypatch.setenv("LIGHTSHIP_TESTING", "1")
    for point in ("receive.begin", "receive.whole", "receive.move", "receive.index"):
        monkeypatch.setenv("LIGHTSHIP_FAILPOINTS", f"{point}=kill")
        with pytest.raises(TransportError):
            fleet.push(commit)
    monkeypatch.delenv("LIGHTSHIP_FAILPOINTS")
    assert set(fleet.push(commit)) == set(fleet.names)
    left = [str(path) for name in fleet.names for path in (fleet.folder / name).rglob("*") if "tmp" in path.name]
    assert not left


def test_what_a_lying_server_has_reaches_no_argument(fleet: Fleet) -> None:
    lies = [["--all"], {"commits": 5}, "x", [5, None, "^" + "a" * 40, "a" * 41, "A" * 40, "\u0661" * 40]]
    for lie in lies:
        assert codes._commits({"commits": lie}) == frozenset()
    assert codes._commits({"commits": ["b" * 40] * 1000}) == {"b" * 40}


def test_inspect_without_a_repository_asks_nobody(fleet: Fleet) -> None:
    async def go() -> None:
        first, *others = await fleet.sessions()
        try:
            with pytest.raises(RefusedError) as caught:
                await first.call("inspect", {"commit": "a" * 40, "ref": "main"})
            assert caught.value.code == "commit-missing"
        finally:
            await asyncio.gather(*(session.close() for session in (first, *others)))

    asyncio.run(go())
