"""The mirror on the controller: what is fetched, what packs are made of it, that nothing blocks the next command."""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import subprocess
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest

from lightship.config.repository import Repository as Address
from lightship.errors import LightshipError, RefusedError
from lightship.source import mirror as mirrors
from lightship.source import unused
from lightship.source.mirror import SourceMirror
from lightship.source.remote import Resolved
from lightship_agent import gitcommand
from support.repo import Repository, git

_T = TypeVar("_T")


def run(work: Coroutine[Any, Any, _T]) -> _T:
    return asyncio.run(work)


@pytest.fixture
def origin(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "origin")


@pytest.fixture
def mirror(tmp_path: Path, origin: Repository) -> SourceMirror:
    return SourceMirror(Address(str(origin.remote)), folder=tmp_path / "cache" / "mirrors")


def branch(commit: str, ref: str = "main") -> Resolved:
    return Resolved(ref, commit, "branch")


def in_pack(data: bytes) -> int:
    """How many objects a pack has."""
    assert data[:4] == b"PACK"
    return int.from_bytes(data[8:12], "big")


def test_a_commit_is_fetched_once_and_kept_for_its_user_alone(origin: Repository, mirror: SourceMirror) -> None:
    commit = origin.commit("first", {"a": "1"})
    assert not run(mirror.has(commit))
    assert run(mirror.bring(branch(commit)))
    assert run(mirror.has(commit))
    assert (mirror.path.stat().st_mode & 0o777, mirror.path.parent.stat().st_mode & 0o777) == (0o700, 0o700)
    # What is there costs no connection: the repository may be gone.
    origin.remote.rename(origin.remote.with_name("gone"))
    assert not run(mirror.bring(branch(commit)))


def test_branches_tags_and_commits_however_they_are_named(origin: Repository, mirror: SourceMirror) -> None:
    first = origin.commit("first", {"a": "1"})
    git(origin.tree, "tag", "-a", "-m", "one", "v1")
    git(origin.tree, "push", "-q", "origin", "v1")
    second = origin.commit("second", {"a": "2"})
    git(origin.tree, "push", "-q", "origin", "HEAD:refs/heads/feature/x")
    run(mirror.bring(Resolved("v1", first, "tag")))
    assert not run(mirror.has(second))
    run(mirror.bring(Resolved("refs/heads/feature/x", second, "branch")))
    third = origin.commit("third", {"a": "3"})
    run(mirror.bring(Resolved("main", third, "commit")))
    for commit in (first, second, third):
        assert run(mirror.has(commit))


def test_a_branch_that_moved_on_meanwhile_and_one_that_was_rewritten(origin: Repository, mirror: SourceMirror) -> None:
    base = origin.commit("base", {"a": "0"})
    old = origin.commit("old", {"a": "1"})
    origin.commit("newer", {"a": "2"})
    run(mirror.bring(branch(old)))
    git(origin.tree, "reset", "-q", "--hard", base)
    new = origin.commit("rewritten", {"a": "3"})
    run(mirror.bring(branch(new)))
    assert run(mirror.has(old))
    with pytest.raises(RefusedError) as caught:
        run(mirror.bring(branch("c" * 40)))
    assert caught.value.code == "git-ref-missing"


def test_a_pack_has_what_is_lacking_and_no_more(origin: Repository, mirror: SourceMirror) -> None:
    text = "".join(f"{random.Random(number).random()}\n" for number in range(5000))
    first = origin.commit("first", {"big": text, "b": "1"})
    second = origin.commit("second", {"big": text + "one line more\n"})
    run(mirror.bring(branch(second)))

    async def go() -> None:
        whole = await mirror.pack(second, ())
        thin = await mirror.pack(second, (first,))
        with whole.file, thin.file:
            assert whole.size > 30_000
            assert thin.size < 500
            assert in_pack(thin.piece(0, thin.size)) == 3  # a commit, a tree, a blob
            assert thin.piece(4, 4) == (2).to_bytes(4, "big")
            assert len(thin.piece(0, 10_000_000)) == thin.size

    run(go())
    assert sorted(path.suffix for path in mirror.path.parent.iterdir()) == [".git", ".lock"], "a pack has no name"


