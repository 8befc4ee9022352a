"""Releases: complete, immutable trees at code/releases/<commit>.

A tree holds exactly what the commit holds: bytes as committed (no end-of-line conversion, no keyword, no filter), modes
0644 and 0755 whatever the umask, links as links. There are two ways to make one, with the same result:

- **fresh**: git writes all files. The time follows the size of the repository.
- **moved**: the tree of a release that is to go anyway is renamed, and only what differs is written. The time follows
  the size of the change (git's own two-tree merge reads and writes the whole index: 6 times as long at 50,000 files as
  at 500). Unchanged files keep their byte code.

Byte code never outlives its source. That of every file that differs is removed; and since byte code is valid while
the time (in whole seconds) and the size of the source are the same, every step gives its files a second of its own,
later than all before it in that tree: the module behind an unchanged link cannot look unchanged. When a link itself
differs, a path may suddenly mean another file, and all byte code goes.

Before a tree gets its name it is on the disk. A fresh one by syncfs(2), which waits for whatever else is to be written
on that file system, a database's files or a backup's; a moved one by fsync(2) of what was written alone, as long as
that is not much.

A crash leaves either the old release or none: what is being made is called ``.making-<commit>``, and a release counts
only when both its tree and its file in state/ are there.
"""

# os.* works on descriptors and bytes, and says which system call it is.

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

from lightship_agent import TYPE_CHECKING, failpoints, system
from lightship_agent.errors import AgentFailure, ProtocolError, Refused
from lightship_agent.failpoints import fail_point
from lightship_agent.git import Mirror, ModeChange, Objects
from lightship_agent.names import printable, valid_commit, valid_path
from lightship_agent.paths import CONTAINER_SHARED, ServicePaths
from lightship_agent.records import asdict, dataclass, field, fields, replace

if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "STATES",
    "Made",
    "Release",
    "clean_unfinished",
    "current_commit",
    "discard",
    "flip",
    "load",
    "load_all",
    "make",
    "mark",
    "prunable",
    "recyclable",
    "save",
    "shared_paths",
    "verify_tree",
]

failpoints.register(
    release__forget="a retired release is about to lose its file in state/",
    release__take="a retired release is about to be renamed to .making-",
    release__write="the difference is about to be written",
    release__fresh="git is about to write a whole tree",
    release__link="the links to shared directories are about to be made",
    release__save="the release's file in state/ is about to be written",
    release__rename="the finished tree is about to get its name",
    release__made="the tree has its name",
    release__mark="a release is about to be given another state",
    release__marked="a release has another state",
    release__remove="a release is about to be removed",
    release__removing="a release has lost its file in state/ and its name, and is about to lose its files",
    current__flip="current is about to be renamed",
    current__flipped="current was renamed",
)

STATES = ("prepared", "stable", "failed", "retired")

_MAX_FILE = 256 * 1024
_LINK, _FILE, _PROGRAM, _SUBMODULE = 0o120000, 0o100644, 0o100755, 0o160000
_DIRECTORY_MODE = 0o755
_MAKING = ".making-"
_CACHE = b"__pycache__"
# With so many changes, one syncfs(2) is sooner done than each file by itself.
_MANY_CHANGES = 200
# Names that may mean .git to some file system. git itself decides whether to take them: they are left to a fresh tree.
_ODD = rb"(?is)(?:\.git(?:[. :\\].*)?|git~.*|.*[\\:].*)"


# --- what is written down of a release ------------------------------------------


@dataclass(frozen=True)
class Release:
    """What is written down of a release. ``clock`` is the latest time of a file in its tree, in whole seconds."""

    commit: str
    created: float
    state: str = "prepared"
    why: str = ""
    subject: str = ""
    fingerprint: str = ""
    shared: tuple[str, ...] = ()
    clock: int = 0
    extra: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """As the facts carry it."""
        names = ("commit", "created", "state", "why", "subject", "fingerprint")
        image = (self.extra.get("container") or {}).get("image_id")
        return {**{name: getattr(self, name) for name in names}, "image_id": str(image or "")}


