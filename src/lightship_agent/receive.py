"""A commit's objects, sent by the controller over the conversation: the server needs no way to the git host.

The controller first asks what is here, then sends a pack in pieces. They are kept in a file without a name, which
is gone with this process however that ends; no lock is held meanwhile, for nobody knows how long the way is. When the
pack is whole, it is proven in a place of its own beside the mirror's objects, as git does with a push:

- git makes an index of it, with the objects that the pack builds upon taken from the mirror;
- the commit that was asked for is in it;
- every commit in it has all that belongs to it, there or in the mirror. ``index-pack --strict`` would say so too, but
  it also refuses what many an old history has, such as a time zone that there never was, and that a fetch lets pass.

Only then it is moved into the mirror, its index last, so that a commit that is there has all that belongs to it
whenever this is cut off; and then the commit gets a ref, by which git knows what the mirror has.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from lightship_agent import TYPE_CHECKING, failpoints, system
from lightship_agent import release as releases
from lightship_agent.errors import AgentFailure, ProtocolError, Refused
from lightship_agent.failpoints import fail_point
from lightship_agent.git import INCOMING, Mirror
from lightship_agent.instance import make_directories
from lightship_agent.paths import ServicePaths
from lightship_agent.protocol import MOST_HAVES
from lightship_agent.requests import ReceiveRequest
from lightship_agent.space import require_space
from lightship_agent.state import load_state
from lightship_agent.system import Completed

if TYPE_CHECKING:
    from typing import IO, Any

__all__ = ["Receiver"]

failpoints.register(
    receive__begin="a pack was announced, and is about to come",
    receive__whole="a pack has come, and is about to be proven",
    receive__move="a pack was proven, and is about to be moved into the mirror",
    receive__index="a pack is in the mirror, and about to get its index there",
    receive__ref="a commit that was sent is about to get its ref",
    receive__done="a commit that was sent is there",
)

_SECONDS = 1800.0
_REFS = "refs/lightship/commits"
# Each commit that is sent leaves a ref; of so many, those that others follow from are taken away, and the oldest.
_MOST_REFS = 50


class Receiver:
    """Takes the parts of ``receive``. ``alone`` is a lock for the time in which the mirror is changed."""

    def __init__(
        self, paths: ServicePaths, mirror: Mirror, alone: Callable[[], AbstractContextManager[object]]
    ) -> None:
        self._paths = paths
        self._mirror = mirror
        self._alone = alone
        self._commit = ""
        self._size = 0
        self._came = 0
        self._file: IO[bytes] | None = None
        self._haves: list[str] = []

    def take(self, request: ReceiveRequest) -> dict[str, Any]:
        """One part. Whoever calls has what was announced forgotten when one is refused."""
        if request.part == "ask":
            return self._ask(request.commit)
        if request.part == "begin":
            return self._begin(request.commit, request.size)
        file = self._open_file(request.commit)
        return self._keep(file, request.data) if request.part == "data" else self._end(file)

    def forget(self) -> None:
        """Give up the pack that was announced."""
        if self._file is not None:
            self._file.close()
        self._file, self._commit = None, ""

    def _open_file(self, commit: str) -> IO[bytes]:
        if self._file is None or commit != self._commit:
            raise ProtocolError("no-pack", "no pack of this commit was announced, or it was given up")
        return self._file

    def _ask(self, commit: str) -> dict[str, Any]:
        named = _named(self._paths)
        there = self._mirror.have_commits([commit, *named])
        if commit in there:
            return {"has": True, "commits": []}
        self._haves = _known_commits(self._mirror, [one for one in named if one in there])
        return {"has": False, "commits": self._haves}

    def _begin(self, commit: str, size: int) -> dict[str, Any]:
        self.forget()
        make_directories(self._paths)
        # Once as it came, and once in the mirror, where what it builds upon may be added.
        require_space(self._paths.home, "the code that is to come", size=2 * size)
        fail_point("receive.begin")
        import tempfile  # noqa: PLC0415 - it costs every agent's start, and only some need it

        self._file = tempfile.TemporaryFile(dir=str(self._paths.state))  # noqa: SIM115 (it stays open between the parts)
        self._commit, self._size, self._came = commit, size, 0
        return {"size": size}

    def _keep(self, file: IO[bytes], data: bytes) -> dict[str, Any]:
        self._came += len(data)
        if self._came > self._size:
            raise ProtocolError("pack-size", f"{self._came} bytes of a pack of {self._size} came")
        file.write(data)
        return {"came": self._came}

    def _end(self, file: IO[bytes]) -> dict[str, Any]:
        if self._came != self._size:
            raise Refused("pack-broken", f"only {self._came} bytes of a pack of {self._size} came")
        fail_point("receive.whole")
        file.flush()
        file.seek(0)
        with self._alone():
            store(self._mirror, self._commit, file.fileno(), self._haves)
        self.forget()
        fail_point("receive.done")
        return {"has": True}


def _named(paths: ServicePaths) -> list[str]:
    """The commits that this service has a use for. What serves comes first."""
    state = load_state(paths)
    named = [releases.current_commit(paths), state.stable, state.previous]
    named += [one.commit for one in releases.load_all(paths)]
    return list(dict.fromkeys(one for one in named if one))


def _known_commits(mirror: Mirror, named: Sequence[str]) -> list[str]:
    """What a pack may build upon: commits that are here with all that belongs to them, those that are named first."""
    if not (mirror.folder / "HEAD").exists():
        return []
    sort = ("--sort=-committerdate", f"--count={MOST_HAVES}", "--format=%(objectname) %(objecttype)")
    refs = mirror.read("for-each-ref", *sort, "refs/lightship/").out.splitlines()
    tips = [line.split()[0] for line in refs if line.endswith(" commit")]
    return list(dict.fromkeys((*named, *tips)))[:MOST_HAVES]


def store(mirror: Mirror, commit: str, pack: int, haves: Sequence[str]) -> None:
    """Prove a pack, a file's descriptor, and make it part of the mirror. A wrong one leaves nothing behind.

    ``haves`` are commits that are in the mirror, with all that belongs to them.
    """
    mirror.create()
    if mirror.has_commit(commit):
        return
    mirror.clean()
    try:
        _prove(mirror, commit, pack, haves)
        _move(mirror)
    finally:
        system.remove_tree(mirror.folder / INCOMING)
    fail_point("receive.ref")
    _name(mirror, commit)
    mirror.brought(commit)


def _prove(mirror: Mirror, commit: str, pack: int, haves: Sequence[str]) -> None:
    incoming = mirror.folder / INCOMING
    incoming.mkdir(mode=0o700)
    (incoming / "pack").mkdir(mode=0o700)
    alone = {"GIT_OBJECT_DIRECTORY": str(incoming)}
    beside = {**alone, "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(mirror.folder / "objects")}
    done = mirror.attempt("index-pack", "--stdin", "--fix-thin", env=beside, timeout=_SECONDS, input_file=pack)
    if not done.ok:
        raise _broken(done, "what came is not a whole pack of git")
    commits = _commits_in(mirror, alone)
    if commit not in commits:
        raise Refused("pack-wrong", f"the pack that came does not hold the commit {commit}")
    words = ("rev-list", "--objects", "--quiet", "--stdin", "--not", "--all")
    asked = "".join(f"{one}\n" for one in (*commits, *(f"^{have}" for have in haves))).encode()
    done = mirror.attempt(*words, env=beside, timeout=_SECONDS, input=asked)
    if not done.ok:
        raise _broken(done, f"the pack that came lacks what belongs to the commit {commit}")


def _broken(done: Completed, message: str) -> AgentFailure:
    if "No space left on device" in done.err:
        return Refused("no-space", f"{message}: the disk is full", hint="free some space on the server (`df -h`)")
    return Refused(
        "pack-broken",
        message,
        hint="deploy again: it is sent anew",
        detail={"stderr": done.err.strip()[-500:], "status": done.status},
    )


def _commits_in(mirror: Mirror, env: dict[str, str]) -> list[str]:
    """The commits and the tags of the pack alone."""
    found: list[str] = []

    def heard(_stream: str, line: str) -> None:
        if line.endswith((" commit", " tag")):
            found.append(line.split(maxsplit=1)[0])

    # Object after object: of a large repository there are millions.
    words = ("cat-file", "--batch-all-objects", "--unordered", "--batch-check=%(objectname) %(objecttype)")
    done = mirror.attempt(*words, env=env, timeout=_SECONDS, on_line=heard, max_output=4096)
    if not done.ok:
        raise _broken(done, "what came cannot be read")
    return found


def _move(mirror: Mirror) -> None:
    """Into the mirror; the index comes last, and with it the pack is there."""
    source, target = mirror.folder / INCOMING / "pack", mirror.folder / "objects" / "pack"
    names = sorted(os.listdir(source), key=lambda name: name.endswith(".idx"))
    fail_point("receive.move")
    for name in names:
        if name.endswith(".idx"):
            system.sync_directory(target)
            fail_point("receive.index")
        (source / name).rename(target / name)
    system.sync_directory(target)


def _name(mirror: Mirror, commit: str) -> None:
    """Give the commit its ref; of many, take away those that are needless."""
    mirror.read("update-ref", f"{_REFS}/{commit}", commit)
    if len(os.listdir(mirror.folder / _REFS)) <= _MOST_REFS:
        return
    merged = mirror.read("for-each-ref", f"--merged={commit}", "--format=%(refname)", _REFS).out.split()
    newest = mirror.read("for-each-ref", "--sort=-committerdate", "--format=%(refname)", _REFS).out.split()
    needless = [one for one in dict.fromkeys((*merged, *newest[_MOST_REFS // 2 :])) if one != f"{_REFS}/{commit}"]
    # What goes wrong here is made good by the next commit.
    with contextlib.suppress(AgentFailure):
        mirror.read("update-ref", "--stdin", input="".join(f"delete {one}\n" for one in needless).encode())
