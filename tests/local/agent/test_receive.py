"""A pack that is sent: what is taken, and that one which is wrong in any way is refused and leaves nothing behind."""

from __future__ import annotations

import base64
import contextlib
import random
import subprocess
import zlib
from collections.abc import Callable, Iterator
from hashlib import sha1
from pathlib import Path
from typing import Any

import pytest

from lightship_agent import failpoints, protocol, receive, space
from lightship_agent import release as releases
from lightship_agent.errors import AgentFailure, ProtocolError, Refused
from lightship_agent.git import Mirror
from lightship_agent.paths import ServicePaths
from lightship_agent.receive import Receiver
from lightship_agent.requests import ReceiveRequest
from lightship_agent.system import DiskFree
from support.repo import ALONE, Repository, git


class Origin:
    """A repository as a user has it."""

    def __init__(self, folder: Path) -> None:
        self._repository = Repository(folder)
        self.path = self._repository.tree
        self._now = 1_700_000_000

    def git(self, *words: str) -> str:
        return git(self.path, *words)

    def commit(self, files: dict[str, str]) -> str:
        """Commit, a second after the commit before: which of two is newer is to be certain."""
        self._now += 1
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("GIT_COMMITTER_DATE", f"@{self._now} +0000")
            return self._repository.commit(files=dict(files), push=False)


class Server:
    """A server's side, and what a controller does to it."""

    def __init__(self, folder: Path) -> None:
        self.paths = ServicePaths.at(str(folder), "shop")
        self.paths.state.mkdir(parents=True)
        self.mirror = Mirror(self.paths, base_env=ALONE, timeout=20)
        self.locked = 0
        self.receiver = Receiver(self.paths, self.mirror, self._alone)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        self.locked += 1
        yield

    def ask(self, part: str, commit: str, **more: Any) -> dict[str, Any]:
        """One request, as the conversation has it."""
        try:
            return self.receiver.take(ReceiveRequest.parse({"part": part, "commit": commit, **more}))
        except BaseException:
            self.receiver.forget()
            raise

    def send(self, commit: str, pack: bytes, piece: int = 1000, size: int | None = None) -> dict[str, Any]:
        self.ask("begin", commit, size=len(pack) if size is None else size)
        for start in range(0, len(pack), piece):
            self.ask("data", commit, data=base64.b64encode(pack[start : start + piece]).decode())
        return self.ask("end", commit)

    def known(self) -> Any:
        """What it says that a pack may build upon, of a commit that it lacks."""
        answer = self.ask("ask", "e" * 40)
        assert answer["has"] is False
        return answer["commits"]

    def left(self) -> set[str]:
        """Every file of the mirror and of state/, but for what a mirror has anyway."""
        found = {str(path.relative_to(self.paths.home)) for path in self.paths.home.rglob("*") if path.is_file()}
        return {name for name in found if name not in ("repo.git/HEAD", "repo.git/config", "repo.git/info/attributes")}


@pytest.fixture
def origin(tmp_path: Path) -> Origin:
    return Origin(tmp_path / "origin")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    # Who owns them is root's to say; here they are the test's.
    monkeypatch.setattr(receive, "make_directories", lambda paths: None)
    made = Server(tmp_path / "srv")
    yield made
    made.receiver.forget()


def pack_of(origin: Origin, *wanted: str, haves: tuple[str, ...] = (), objects: tuple[str, ...] = ()) -> bytes:
    """A pack as the controller makes it, or of these objects alone."""
    lines = objects or (*wanted, *(f"^{have}" for have in haves))
    words = ["pack-objects", "--stdout", "--quiet", *([] if objects else ["--revs", "--thin", "--delta-base-offset"])]
    done = subprocess.run(
        ["git", "-C", str(origin.path), *words],
        input="".join(f"{line}\n" for line in lines).encode(), env=ALONE, check=True, capture_output=True,
    )  # fmt: skip
    return done.stdout