def test_a_pack_builds_upon_what_is_known_here_and_on_nothing_twice(origin: Repository, mirror: SourceMirror) -> None:
    commits = [origin.commit(str(number), {"a": str(number)}) for number in range(4)]
    git(origin.tree, "checkout", "-q", "--orphan", "other")
    other = origin.commit("other", {"b": "1"}, push=False)
    git(origin.tree, "push", "-q", "origin", "HEAD:refs/heads/other")
    run(mirror.bring(branch(commits[3])))
    run(mirror.bring(branch(other, "other")))
    blob = git(origin.remote, "rev-parse", f"{commits[0]}:a")
    assert run(mirror.basis([commits[0], "d" * 40, commits[2], commits[1], other, blob])) == tuple(
        sorted((commits[2], other))
    )
    assert run(mirror.basis(["d" * 40])) == ()
    assert run(mirror.basis([])) == ()


def test_one_mirror_for_an_address_whatever_its_credentials(tmp_path: Path) -> None:
    paths = {
        SourceMirror(Address(text), folder=tmp_path).path
        for text in ("https://a:geheim@git.example/x.git", "https://git.example/x.git", "https://b@git.example/x.git")
    }
    assert len(paths) == 1
    assert paths != {SourceMirror(Address("https://git.example/y.git"), folder=tmp_path).path}
    assert "geheim" not in str(paths)


def test_two_commands_at_once_fetch_one_after_the_other(
    origin: Repository, mirror: SourceMirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirrors, "_TELL_SECONDS", 0.05)
    told: list[str] = []
    commit = origin.commit("first", {"a": "1"})
    twin = SourceMirror(Address(str(origin.remote)), folder=mirror.path.parent, tell=told.append)
    mirror.path.parent.mkdir(parents=True)
    holder = os.open(mirror.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT)
    fcntl.flock(holder, fcntl.LOCK_EX)

    async def go() -> list[bool]:
        tasks = [asyncio.create_task(one.bring(branch(commit))) for one in (twin, mirror)]
        await asyncio.sleep(0.3)
        assert not any(task.done() for task in tasks)
        os.close(holder)
        return await asyncio.gather(*tasks)

    assert sorted(run(go())) == [False, True]
    assert len(told) == 1
    monkeypatch.setattr(mirrors, "_LOCK_SECONDS", 0.1)
    holder = os.open(mirror.path.with_suffix(".lock"), os.O_RDWR)
    fcntl.flock(holder, fcntl.LOCK_EX)
    with pytest.raises(RefusedError) as caught:
        run(mirror.bring(branch(origin.commit("second", {"a": "2"}))))
    os.close(holder)
    assert caught.value.code == "source-locked"


def bring_in_a_process(origin: Repository, mirror: SourceMirror, commit: str, killed_at: str) -> int:
    """The exit status of a process that is killed at a fail point."""
    program = (
        "import asyncio, sys, pathlib\n"
        "from lightship.source.mirror import SourceMirror\nfrom lightship.source.remote import Resolved\n"
        "from lightship.config.repository import Repository\n"
        "mirror = SourceMirror(Repository(sys.argv[1]), folder=pathlib.Path(sys.argv[2]))\n"
        "async def go():\n"
        "    await mirror.bring(Resolved('main', sys.argv[3], 'branch'))\n"
        "    await mirror.tidy()\n"
        "asyncio.run(go())\n"
    )
    command = [sys.executable, "-c", program, str(origin.remote), str(mirror.path.parent), commit]
    env = {**os.environ, "LIGHTSHIP_TESTING": "1", "LIGHTSHIP_FAILPOINTS": f"{killed_at}=kill"}
    return subprocess.run(command, env=env, check=False).returncode


@pytest.mark.parametrize("point", ["source.create", "source.fetch", "source.fetched"])
def test_a_killed_command_leaves_nothing_that_blocks_the_next(
    origin: Repository, mirror: SourceMirror, point: str
) -> None:
    commit = origin.commit("first", {"a": "1"})
    assert bring_in_a_process(origin, mirror, commit, point) == -9
    for name in ("objects/pack/tmp_pack_x", "packed-refs.lock", "refs/x.lock"):
        if mirror.path.exists():
            (mirror.path / name).write_bytes(b"x")
    assert run(mirror.bring(branch(commit))) == (point != "source.fetched")
    again = origin.commit("second", {"a": "2"})
    assert run(mirror.bring(branch(again)))
    assert not list(gitcommand.leftovers(mirror.path))