def load(paths: ServicePaths, commit: str) -> Release | None:
    """The release of this commit, if its tree is there and it is written down."""
    if not _is_directory(paths.release(commit)):
        return None
    data = system.read_trusted(paths.release_file(commit), _MAX_FILE)
    if data is None:
        return None
    try:
        raw = json.loads(data)
        raw["shared"] = tuple(raw["shared"])
        # A newer agent may have written more.
        release = Release(**{item.name: raw[item.name] for item in fields(Release) if item.name in raw})
        if release.commit == commit and release.state in STATES:
            return release
    except (ValueError, TypeError, KeyError):
        pass
    return None  # written by something else: as good as absent


def load_all(paths: ServicePaths) -> list[Release]:
    """All releases, newest first."""
    found = (load(paths, commit) for commit in _commits(paths.releases))
    return sorted((release for release in found if release), key=lambda release: release.created, reverse=True)


def save(paths: ServicePaths, release: Release) -> None:
    """Write a release down."""
    if release.state not in STATES:
        raise ValueError(f"unknown state {release.state}")
    system.make_directory(paths.release_files, 0o700, os.geteuid(), os.getegid())
    data = json.dumps(asdict(release), ensure_ascii=True).encode()
    system.atomic_write(paths.release_file(release.commit), data, 0o600)


def mark(paths: ServicePaths, commit: str, state: str, **changes: Any) -> Release:
    """Give a release another state."""
    release = load(paths, commit)
    if release is None:
        raise Refused("no-release", f"there is no release {commit} on this server")
    release = replace(release, state=state, **changes)
    fail_point("release.mark")
    save(paths, release)
    fail_point("release.marked")
    return release


def prunable(releases: Iterable[Release], keep: int, protected: Collection[str], spare: int = 0) -> list[Release]:
    """The releases that may go, oldest first.

    ``keep`` of the newest good ones stay. ``protected`` never go: the caller names the current, the stable and the
    previous release, any in flight, and any that a worker still runs. ``spare`` of those that may go are left (the
    newest): the tree of a spare one is what the next release is made from.
    """
    newest = sorted(releases, key=lambda release: release.created, reverse=True)
    kept = {release.commit for release in [r for r in newest if r.state in ("stable", "retired")][: max(keep, 1)]}
    going = [r for r in reversed(newest) if r.commit not in kept and r.commit not in protected]
    return going[: len(going) - spare] if spare < len(going) else []


def recyclable(releases: Iterable[Release], keep: int, protected: Collection[str]) -> list[str]:
    """The commits whose trees ``make`` may take, the nearest first."""
    return [release.commit for release in reversed(prunable(releases, keep, protected))]


def shared_paths(values: Iterable[object]) -> tuple[str, ...]:
    """The paths that lie in shared/ rather than in the tree, validated and sorted; none may lie in another."""
    found = tuple(sorted({valid_path(value, "shared") for value in values}))
    for path in found:
        for other in found:
            if path.startswith(other + "/"):
                raise ProtocolError("bad-value", f"shared: {printable(path)} lies in {printable(other)}")
    return found


# --- current --------------------------------------------------------------------


def current_commit(paths: ServicePaths) -> str | None:
    """The release that ``current`` names; None before the first one."""
    try:
        target = os.readlink(paths.current)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise AgentFailure("state-damaged", f"{paths.current} is not a link", hint=_relink(paths)) from error
    match = re.fullmatch(r"releases/([0-9a-f]{40})", target)
    if match is None:
        raise AgentFailure("state-damaged", f"{paths.current} points to {printable(target)}", hint=_relink(paths))
    return match[1]


def _relink(paths: ServicePaths) -> str:
    return f"what serves goes on; move it away, and: ln -s releases/COMMIT {paths.current} (of what `status` says runs)"


