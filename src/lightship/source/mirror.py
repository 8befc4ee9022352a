"""A mirror of the repository on the controller, for servers that the code is sent to (``source: push``).

It lies in the user's cache, is made when it is needed, and can be removed at any time. The rules are those of the
mirror on a server (``lightship_agent.gitcommand``), and so is the one that counts most: fetches are full and keep their
pack, which appears by one rename, so that a commit that is there has all that belongs to it.

A lock keeps two commands from fetching into it at once. It is a ``flock``, and ends with its holder.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import re
import tempfile
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from pathlib import Path
from threading import Thread
from typing import IO

from lightship.cache import cache_directory, must_be_ours
from lightship.config.repository import Repository
from lightship.errors import RefusedError
from lightship.failpoints import fail_point
from lightship.source.git import Ran, run
from lightship.source.remote import Resolved, helper_settings, not_read, remote_environment, too_slow
from lightship.source.unused import DAY, find_unused, is_older, making, remove, remove_unused
from lightship_agent import gitcommand
from lightship_agent.records import dataclass

__all__ = ["Pack", "SourceMirror"]

_FETCH_SECONDS = 1800.0
_PACK_SECONDS = 1800.0
_LOCAL_SECONDS = 120.0
_LOCK_SECONDS = 1800.0
_TELL_SECONDS = 1.0
_OLD_GIT = 129
#: So long a command waits for what others have left to be removed; the next one goes on with it.
_TIDY_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Pack:
    """A pack in a file without a name: ``size`` bytes that servers can read side by side. ``haves`` it builds upon."""

    commit: str
    haves: tuple[str, ...]
    size: int
    file: IO[bytes]

    def piece(self, start: int, count: int) -> bytes:
        """Bytes of it."""
        return os.pread(self.file.fileno(), count, start)


class SourceMirror:
    """The mirror of one repository. ``tell`` hears, in words, what is waited for."""

    def __init__(
        self, repository: Repository, *, folder: Path | None = None, tell: Callable[[str], None] | None = None
    ) -> None:
        address, _ = repository.access()
        name = hashlib.sha256(address.encode()).hexdigest()[:32]
        self._repository = repository
        self._folder = folder or cache_directory() / "mirrors"
        self.path = self._folder / f"{name}.git"
        self._lock = self._folder / f"{name}.lock"
        self._tell = tell

    # --- bringing a commit here

    async def bring(self, wanted: Resolved) -> bool:
        """Have the commit here, with all that belongs to it; whether anything had to be fetched."""
        await self._use()
        if await self.has(wanted.commit):
            return False
        async with self._locked() as waited:
            await self._create()
            if waited and await self.has(wanted.commit):  # by the one that was waited for
                return False
            self._clean()
            fail_point("source.fetch")
            await self._fetch_commit(wanted)
            fail_point("source.fetched")
            await self._maintain()
        return True

    async def tidy(self) -> None:
        """After the work: remove mirrors, of this or any repository, that no command has used for long."""
        unused = find_unused(self._folder)
        if not unused:
            return
        removing = Thread(target=remove_unused, args=(unused,), daemon=True)
        removing.start()
        await asyncio.to_thread(removing.join, _TIDY_SECONDS)

    async def _use(self) -> None:
        """Say that the mirror is in use, once a day. If somebody is just removing it, wait for that."""
        try:
            if not is_older(self._lock.lstat(), DAY):
                return
        except OSError:
            return  # so there is no mirror either, or its lock says what is wrong
        async with self._locked(shared=True):
            pass

    async def has(self, commit: str) -> bool:
        """Whether the commit is here, and so all that belongs to it."""
        if not (self.path / "HEAD").exists():
            return False
        return (await self._read("cat-file", "-e", f"{commit}^{{commit}}")).status == 0

    async def _fetch_commit(self, wanted: Resolved) -> None:
        """By its name, or else by its id, and where the other side does not give that away, among all branches."""
        commit = wanted.commit
        kind, name = ("tags" if wanted.kind == "tag" else "heads"), wanted.ref
        name = name.removeprefix(f"refs/{kind}/")
        refspecs = [] if wanted.kind == "commit" else [f"+refs/{kind}/{name}:{_ours(kind, gitcommand.flat(name))}"]
        refspecs.append(f"+{commit}:{_ours('commits', commit)}")
        for refspec in refspecs:
            if await self._fetch(refspec) and await self.has(commit):
                return
        await self._fetch(f"+refs/heads/*:{_ours('all', '*')}", prune=True)
        if not await self.has(commit):
            raise RefusedError(
                f"{self._repository} has no commit {commit}",
                hint="push it first; a commit that no branch holds any more cannot be had from every git server",
                code="git-ref-missing",
            )

    async def _fetch(self, refspec: str, *, prune: bool = False) -> bool:
        """False when the other side lacks it, or does not give it away."""
        address, credentials = self._repository.access()
        settings = helper_settings(address) if credentials else ()
        command = gitcommand.fetch_command(self.path, address, [refspec], prune, settings)
        try:
            ran = await run(command, remote_environment(self._repository), timeout=_FETCH_SECONDS)
        except TimeoutError:
            raise too_slow(self._repository, _FETCH_SECONDS) from None
        if ran.status == 0:
            return True
        if re.search(gitcommand.NO_REF, ran.errors):
            return False
        if "No space left on device" in ran.errors:
            raise self._failed(ran, "fetching the code")
        raise not_read(self._repository, ran)

    async def _create(self) -> None:
        """Make the mirror if it is not there; its name appears when it is whole."""
        if (self.path / "HEAD").exists():
            return
        partial = making(self.path)
        await asyncio.to_thread(remove, partial)
        await asyncio.to_thread(remove, self.path)
        ran = await run(gitcommand.init_command(partial), self._environment(), timeout=_LOCAL_SECONDS)
        if ran.status != 0:
            raise self._failed(ran, "making the mirror")
        partial.chmod(0o700)
        fail_point("source.create")
        partial.rename(self.path)

    def _clean(self) -> None:
        for path in gitcommand.leftovers(self.path):
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                path.unlink()

    async def _maintain(self) -> None:
        """Unite the packs when fetches have left many. What goes wrong is tried again after the next one."""
        if not gitcommand.many_packs(self.path):
            return
        with contextlib.suppress(TimeoutError):
            ran = await run(gitcommand.repack_command(self.path), self._environment(), timeout=_FETCH_SECONDS)
            if ran.status == _OLD_GIT:
                await run(gitcommand.local(self.path, "gc", "--quiet"), self._environment(), timeout=_FETCH_SECONDS)

    # --- packs

    async def basis(self, commits: Collection[str]) -> tuple[str, ...]:
        """Of what a server has, what is known here too, without what follows from the rest."""
        if not commits:
            return ()
        asked = "".join(f"{one}\n" for one in commits).encode()
        ran = await self._read("cat-file", "--batch-check=%(objectname) %(objecttype)", data=asked)
        lines = ran.output.decode("ascii", "replace").splitlines()
        known = [line.split()[0] for line in lines if line.endswith(" commit")]
        if len(known) > 1:
            ran = await self._read("merge-base", "--independent", *known)
            known = ran.output.decode("ascii", "replace").split() if ran.status == 0 else known
        return tuple(sorted(known))

    async def pack(self, commit: str, haves: Sequence[str]) -> Pack:
        """All that belongs to the commit and that somebody lacks who has these: a thin pack. Close its file."""
        words = ("pack-objects", "--revs", "--thin", "--stdout", "--delta-base-offset", "--quiet")
        asked = "".join(f"{line}\n" for line in (commit, *(f"^{one}" for one in haves))).encode()
        file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 (whoever gets the pack closes it)
        try:
            fail_point("source.pack")
            async with self._locked(shared=True):
                ran = await self._read(*words, data=asked, into=file.fileno(), timeout=_PACK_SECONDS)
            if ran.status != 0:
                raise self._failed(ran, "packing the code")
            return Pack(commit, tuple(haves), os.fstat(file.fileno()).st_size, file)
        except BaseException:
            file.close()
            raise

    # --- running git

    def _environment(self) -> dict[str, str]:
        return gitcommand.environment(os.environ, remote=False)

    async def _read(
        self, *words: str, data: bytes = b"", into: int | None = None, timeout: float = _LOCAL_SECONDS
    ) -> Ran:
        command = gitcommand.local(self.path, *words)
        try:
            return await run(command, self._environment(), timeout=timeout, data=data, into=into)
        except TimeoutError:
            raise self._failed(Ran(-1, b"", f"git {words[0]} took longer than {timeout:g} s"), words[0]) from None

    def _failed(self, ran: Ran, doing: str) -> RefusedError:
        words = ran.errors.strip()
        last = words.splitlines()[-1] if words else f"git ended with {ran.status}"
        return RefusedError(
            f"{doing} failed: {last[:500]}",
            hint=f"is there space left? {self.path} may be removed at any time: it is made anew",
            code="source-mirror",
            detail={"stderr": words[-2000:]},
        )

    @contextlib.asynccontextmanager
    async def _locked(self, *, shared: bool = False) -> AsyncIterator[bool]:
        """Nobody else fetches into it meanwhile; ``shared``: while packs are made of it, nobody fetches.

        Says whether somebody was waited for.
        """
        self._prepare()
        handle = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            waited = await self._lock_file(handle, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
            os.utime(handle)  # says when the mirror was used
            yield waited
        finally:
            os.close(handle)

    async def _lock_file(self, handle: int, kind: int) -> bool:
        clock = asyncio.get_running_loop().time
        begun, waited, told = clock(), 0.0, False
        while True:
            try:
                fcntl.flock(handle, kind | fcntl.LOCK_NB)
                return waited > 0
            except BlockingIOError:
                waited = max(clock() - begun, 1e-9)
            if waited > _LOCK_SECONDS:
                raise RefusedError(
                    f"another lightship has been fetching {self._repository} for {waited:.0f} s",
                    hint=f"see who: fuser -v {self._lock}",
                    code="source-locked",
                )
            if waited > _TELL_SECONDS and not told and self._tell is not None:
                told = True
                self._tell("waiting for another lightship here, which fetches the same repository")
            await asyncio.sleep(0.05)

    def _prepare(self) -> None:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            must_be_ours(self._folder)
        except OSError as error:
            raise RefusedError(
                f"cannot keep the code in {self._folder}: {error}",
                hint="set XDG_CACHE_HOME to a directory you can write to",
                code="source-mirror",
            ) from error


def _ours(kind: str, name: str) -> str:
    return f"refs/lightship/{kind}/{name}"