def test_a_first_commit_and_then_the_little_that_differs(origin: Origin, server: Server) -> None:
    text = "".join(f"{random.Random(number).random()}\n" for number in range(20_000))
    first = origin.commit({"big": text, "a.py": "1\n"})
    assert server.ask("ask", first) == {"has": False, "commits": []}
    whole = pack_of(origin, first)
    assert server.send(first, whole, piece=protocol.MAX_PIECE) == {"has": True}
    assert server.ask("ask", first) == {"has": True, "commits": []}

    second = origin.commit({"big": text.replace("\n", "!\n", 1)})
    assert server.ask("ask", second) == {"has": False, "commits": [first]}
    thin = pack_of(origin, second, haves=(first,))
    assert len(thin) < 1000 < len(whole) / 100
    server.send(second, thin)
    assert server.mirror.read("show", f"{second}:big").out == text.replace("\n", "!\n", 1)
    server.mirror.read("fsck", "--strict", "--connectivity-only")
    assert server.locked == 2
    assert not list(server.paths.state.iterdir())


def test_what_has_been_received_is_not_looked_for_again(
    origin: Origin, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = origin.commit({"a": "1"})
    server.send(commit, pack_of(origin, commit))
    monkeypatch.setattr(server.mirror, "_run", lambda *_, **__: pytest.fail("a process was started"))
    assert server.mirror.has_commit(commit)
    (server.mirror.folder / "HEAD").unlink()
    assert not server.mirror.has_commit(commit), "the mirror is gone"


def test_a_mirror_that_is_damaged_has_nothing_to_build_upon(origin: Origin, server: Server) -> None:
    first, second = origin.commit({"a": "1"}), origin.commit({"a": "2"})
    server.send(first, pack_of(origin, first))
    server.paths.current.parent.mkdir(parents=True)
    server.paths.current.symlink_to(f"releases/{first}")
    damaged = server.mirror.folder / "objects" / second[:2] / second[2:]
    damaged.parent.mkdir()
    damaged.write_bytes(b"this is no object")
    assert server.ask("ask", second)["has"] is False


def test_rewritten_history_keeps_what_is_live(origin: Origin, server: Server) -> None:
    base = origin.commit({"a": "1"})
    old = origin.commit({"a": "2"})
    server.send(old, pack_of(origin, old))
    origin.git("reset", "-q", "--hard", base)
    new = origin.commit({"a": "3"})
    server.send(new, pack_of(origin, new, haves=(old,)))
    for commit in (base, old, new):
        assert server.mirror.has_commit(commit)
    assert set(server.known()) == {new, old}


def test_what_serves_and_the_releases_come_first_among_what_a_pack_may_build_upon(
    origin: Origin, server: Server
) -> None:
    commits = [origin.commit({"a": str(number)}) for number in range(5)]
    server.send(commits[-1], pack_of(origin, commits[-1]))
    for commit in commits[:2]:
        server.paths.release(commit).mkdir(parents=True)
        server.paths.release_files.mkdir(exist_ok=True)
        releases.save(server.paths, releases.Release(commit, created=1.0))
    server.paths.current.symlink_to(f"releases/{commits[1]}")
    lost = "d" * 40
    server.paths.release(lost).mkdir()
    releases.save(server.paths, releases.Release(lost, created=1.0))
    found = server.known()
    assert found[0] == commits[1]
    assert set(found) == {commits[0], commits[1], commits[-1]}, "and nothing that the mirror lacks"


def test_of_many_refs_those_that_are_needless_go_and_only_so_many_are_named(
    origin: Origin, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receive, "_MOST_REFS", 4)
    monkeypatch.setattr(receive, "MOST_HAVES", 3)
    base = origin.commit({"a": "0"})
    for number in range(9):
        if number > 3:
            origin.git("reset", "-q", "--hard", base)
        commit = origin.commit({"a": f"new {number}"})
        server.send(commit, pack_of(origin, commit))
        refs = server.mirror.read("for-each-ref", "--format=%(objectname)").out.split()
        assert commit in refs
        assert len(refs) <= 4
    assert len(server.known()) == 3


def test_a_tag_with_a_message_is_taken_as_a_fetch_takes_it(origin: Origin, server: Server) -> None:
    commit = origin.commit({"a": "1"})
    origin.git("tag", "-a", "-m", "one", "v1")
    tag = origin.git("rev-parse", "v1")
    server.send(tag, pack_of(origin, tag))
    assert server.mirror.has_commit(tag)
    assert server.mirror.has_commit(commit)


def test_an_old_history_that_fsck_would_refuse_is_taken(origin: Origin, server: Server) -> None:
    tree = origin.git("rev-parse", f"{origin.commit({'a': '1'})}^{{tree}}")
    text = f"tree {tree}\nauthor A <a@b> 1 +518700\ncommitter A <a@b> 1 +518700\n\nold\n"
    done = subprocess.run(
        ["git", "-C", str(origin.path), "hash-object", "--literally", "-t", "commit", "-w", "--stdin"],
        input=text.encode(), env=ALONE, check=True, capture_output=True,
    )  # fmt: skip
    commit = done.stdout.decode().strip()
    assert server.send(commit, pack_of(origin, commit)) == {"has": True}


# --- what is wrong ---------------------------------------------------------------------------------


def _nothing(origin: Origin, commit: str) -> bytes:
    return b""


def _noise(origin: Origin, commit: str) -> bytes:
    return random.Random(1).randbytes(5000)


def _cut(origin: Origin, commit: str) -> bytes:
    return pack_of(origin, commit)[:-30]


def _more(origin: Origin, commit: str) -> bytes:
    return pack_of(origin, commit) + b"more"


def _changed(origin: Origin, commit: str) -> bytes:
    data = bytearray(pack_of(origin, commit))
    data[len(data) // 2] ^= 1
    return bytes(data)


def _empty(origin: Origin, commit: str) -> bytes:
    head = b"PACK" + (2).to_bytes(4, "big") + (0).to_bytes(4, "big")
    return head + sha1(head, usedforsecurity=False).digest()


def _other(origin: Origin, commit: str) -> bytes:
    return pack_of(origin, f"{commit}~1")


def _commit_alone(origin: Origin, commit: str) -> bytes:
    return pack_of(origin, objects=(commit,))


def _blob_of_that_name(origin: Origin, commit: str) -> bytes:
    return pack_of(origin, objects=(origin.git("rev-parse", f"{commit}:a"),))


def _thin_upon_what_is_not_there(origin: Origin, commit: str) -> bytes:
    return pack_of(origin, commit, haves=(origin.git("rev-parse", f"{commit}~1"),))


def _bomb(origin: Origin, commit: str) -> bytes:
    """A header that promises a thousand million objects."""
    head = b"PACK" + (2).to_bytes(4, "big") + (1 << 30).to_bytes(4, "big") + zlib.compress(b"x" * 1000)
    return head + sha1(head, usedforsecurity=False).digest()


BROKEN: list[Callable[[Origin, str], bytes]] = [
    _nothing, _noise, _cut, _more, _changed, _empty, _other, _commit_alone, _blob_of_that_name,
    _thin_upon_what_is_not_there, _bomb,
]  # fmt: skip


@pytest.mark.parametrize("made", BROKEN, ids=[one.__name__[1:] for one in BROKEN])
def test_a_pack_that_is_not_right_is_refused_and_leaves_nothing(
    origin: Origin, server: Server, made: Callable[[Origin, str], bytes]
) -> None:
    text = "".join(f"{random.Random(number).random()}\n" for number in range(500))
    origin.commit({"a": text})
    commit = origin.commit({"a": text + "1"})
    with pytest.raises(Refused) as caught:
        server.send(commit, made(origin, commit))
    assert caught.value.code in ("pack-broken", "pack-wrong")
    assert not server.mirror.has_commit(commit)
    assert server.left() == set()
    # And the next one, whole, is taken.
    assert server.send(commit, pack_of(origin, commit)) == {"has": True}


def test_objects_beside_the_commit_must_be_whole_too(origin: Origin, server: Server) -> None:
    """A commit counts as whole when it is there: none may come in on the back of another."""
    other = origin.commit({"a": "1"})
    origin.git("checkout", "-q", "--orphan", "next")
    commit = origin.commit({"a": "2"})
    objects = origin.git("rev-list", "--objects", "--no-object-names", commit).split()
    with pytest.raises(Refused, match="lacks"):
        server.send(commit, pack_of(origin, objects=(*objects, other)))
    assert server.left() == set()
    assert not server.mirror.has_commit(other)


def test_more_or_less_than_was_announced_is_refused(origin: Origin, server: Server) -> None:
    commit = origin.commit({"a": "1"})
    pack = pack_of(origin, commit)
    with pytest.raises(ProtocolError, match="bytes of a pack of"):
        server.send(commit, pack, size=len(pack) - 1)
    with pytest.raises(Refused, match="only"):
        server.send(commit, pack, size=len(pack) + 1)
    assert server.left() == set()


def test_parts_out_of_turn_are_refused(origin: Origin, server: Server) -> None:
    commit, other = origin.commit({"a": "1"}), "e" * 40
    for part in ("data", "end"):
        with pytest.raises(ProtocolError, match="announced"):
            server.ask(part, commit)
    server.ask("begin", commit, size=100)
    with pytest.raises(ProtocolError, match="announced"):
        server.ask("data", other, data="aGVsbG8=")
    with pytest.raises(ProtocolError, match="announced"):
        server.ask("data", commit, data="aGVsbG8=")
    server.ask("begin", other, size=5)
    with pytest.raises(ProtocolError, match="announced"):
        server.ask("end", commit)
    assert server.left() == set()


def test_a_pack_for_which_there_is_no_space_is_refused_before_it_comes(
    origin: Origin, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = origin.commit({"a": "1"})
    monkeypatch.setattr(space, "disk_free", lambda place: DiskFree(space.MARGIN_BYTES + 1_000_000, None))
    with pytest.raises(Refused) as caught:
        server.ask("begin", commit, size=500_001)
    assert caught.value.code == "no-space"
    assert server.ask("begin", commit, size=500_000) == {"size": 500_000}


def test_a_commit_that_came_meanwhile_is_taken_as_it_is(origin: Origin, server: Server) -> None:
    commit = origin.commit({"a": "1"})
    server.ask("begin", commit, size=1)
    server.ask("data", commit, data="eA==")
    server.mirror.fetch(str(origin.path), "main", commit)
    assert server.ask("end", commit) == {"has": True}


@pytest.mark.parametrize("point", ["begin", "whole", "move", "index", "ref", "done"])
def test_cut_off_anywhere_the_commit_is_whole_or_not_there(
    origin: Origin, server: Server, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    first = origin.commit({"a": "1"})
    server.send(first, pack_of(origin, first))
    commit = origin.commit({"a": "2"})
    pack = pack_of(origin, commit, haves=(first,))
    monkeypatch.setattr(failpoints, "_times", {})
    monkeypatch.setenv("LIGHTSHIP_TESTING", "1")
    monkeypatch.setenv("LIGHTSHIP_FAILPOINTS", f"receive.{point}=error*1")
    with pytest.raises(AgentFailure, match="fail point"):
        server.send(commit, pack)
    if server.mirror.has_commit(commit):
        server.mirror.read("rev-list", "--objects", "--quiet", commit)
    assert not (server.mirror.folder / "objects" / "incoming").exists()
    assert server.send(commit, pack) == {"has": True}


def test_what_a_killed_agent_left_is_removed_before_the_next(origin: Origin, server: Server) -> None:
    commit = origin.commit({"a": "1"})
    server.mirror.create()
    incoming = server.mirror.folder / "objects" / "incoming" / "pack"
    incoming.mkdir(parents=True)
    (incoming / "tmp_pack_x").write_bytes(b"x")
    server.send(commit, pack_of(origin, commit))
    assert not incoming.parent.exists()
    assert not list(server.paths.state.iterdir())