def flip(paths: ServicePaths, commit: str, guard: Callable[[], None]) -> None:
    """THE FLIP: ``current`` names another release from one instant to the next. ``guard`` may refuse right before."""
    if load(paths, commit) is None:
        raise Refused("no-release", f"there is no complete release {commit} on this server")
    guard()
    fail_point("current.flip")
    system.swap_link(paths.current, f"releases/{commit}")
    fail_point("current.flipped")


# --- making ---------------------------------------------------------------------


@dataclass(frozen=True)
class Made:
    """How a tree came to be: ``there``, ``moved`` or ``fresh``; ``note`` says why it could not be moved."""

    release: Release
    tree: str
    changed: int
    seconds: float
    note: str = ""


class _Unfit(Exception):  # noqa: N818 (no error: it means the other way)
    """This tree cannot be brought forward; a fresh one can be made."""


def make(  # noqa: PLR0913 (all but three by name)
    paths: ServicePaths,
    mirror: Mirror,
    commit: str,
    *,
    guard: Callable[[], None],
    recycle: Sequence[str] = (),
    protected: Collection[str] = (),
    shared: Sequence[str] = (),
    why: str = "",
    subject: str = "",
    fingerprint: str = "",
) -> Made:
    """Make the tree of ``commit``, from the first of ``recycle`` that fits, or fresh.

    ``recycle`` are commits whose releases may go (see ``recyclable``); the best candidate first. ``protected`` must not
    be touched, even if the same commit is asked for. ``guard`` is called before each side effect, and raises when the
    service is no longer ours.
    """
    begun = time.monotonic()
    links = shared_paths(shared)
    there = load(paths, valid_commit(commit))
    if there is not None:
        if there.shared == links:
            return Made(there, "there", 0, time.monotonic() - begun)
        if commit in protected or commit == current_commit(paths):
            raise Refused(
                "shared-changed",
                f"the release {commit} is in use, and was made with other shared paths",
                hint="Deploy another commit with the new shared paths.",
            )
    guard()
    discard(paths, commit)
    making = paths.making(commit)
    system.remove_tree(making)
    # Newer than all others even when the clock was set back: what is kept and what goes is decided by the order.
    newest = max((old.created for old in load_all(paths)), default=0.0)
    release = Release(commit, max(time.time(), newest + 0.001), "prepared", why, subject, fingerprint, links)
    usable = [old for old in recycle if old not in protected and old not in (commit, current_commit(paths))]
    try:
        release, tree, changed, note = _make_tree(paths, mirror, release, usable, guard)
        if tree == "fresh":
            system.sync_tree(making)
        _finish(paths, making, release, guard)
    except BaseException:
        with contextlib.suppress(OSError, AgentFailure):
            guard()
            system.remove_tree(making)
        raise
    return Made(release, tree, changed, time.monotonic() - begun, note)


def _make_tree(
    paths: ServicePaths, mirror: Mirror, release: Release, recycle: Sequence[str], guard: Callable[[], None]
) -> tuple[Release, str, int, str]:
    note = ""
    for old in recycle:
        try:
            moved, changed = _move(paths, mirror, old, release, guard)
            return moved, "moved", changed, ""
        except _Unfit as reason:
            note = str(reason)
            system.remove_tree(paths.making(release.commit))
    release, changed = _make_fresh(paths, mirror, release, guard)
    return release, "fresh", changed, note


def _finish(paths: ServicePaths, making: Path, release: Release, guard: Callable[[], None]) -> None:
    # The data is on the disk already, now the name: after a power cut it must not stand for empty files.
    guard()
    fail_point("release.save")
    save(paths, release)
    fail_point("release.rename")
    os.rename(making, paths.release(release.commit))
    system.sync_directory(paths.releases)
    fail_point("release.made")