def test_a_fetch_that_is_given_up_ends_with_all_its_processes(
    mirror: SourceMirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "ssh"
    program.write_text(f"#!/bin/sh\necho $$ >{tmp_path}/pid\nexec sleep 100\n")
    program.chmod(0o755)
    monkeypatch.setenv("GIT_SSH_COMMAND", str(program))
    slow = SourceMirror(Address("ssh://git.example/x.git"), folder=mirror.path.parent)

    async def go() -> None:
        task = asyncio.create_task(slow.bring(branch("a" * 40)))
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
            assert not task.done(), task.exception()
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 20)

    run(go())
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_many_packs_are_united(origin: Repository, mirror: SourceMirror, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gitcommand, "MANY_PACKS", 3)
    commits = []
    for number in range(6):
        commits.append(origin.commit(str(number), {"a": str(number)}))
        run(mirror.bring(branch(commits[-1])))
    assert len(list((mirror.path / "objects" / "pack").glob("*.pack"))) <= 4
    for commit in commits:
        assert run(mirror.has(commit))


DAY = 86400.0
UNUSED = 91 * DAY


def kept(folder: Path, name: str, unused: float) -> SourceMirror:
    """A mirror of another repository, last used so many seconds ago."""
    origin = Repository(folder / name)
    made = SourceMirror(Address(str(origin.remote)), folder=folder / "cache" / "mirrors")
    commit = origin.commit("first", {"a": name})
    run(made.bring(branch(commit)))
    grow_old(made, unused)
    return made


def lock_of(mirror: SourceMirror) -> Path:
    return mirror.path.with_suffix(".lock")