def discard(paths: ServicePaths, commit: str) -> None:
    """Remove a release: first what is written down of it, then its name, then its files."""
    if commit == current_commit(paths):
        raise AgentFailure("in-use", f"the release {commit} is the current one")
    tree = paths.release(commit)
    if not _is_directory(tree):
        _forget(paths, commit)
        return
    fail_point("release.remove")
    _forget(paths, commit)
    going = paths.making(commit)
    system.remove_tree(going)
    os.rename(tree, going)
    fail_point("release.removing")
    system.remove_tree(going)


def clean_unfinished(paths: ServicePaths) -> list[str]:
    """Remove what a killed agent left half done; returns the names. A tree that ``current`` names always stays."""
    removed = []
    current = current_commit(paths)
    for directory in (paths.code, paths.releases, paths.state, paths.release_files, paths.instances):
        system.clean_temporaries(directory)
    for name in _names(paths.state):
        if name.startswith(".index-"):
            os.unlink(paths.state / name)
        elif name.startswith("build-") and _is_directory(paths.state / name):
            system.remove_tree(paths.state / name)
        elif name.startswith("build-"):
            os.unlink(paths.state / name)
    for name in _names(paths.releases):
        if name.startswith(_MAKING):
            system.remove_tree(paths.releases / name)
            removed.append(name)
    for commit in _commits(paths.releases):
        if commit != current and load(paths, commit) is None:
            discard(paths, commit)
            removed.append(commit)
    trees = set(_commits(paths.releases))
    for name in _names(paths.release_files):
        if name.endswith(".json") and name[:-5] not in trees:
            os.unlink(paths.release_files / name)
    return removed


def _forget(paths: ServicePaths, commit: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(paths.release_file(commit))


def _names(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []


def _commits(directory: Path) -> list[str]:
    return [name for name in _names(directory) if re.fullmatch(r"[0-9a-f]{40}", name)]


def _is_directory(path: Path) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False


# --- a fresh tree ---------------------------------------------------------------


def _make_fresh(
    paths: ServicePaths, mirror: Mirror, release: Release, guard: Callable[[], None]
) -> tuple[Release, int]:
    entries = mirror.entries(release.commit)
    for path, (mode, _) in entries.items():
        _refuse_submodule(mode, path)
    making = paths.making(release.commit)
    index = paths.state / f".index-{release.commit}"
    guard()
    system.make_directory(making, 0o755, os.geteuid(), os.getegid())
    fail_point("release.fresh")
    try:
        # An index of its own, thrown away: the mirror has none.
        words = (f"--work-tree={making}", "read-tree", "-m", "-u", release.commit)
        mirror.read(*words, env={"GIT_INDEX_FILE": str(index)}, timeout=600)
    finally:
        for left in (index, index.with_name(index.name + ".lock")):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(left)
    fail_point("release.link")
    for name in release.shared:
        _link_shared(making, name)
    return replace(release, clock=int(time.time())), len(entries)


def _refuse_submodule(mode: int, path: bytes) -> None:
    if mode == _SUBMODULE:
        raise Refused(
            "submodule",
            f"{printable(os.fsdecode(path))} is a submodule, which a release cannot hold",
            hint="Put its code into the repository (git subtree), or install it as a package in the image.",
            detail={"path": os.fsdecode(path).encode("utf-8", "replace").decode()},
        )


def _link_shared(tree: Path, path: str) -> None:
    """Put a link to the shared directory in the place of ``path``."""
    parent = tree
    for part in path.split("/")[:-1]:
        parent = parent / part
        if os.path.lexists(parent) and not _is_directory(parent):
            raise _shared_conflict(path)
        system.make_directory(parent, 0o755, os.geteuid(), os.getegid())
    place = tree / path
    if _is_directory(place):
        system.remove_tree(place)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(place)
    os.symlink(f"{CONTAINER_SHARED}/{path}", place)


def _shared_conflict(path: str) -> Refused:
    return Refused(
        "shared-conflict",
        f"shared: {printable(path)} cannot be linked: the commit has a file where its parent directory should be",
    )


# --- a tree brought forward -----------------------------------------------------


def _move(
    paths: ServicePaths, mirror: Mirror, old: str, release: Release, guard: Callable[[], None]
) -> tuple[Release, int]:
    source = load(paths, old)
    if source is None or source.shared != release.shared:
        raise _Unfit(f"{old} has other shared paths" if source else f"{old} is not there")
    changes = _changes(mirror, old, release)
    with mirror.objects() as objects:
        tracked = _tracked_caches(mirror, objects, release.commit, changes)
        guard()
        fail_point("release.forget")
        _forget(paths, old)
        fail_point("release.take")
        making = paths.making(release.commit)
        os.rename(paths.release(old), making)
        # Later than all files that are in the tree, even if the clock was set back.
        clock = max(int(time.time()), source.clock + 1)
        fail_point("release.write")
        try:
            _Forward(making, tracked, clock).apply(objects, changes)
        except (OSError, AgentFailure) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise Refused("disk-full", f"no space is left for the release: {error.strerror}") from error
            if isinstance(error, AgentFailure) and error.code == "fail-point":
                raise
            raise _Unfit(f"the tree of {old} is not as it was made: {error}") from error
    return replace(release, clock=clock), len(changes)


def _changes(mirror: Mirror, old: str, release: Release) -> list[ModeChange]:
    """What differs outside of the shared paths."""
    try:
        differences = mirror.differences(old, release.commit)
    except Refused as error:
        raise _Unfit(f"git cannot compare with {old}: {error.message}") from error
    changes = _without_shared(differences, release.shared)
    for change in changes:
        _refuse_submodule(change.new_mode, change.path)
        _check(change)
    return changes


def _check(change: ModeChange) -> None:
    parts = change.path.split(b"/")
    if any(part in (b"", b".", b"..") or re.fullmatch(_ODD, part) for part in parts):
        raise _Unfit("a name is left to git's own rules")
    if change.new_mode == _LINK and parts[-1].lower().startswith(b".git"):
        raise _Unfit("a link is left to git's own rules")


def _without_shared(changes: Sequence[ModeChange], shared: Sequence[str]) -> list[ModeChange]:
    """The changes outside of the shared paths; refused when one makes a file of a shared path's parent."""
    found = list(changes)
    for path in shared:
        name = os.fsencode(path)
        parents = {name[:i] for i, byte in enumerate(name) if byte == ord("/")}
        if any(change.new_mode and change.path in parents for change in found):
            raise _shared_conflict(path)
        found = [c for c in found if c.path != name and not c.path.startswith(name + b"/")]
    return found


def _tracked_caches(mirror: Mirror, objects: Objects, commit: str, changes: Sequence[ModeChange]) -> frozenset[bytes]:
    """The byte code that the commit itself holds: it is the commit's, not ours to remove."""
    # A directory that goes empty takes its parents along, and their caches.
    directories = sorted({directory for change in changes for directory in _parents(change.path)})
    try:
        if any(_LINK in (change.old_mode, change.new_mode) for change in changes) or len(directories) > 500:  # noqa: PLR2004
            found: Iterable[bytes] = mirror.entries(commit)
        else:
            # Hardly any commit holds byte code, and the process that says so is asked for the files' content, too.
            holding = list(objects.holding(commit, directories, _CACHE))
            found = mirror.entries(commit, *(_join(one, _CACHE) for one in holding)) if holding else ()
    except (OSError, AgentFailure) as error:
        raise _Unfit(f"git cannot say what byte code the commit holds: {error}") from error
    return frozenset(path for path in found if _CACHE in path.split(b"/")[:-1])


def _parents(path: bytes) -> Iterator[bytes]:
    while path:
        path = path.rpartition(b"/")[0]
        yield path


def _join(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name


class _Forward:
    """Writes a difference into a tree. Every directory is opened from the tree's top on without following a link."""

    def __init__(self, tree: Path, tracked: Collection[bytes], clock: int) -> None:
        self._tree = tree
        self._tracked = tracked
        self._clock = clock
        self._touched: set[bytes] = set()
        # What has to reach the disk: files by their directory, and directories in which a name came or went.
        self._written: list[bytes] = []
        self._changed: set[bytes] = set()

    def apply(self, objects: Objects, changes: Sequence[ModeChange]) -> None:
        """Removals first: a file may make room for a directory, or a directory for a file."""
        for change in changes:
            if change.old_mode:
                self._remove(change.path)
            self._remove_byte_code(change.path)
        for directory in sorted(self._touched, key=len, reverse=True):
            self._prune(directory)
        written = [change for change in changes if change.new_mode]
        for change, content in zip(written, objects.read([change.oid for change in written])):  # noqa: B905 (3.10)
            self._write(change, content)
        links = any(_LINK in (change.old_mode, change.new_mode) for change in changes)
        if links:
            self._remove_all_byte_code()
        if links or len(changes) > _MANY_CHANGES:
            system.sync_tree(self._tree)
        else:
            self._sync()

    def _sync(self) -> None:
        """Have what was written on the disk, and no more than that: others' writes are not waited for."""
        for path in self._written:
            directory, _, name = path.rpartition(b"/")
            with self._directory(directory) as fd:
                file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
                try:
                    os.fsync(file)
                finally:
                    os.close(file)
        for directory in self._changed:
            with self._directory_if_there(directory) as there:
                if there is not None:
                    os.fsync(there)

    @contextlib.contextmanager
    def _directory(self, path: bytes, make: bool = False) -> Iterator[int]:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(self._tree, flags)
        try:
            above = b""
            for part in path.split(b"/") if path else ():
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, 0o755, dir_fd=fd)
                        os.chmod(part, 0o755, dir_fd=fd)  # noqa: S103 (code is no secret; whatever the umask)
                        self._changed.add(above)
                deeper = os.open(part, flags, dir_fd=fd)
                os.close(fd)
                fd, above = deeper, _join(above, part)
            yield fd
        finally:
            os.close(fd)

    def _remove(self, path: bytes) -> None:
        directory, _, name = path.rpartition(b"/")
        with self._directory(directory) as fd:
            os.unlink(name, dir_fd=fd)
        self._touched.add(directory)
        self._changed.add(directory)

    def _remove_byte_code(self, path: bytes) -> None:
        directory, _, name = path.rpartition(b"/")
        if not name.endswith(b".py"):
            return
        cache = _join(directory, _CACHE)
        stem = os.fsdecode(name[:-3]) + "."
        try:
            with self._directory(cache) as fd:
                for found in os.listdir(fd):
                    mine = found.startswith(stem) and found.endswith(".pyc")
                    if mine and _join(cache, os.fsencode(found)) not in self._tracked:
                        os.unlink(found, dir_fd=fd)
        except (FileNotFoundError, NotADirectoryError):
            pass

    def _prune(self, directory: bytes) -> None:
        """Remove a directory in which nothing of the commit is left, and then its parents.

        Byte code alone would keep it, and Python would take it for a namespace package.
        """
        while directory:
            with self._directory_if_there(directory) as fd:
                if fd is None:
                    directory = directory.rpartition(b"/")[0]
                    continue
                left = os.listdir(fd)
                if left not in ([], [os.fsdecode(_CACHE)]):
                    return
                cache = _join(directory, _CACHE)
                if left and any(path.startswith(cache + b"/") for path in self._tracked):
                    return
            if left:
                system.remove_tree(self._tree / os.fsdecode(cache))
            parent, _, name = directory.rpartition(b"/")
            with self._directory(parent) as fd:
                os.rmdir(name, dir_fd=fd)
            self._changed.add(parent)
            directory = parent

    @contextlib.contextmanager
    def _directory_if_there(self, path: bytes) -> Iterator[int | None]:
        with contextlib.ExitStack() as stack:
            try:
                fd: int | None = stack.enter_context(self._directory(path))
            except FileNotFoundError:
                fd = None
            yield fd

    def _write(self, change: ModeChange, content: Iterable[bytes]) -> None:
        directory, _, name = change.path.rpartition(b"/")
        self._changed.add(directory)
        with self._directory(directory, make=True) as fd:
            if change.new_mode == _LINK:
                os.symlink(b"".join(content), name, dir_fd=fd)
                return
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            file = os.open(name, flags, 0o600, dir_fd=fd)
            try:
                for piece in content:
                    left = memoryview(piece)
                    while left:
                        left = left[os.write(file, left) :]
                os.fchmod(file, 0o755 if change.new_mode == _PROGRAM else 0o644)
                os.utime(file, (self._clock, self._clock))
                self._written.append(change.path)
            finally:
                os.close(file)

    def _remove_all_byte_code(self) -> None:
        for root, directories, _, fd in os.fwalk(os.fsencode(self._tree), follow_symlinks=False):
            if _CACHE not in directories:
                continue
            directories.remove(_CACHE)
            relative = os.path.relpath(root, os.fsencode(self._tree))
            cache = _join(b"" if relative == b"." else relative, _CACHE)
            if not stat.S_ISDIR(os.lstat(_CACHE, dir_fd=fd).st_mode):
                continue
            if any(path.startswith(cache + b"/") for path in self._tracked):
                with self._directory(cache) as inside:
                    for name in os.listdir(inside):
                        if name.endswith(".pyc") and _join(cache, os.fsencode(name)) not in self._tracked:
                            os.unlink(name, dir_fd=inside)
            else:
                system.remove_tree(self._tree / os.fsdecode(cache))


# --- holding a tree against its commit ------------------------------------------


def verify_tree(paths: ServicePaths, mirror: Mirror, commit: str, tree: Path | None = None) -> list[str]:
    """How a tree differs from its commit, as lines; none when it is the commit's, byte for byte.

    Byte code that the commit does not hold may be there. Reads every file: for checks, not for deploys.
    """
    release = load(paths, commit)
    top = os.fsencode(tree or paths.release(commit))
    shared = tuple(os.fsencode(path) for path in (release.shared if release else ()))
    wanted = {
        path: entry
        for path, entry in mirror.entries(commit).items()
        if not any(path == s or path.startswith(s + b"/") for s in shared)
    }
    found = dict(_walk(top, wanted))
    for path in shared:
        if found.pop(path, None) != (_LINK, os.fsencode(CONTAINER_SHARED) + b"/" + path):
            found[path] = (0, b"not linked")
    problems = [f"not in the commit: {path!a}" for path in found.keys() - wanted.keys()]
    problems += [f"missing: {path!a}" for path in wanted.keys() - found.keys()]
    both = sorted(wanted.keys() & found.keys())
    with mirror.objects() as objects:
        for path, content in zip(both, objects.read([wanted[path][1] for path in both])):  # noqa: B905 (3.10)
            if found[path] != (wanted[path][0], b"".join(content)):
                problems.append(f"differs: {path!a}")
    return problems


def _walk(top: bytes, wanted: Collection[bytes]) -> Iterator[tuple[bytes, tuple[int, bytes]]]:
    for root, inside, files in os.walk(top):
        base = b"" if root == top else os.path.relpath(root, top)
        for name in [*files, *inside]:
            path, full = _join(base, name), os.path.join(root, name)
            status = os.lstat(full)
            if stat.S_ISLNK(status.st_mode):
                yield path, (_LINK, os.readlink(full))
            elif stat.S_ISDIR(status.st_mode):
                if stat.S_IMODE(status.st_mode) != _DIRECTORY_MODE or (name != _CACHE and not os.listdir(full)):
                    yield path, (0, b"a directory that should not be there, or has the wrong mode")
            elif path in wanted or _CACHE not in path.split(b"/"):
                mode = stat.S_IMODE(status.st_mode)
                with open(full, "rb") as file:
                    content = file.read()
                yield path, ({0o644: _FILE, 0o755: _PROGRAM}.get(mode, 0), content)