def grow_old(mirror: SourceMirror, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(lock_of(mirror), (then, then))


def unused_for(mirror: SourceMirror) -> float:
    return time.time() - lock_of(mirror).stat().st_mtime


def test_a_mirror_that_nobody_has_used_for_90_days_is_removed(
    origin: Repository, mirror: SourceMirror, tmp_path: Path
) -> None:
    used, unused, held = (
        kept(tmp_path, name, seconds)
        for name, seconds in (("used", UNUSED - 2 * DAY), ("unused", UNUSED), ("held", UNUSED))
    )
    run(mirror.bring(branch(origin.commit("first", {"a": "1"}))))
    assert unused.path.exists(), "not before the work is done"
    with lock_of(held).open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        run(mirror.tidy())
        assert [one.path.exists() for one in (used, unused, held, mirror)] == [True, False, True, True]
    assert not list(mirror.path.parent.glob(".*"))
    run(mirror.tidy())
    assert not held.path.exists(), "nobody holds it any more"
    commit = git(tmp_path / "unused" / "work", "rev-parse", "HEAD")
    assert run(unused.bring(branch(commit))), "it is made anew"


def test_nothing_is_removed_but_mirrors_of_ours(mirror: SourceMirror, tmp_path: Path) -> None:
    folder, name = mirror.path.parent, "0123456789abcdef" * 2
    elsewhere = kept(tmp_path / "elsewhere", "one", UNUSED).path
    folder.mkdir(parents=True)
    for number, foreign in enumerate(["theirs.git", f"{name}.git", f"x{name}.git", f"{name[:-1]}G.git"]):
        (folder / foreign).mkdir()
        (folder / foreign / ("HEAD" if number != 1 else "notes")).touch()
    shared = folder / f"{'a' * 32}.git"
    shared.mkdir()
    (shared / "HEAD").touch()
    shared.chmod(0o777)
    (folder / f"{'b' * 32}.git").symlink_to(elsewhere)
    (folder / f"{'c' * 32}.git").write_text("a file")
    plain = kept(tmp_path, "plain", UNUSED)
    lock_of(plain).rename(folder / "its.lock")
    lock_of(plain).symlink_to("its.lock")
    before = sorted(path for path in folder.rglob("*") if path.suffix != ".lock")
    for path in folder.glob("*.git"):
        lock = path.with_suffix(".lock")
        if not lock.is_symlink():
            lock.touch()
            os.utime(lock, (1, 1))
    os.utime(lock_of(plain), (1, 1), follow_symlinks=False)
    run(mirror.tidy())
    assert sorted(path for path in folder.rglob("*") if path.suffix != ".lock") == before
    assert (elsewhere / "HEAD").exists()


def test_where_others_can_write_nothing_is_removed(mirror: SourceMirror, tmp_path: Path) -> None:
    unused = kept(tmp_path, "unused", UNUSED)
    mirror.path.parent.chmod(0o777)
    run(mirror.tidy())
    assert unused.path.exists()
    mirror.path.parent.chmod(0o700)
    run(mirror.tidy())
    assert not unused.path.exists()
    mirror.path.parent.rename(tmp_path / "away")
    run(mirror.tidy())


def test_to_ask_for_a_commit_that_is_there_is_to_use_it(origin: Repository, mirror: SourceMirror) -> None:
    commit = origin.commit("first", {"a": "1"})
    run(mirror.bring(branch(commit)))
    grow_old(mirror, UNUSED)
    assert not run(mirror.bring(branch(commit)))
    assert unused_for(mirror) < 60
    grow_old(mirror, DAY / 2)
    with lock_of(mirror).open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert not run(mirror.bring(branch(commit))), "nobody is waited for to say the same day that it is used"
    run(mirror.pack(commit, ())).file.close()
    assert unused_for(mirror) < 60


def test_a_mirror_that_is_just_being_removed_is_waited_for(origin: Repository, mirror: SourceMirror) -> None:
    commit = origin.commit("first", {"a": "1"})
    run(mirror.bring(branch(commit)))
    grow_old(mirror, UNUSED)

    async def go() -> None:
        with lock_of(mirror).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            bringing = asyncio.create_task(mirror.bring(branch(commit)))
            await asyncio.sleep(0.2)
            assert not bringing.done()
            mirror.path.rename(mirror.path.with_name("removed"))
        assert await bringing, "it is fetched once more"

    run(go())
    assert run(mirror.has(commit))


def test_a_command_that_began_in_time_keeps_its_mirror(
    origin: Repository, mirror: SourceMirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = origin.commit("first", {"a": "1"})
    run(mirror.bring(branch(commit)))
    grow_old(mirror, UNUSED)
    found = unused.find_unused(mirror.path.parent)
    assert found == [lock_of(mirror)]
    run(mirror.bring(branch(commit)))
    unused.remove_unused(found)
    assert run(mirror.has(commit))


def test_a_removal_that_is_killed_leaves_nothing_that_is_taken_for_a_mirror(
    origin: Repository, mirror: SourceMirror, tmp_path: Path
) -> None:
    gone = kept(tmp_path, "unused", UNUSED)
    commit = origin.commit("first", {"a": "1"})
    assert bring_in_a_process(origin, mirror, commit, "source.remove") == -9
    assert not gone.path.exists()
    assert list(mirror.path.parent.glob(".*.making"))
    run(mirror.tidy())
    assert not list(mirror.path.parent.glob(".*.making"))


def test_what_is_wrong_is_told_with_what_to_do(
    origin: Repository, mirror: SourceMirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = origin.commit("first", {"a": "1"})
    nowhere = SourceMirror(Address(str(tmp_path / "none.git")), folder=mirror.path.parent)
    with pytest.raises(RefusedError) as caught:
        run(nowhere.bring(branch(commit)))
    assert caught.value.code == "git-remote"
    mirror.path.parent.chmod(0o777)
    with pytest.raises(LightshipError, match="only you can write to"):
        run(mirror.bring(branch(commit)))
    mirror.path.parent.chmod(0o700)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(RefusedError, match="cannot keep the code") as caught:
        run(SourceMirror(Address(str(origin.remote)), folder=blocked / "x").bring(branch(commit)))
    assert "XDG_CACHE_HOME" in caught.value.hint
    monkeypatch.setattr(mirrors, "_FETCH_SECONDS", 0.0)
    with pytest.raises(RefusedError) as caught:
        run(mirror.bring(branch(commit)))
    assert caught.value.code == "git-timeout"
