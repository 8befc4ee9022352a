"""The bare mirror of the service's repository.

Pure functions build git's arguments (``gitcommand``); ``Mirror`` runs them. Nothing here ever has a work tree that
somebody else can write, and what comes from outside reaches an argument only past ``names`` and after ``--``.

Fetches are always full: a killed shallow fetch leaves ``shallow.lock`` behind, which blocks the next one. Every fetch
keeps its pack (``fetch.unpackLimit=1``): a pack appears by one rename, complete, so that a commit that is there has all
that belongs to it, even after a kill. Loose objects would come one by one, the commit before its trees. A pack that the
controller sends is proven outside the mirror first (``receive``).
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from lightship_agent import TYPE_CHECKING, failpoints, system
from lightship_agent.credentials import access
from lightship_agent.errors import AgentFailure, Refused
from lightship_agent.failpoints import fail_point
from lightship_agent.gitcommand import (
    LOCKED,
    NO_REF,
    environment,
    fetch_command,
    flat,
    init_command,
    leftovers,
    local,
    ls_remote_command,
    many_packs,
    refs_of,
    repack_command,
)
from lightship_agent.names import redact_text, redact_url, valid_branch, valid_commit, valid_url
from lightship_agent.paths import ServicePaths
from lightship_agent.records import dataclass
from lightship_agent.system import Completed, Run

if TYPE_CHECKING:
    from typing import IO, Any

__all__ = [
    "ATTRIBUTES",
    "INCOMING",
    "Change",
    "Commit",
    "Mirror",
    "ModeChange",
    "Objects",
    "glob_match",
    "infra_id",
]

failpoints.register(
    mirror__create="the mirror is made in a temporary place and about to get its name",
    mirror__clean="what killed git processes left is about to be removed",
    mirror__maintain="the mirror's packs are about to be united",
    mirror__attributes="the mirror's rules for files are about to be written",
    fetch__start="a fetch is about to run",
    fetch__done="a fetch ended well",
)

_USAGE = 129  # how git ends that was given an option which it does not know

INCOMING = "objects/incoming"
"""Where in the mirror a pack lies that was sent, until it is proven."""

ATTRIBUTES = b"* !text !eol !crlf !ident !filter !working-tree-encoding\n"
"""The mirror's info/attributes, which outrank every .gitattributes: a tree holds each file byte for byte as it was
committed, and no filter (a filter is a program) is ever run."""

_BIG = 512 * 1024 * 1024
_MESSAGE = 500
_PIPE = 20_000
"""Bytes that a pipe takes before the other side reads."""
_USUAL_MODE = 0o100644


def glob_match(pattern: str) -> re.Pattern[str]:
    """The rule of ``infra:`` patterns.

    ``*`` and ``?`` do not cross a slash, ``[...]`` is a set, ``**`` spans directories. A pattern without a slash
    matches a file of that name in every directory; one with a slash counts from the top. One that matches a directory
    (or ends in a slash) matches all that is in it.
    """
    text = pattern.rstrip("/")
    anchored = "/" in text
    text = text.lstrip("/")
    rule = "" if anchored else "(?:.*/)?"
    index = 0
    while index < len(text):
        for token, part in (("/**/", "/(?:.*/)?"), ("**/", "(?:.*/)?"), ("**", ".*"), ("*", "[^/]*"), ("?", "[^/]")):
            if text.startswith(token, index):
                rule += part
                index += len(token)
                break
        else:
            piece = re.match(r"\[(!?)(\]?[^\]/]*)\]", text[index:])
            if piece and piece[2]:
                inside = piece[2].replace("\\", r"\\").replace("[", r"\[").replace("]", r"\]").replace("^", r"\^")
                rule += f"[{'^/' if piece[1] else ''}{inside.replace('&&', '&').replace('~~', '~').replace('||', '|')}]"
                index += piece.end()
            else:
                rule += re.escape(text[index])
                index += 1
    try:
        return re.compile(f"{rule}(?:/.*)?", re.DOTALL)
    except re.error:  # a set such as [z-a]
        return re.compile(("" if anchored else "(?:.*/)?") + re.escape(text), re.DOTALL)


# --- answers --------------------------------------------------------------------


@dataclass(frozen=True)
class Commit:
    """A commit as it is shown."""

    commit: str
    subject: str
    author: str = ""
    time: int = 0


@dataclass(frozen=True)
class Range:
    """The commits that one has and the other has not, the newest first; ``ahead``: it was built upon the other."""

    commits: Sequence[Commit]
    count: int
    ahead: bool


@dataclass(frozen=True)
class Change:
    """One file that differs between two commits; ``status`` is A, D, M or T."""

    status: str
    path: str


def infra_id(mode: int, oid: str) -> str:
    """What a file is to an image: its blob and, unless that is the usual one, its mode. A build copies both."""
    return oid if mode == _USUAL_MODE else f"{oid} {mode:o}"


@dataclass(frozen=True)
class ModeChange:
    """One entry that differs between two trees, as the difference writer needs it. A mode of 0 means: not there."""

    old_mode: int
    new_mode: int
    oid: str
    path: bytes

    @property
    def status(self) -> str:
        """A, D, M or T, as git says it: another kind of file is T."""
        if not self.old_mode or not self.new_mode:
            return "D" if self.old_mode else "A"
        return "M" if stat.S_IFMT(self.old_mode) == stat.S_IFMT(self.new_mode) else "T"


class Objects:
    """``git cat-file --batch``: many objects from one process, which ``start`` starts when the first is asked for."""

    def __init__(self, start: Callable[[], tuple[IO[bytes], IO[bytes]]]) -> None:
        self._start = start
        self._streams: tuple[IO[bytes], IO[bytes]] | None = None

    def _asked(self, questions: Sequence[bytes]) -> IO[bytes]:
        """Ask, and return what the answers come from."""
        if self._streams is None:
            self._streams = self._start()
        ask, answer = self._streams
        ask.write(b"".join(question + b"\n" for question in questions))
        return answer

    def read(self, oids: Sequence[str]) -> Iterator[Iterator[bytes]]:
        """For each id of a blob in turn, its content in pieces. Each must be read to its end before the next."""
        for batch in _batches([oid.encode() for oid in oids]):
            answer = self._asked(batch)
            for oid in batch:
                header = answer.readline(200).split()
                if len(header) != 3 or header[1] != b"blob":  # noqa: PLR2004 (id, kind, size)
                    raise AgentFailure("git-damaged", f"the mirror lacks the object {oid.decode()}")
                yield _content(answer, int(header[2]))

    def holding(self, commit: str, directories: Iterable[bytes], name: bytes) -> Iterator[bytes]:
        """Those of a commit's directories (the top one is empty) that may hold an entry of this name.

        None that does is left out. One that is not there, or cannot be asked for in a line, may: ``Mirror.entries``
        knows. The directory is asked for and not the entry, which without its object would seem not to be there.
        """
        asked = {valid_commit(commit).encode() + b":" + directory: directory for directory in directories}
        plain = [question for question in asked if len(question) < _PIPE and not re.search(rb"[\r\n]", question)]
        yield from (asked[question] for question in asked.keys() - set(plain))
        for batch in _batches(plain):
            answer = self._asked(batch)
            for question in batch:
                header = answer.readline(len(question) + 200)
                if header == question + b" missing\n":
                    yield asked[question]
                    continue
                found = re.fullmatch(rb"[0-9a-f]{40} ([a-z]+) ([0-9]+)\n", header)
                if found is None:
                    raise AgentFailure("git-damaged", "the mirror cannot say what a directory holds")
                # In a tree an entry is its mode, a space, its name, NUL and its id, which may hold any bytes.
                if _holds(_content(answer, int(found[2])), b" " + name + b"\0") and found[1] == b"tree":
                    yield asked[question]


def _batches(questions: Sequence[bytes]) -> Iterator[list[bytes]]:
    """So few that they all fit in the pipe before any answer is read: neither side can wait for the other."""
    batch: list[bytes] = []
    size = 0
    for question in questions:
        if batch and size + len(question) >= _PIPE:
            yield batch
            batch, size = [], 0
        batch.append(question)
        size += len(question) + 1
    if batch:
        yield batch


def _content(answer: IO[bytes], size: int) -> Iterator[bytes]:
    while size:
        piece = answer.read(min(size, 1 << 20))
        if not piece:
            raise AgentFailure("git-failed", "git cat-file ended early")
        size -= len(piece)
        yield piece
    answer.read(1)


def _holds(content: Iterable[bytes], sign: bytes) -> bool:
    """Whether the sign stands in the content, of which all is read."""
    found, before = False, b""
    for piece in content:
        found = found or sign in before + piece
        before = (before + piece)[1 - len(sign) :]
    return found


_CAUSES = (
    (
        "git-auth",
        r"dubious ownership",
        "The repository belongs to another user: as root, git config --global --add safe.directory PATH.",
    ),
    (
        "git-host-key",
        r"Host key verification failed|REMOTE HOST IDENTIFICATION HAS CHANGED",
        "The git host's key is not known to root on this server: check its fingerprint, then add it to known_hosts.",
    ),
    (
        "git-auth",
        r"Authentication failed|Permission denied|could not read (Username|Password)|terminal prompts disabled|"
        r"HTTP 40[13]|access denied|Repository not found|repository '.*' not found|Authorization|"
        # Not "error: 403" alone: a transfer that was cut may say "error: 403 bytes of body are still expected".
        r"returned error: 40[13]",
        "Give this server a deploy key or a credential helper that may read the repository.",
    ),
    (
        "git-unreachable",
        r"Could not resolve host|Connection (refused|timed out|reset|closed)|unable to connect|No route to host|"
        r"Network is unreachable|does not appear to be a git repository|No such file or directory|Operation too slow|"
        r"unable to access|Failed to connect|hung up|Timeout, server|Broken pipe|does not exist|"
        # A connection that ended too soon has a wording for each place it can end at.
        r"early EOF|bad pack header|unexpected (disconnect|EOF)|transfer closed|RPC failed|expected flush|"
        r"expected 'packfile'|TLS connection",
        "Check the address, and that this server reaches it.",
    ),
)
_COMMIT = rb"[0-9a-f]{40}\n"


def _last_line(result: Completed) -> str:
    lines = [line for line in result.err.splitlines() if line.strip()]
    # ssh and git end with lines that only say to try again; the first fatal line holds the cause.
    fatal = [line for line in lines if line.startswith(("fatal:", "error:", "remote:", "ssh:"))]
    return redact_text((fatal or lines or [""])[-1])[:_MESSAGE]


def _failure(result: Completed, url: str, doing: str) -> Refused:
    shown = redact_url(url) if url else ""
    detail = {"stderr": _last_line(result), "status": result.status, "repository": shown}
    where = f" {shown}" if shown else ""
    if result.timed_out:
        return Refused("git-timeout", f"{doing}{where} took longer than {result.seconds:.0f} s", detail=detail)
    text = result.err[-20_000:]
    if "No space left on device" in text:
        hint = "free some space on the server (`df -h`, `df -i`), and try again"
        return Refused("no-space", f"{doing}{where} failed: {_last_line(result)}", hint=hint, detail=detail)
    for code, pattern, hint in _CAUSES if url else ():
        if re.search(pattern, text, re.IGNORECASE):
            return Refused(code, f"{doing}{where} failed: {_last_line(result)}", hint=hint, detail=detail)
    return Refused("git-failed", f"{doing}{where} failed: {_last_line(result)}", detail=detail)


# --- the mirror -----------------------------------------------------------------


class Mirror:
    """The bare mirror of one service. Whoever changes it holds the service's lock."""

    def __init__(
        self,
        paths: ServicePaths,
        run: Run = system.run,
        *,
        base_env: Mapping[str, str] | None = None,
        timeout: float = 600.0,
    ) -> None:
        self._repo = paths.repo
        self._run = run
        self._timeout = timeout
        # What was asked last; it is asked again on the way to a release, and each question is a process.
        self._commits: dict[str, Commit] = {}
        self._compared: tuple[str, str, Sequence[ModeChange]] | None = None
        self._brought: set[str] = set()
        base = os.environ if base_env is None else base_env
        self._local_env = environment(base, remote=False)
        self._remote_env = environment(base, remote=True)

    # --- reading

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self._repo

    def command(self, *words: str) -> list[str]:
        """The arguments of a git command that reads the mirror."""
        return local(self._repo, *words)

    def read(
        self, *words: str, env: Mapping[str, str] | None = None, timeout: float = 120.0, **options: Any
    ) -> Completed:
        """Run a git command that reads the mirror; refused when it fails."""
        result = self.attempt(*words, env=env, timeout=timeout, **options)
        if not result.ok or result.truncated:
            raise _failure(result, "", f"git {words[0]}")
        return result

    def attempt(
        self, *words: str, env: Mapping[str, str] | None = None, timeout: float = 120.0, **options: Any
    ) -> Completed:
        """The same, for commands that answer by their status. ``options`` are those of ``system.run``."""
        settings = {"env": {**self._local_env, **(env or {})}, "timeout": timeout, "max_output": _BIG, **options}
        return self._run(self.command(*words), **settings)

    @contextlib.contextmanager
    def objects(self) -> Iterator[Objects]:
        """One process that reads many objects. Without a question there is none."""
        with contextlib.ExitStack() as stack:

            def start() -> tuple[IO[bytes], IO[bytes]]:
                process = stack.enter_context(system.pipe_to(self.command("cat-file", "--batch"), self._local_env))
                assert process.stdin is not None and process.stdout is not None  # noqa: S101 (for the type checker)
                answer = os.fdopen(os.dup(process.stdout.fileno()), "rb", 1 << 16)
                return process.stdin, stack.enter_context(answer)

            yield Objects(start)

    def has_commit(self, commit: str) -> bool:
        """The commit is there, and so is all that belongs to it."""
        if not (self._repo / "HEAD").exists():
            return False
        if commit in self._brought:
            return True
        return self.attempt("cat-file", "-e", f"{valid_commit(commit)}^{{commit}}").ok

    def have_commits(self, commits: Sequence[str]) -> set[str]:
        """Those of the commits that are there. A mirror that cannot say so has none."""
        if not (self._repo / "HEAD").exists():
            return set()
        asked = "".join(f"{valid_commit(one)}^{{commit}}\n" for one in commits).encode()
        lines = self.attempt("cat-file", "--batch-check=%(objecttype)", input=asked).out.splitlines()
        return {one for one, line in zip(commits, lines) if line == "commit"}  # noqa: B905 (3.10)

    def brought(self, commit: str) -> None:
        """This process has brought the commit here, and seen that it is whole: that need not be asked again."""
        self._brought.add(commit)

    def commit_info(self, commit: str) -> Commit:
        """Who wrote a commit, when, and its subject. The strings are the author's: escape them where they are shown."""
        if commit in self._commits:
            return self._commits[commit]
        found = [one for _, one in self._log(["--max-count=1", "--no-walk", valid_commit(commit)])]
        if not found:
            raise Refused("git-ref-missing", f"the commit {commit} is not in the mirror")
        return found[0]

    def log(self, a: str, b: str, limit: int = 50) -> Range:
        """The commits that ``b`` has and ``a`` has not, at most ``limit`` of them, and how many there are."""
        listed = self._log([f"--max-count={int(limit)}", "--boundary", f"{valid_commit(a)}..{valid_commit(b)}"])
        commits = [one for mark, one in listed if mark != "-"]
        if len(commits) < limit:
            # Built upon ``a``, ``b`` has commits whose parent is ``a``, and just then it is where the list ends.
            return Range(commits, len(commits), any(one.commit == a for mark, one in listed if mark == "-"))
        return Range(commits, self._count(a, b), self.is_ancestor(a, b))

    def _count(self, a: str, b: str) -> int:
        return int(self.read("rev-list", "--count", f"{valid_commit(a)}..{valid_commit(b)}").out)

    def _log(self, words: Sequence[str]) -> list[tuple[str, Commit]]:
        # Fields end in NUL, which no commit message can hold.
        options = ("--no-show-signature", "--no-color", "--no-notes", "--no-mailmap", "--encoding=UTF-8")
        result = self.read("log", "-z", "--format=tformat:%m%x00%H%x00%s%x00%an%x00%at", *options, *words, "--")
        fields = result.out.split("\0")
        found = []
        for i in range(0, len(fields) - 4, 5):
            mark, commit, subject, author, when = fields[i : i + 5]
            found.append((mark, Commit(commit, subject[:_MESSAGE], author[:_MESSAGE], int(when or 0))))
        self._commits = {one.commit: one for _, one in found}
        return found

    def is_ancestor(self, a: str, b: str) -> bool:
        """``b`` is ``a`` or was built upon it."""
        result = self.attempt("merge-base", "--is-ancestor", valid_commit(a), valid_commit(b))
        if result.status not in (0, 1):
            raise _failure(result, "", "git merge-base")
        return result.ok

    def changed(self, a: str, b: str) -> list[Change]:
        """The files that differ. Bytes of a path that are not UTF-8 come as surrogate escapes."""
        return [Change(one.status, os.fsdecode(one.path)) for one in self.differences(a, b)]

    def differences(self, a: str, b: str) -> Sequence[ModeChange]:
        """The same with modes and ids, for the tree to be brought forward."""
        if self._compared is None or self._compared[:2] != (a, b):
            self._compared = (a, b, self._differences(a, b))
        return self._compared[2]

    def _differences(self, a: str, b: str) -> list[ModeChange]:
        words = ("diff-tree", "-r", "-z", "--raw", "--no-abbrev", "--no-renames", "--ignore-submodules=none")
        fields = self.read(*words, valid_commit(a), valid_commit(b), "--").stdout.split(b"\0")
        found = []
        for i in range(0, len(fields) - 1, 2):
            old, new, _, oid, _ = fields[i].decode().lstrip(":").split(" ")
            found.append(ModeChange(int(old, 8), int(new, 8), oid, fields[i + 1]))
        return found

    def entries(self, commit: str, *directories: bytes) -> dict[bytes, tuple[int, str]]:
        """Every file of a commit, or only those in these directories: path -> (mode, id)."""
        scope = [os.fsdecode(directory) + "/" for directory in directories]
        result = self.read("ls-tree", "-r", "-z", "--full-tree", valid_commit(commit), "--", *scope)
        found = {}
        for line in result.stdout.split(b"\0"):
            if line:
                head, path = line.split(b"\t", 1)
                mode, _, oid = head.decode().split(" ")
                found[path] = (int(mode, 8), oid)
        return found

    def infra_files(self, commit: str, globs: Sequence[str]) -> dict[str, str]:
        """The files that match one of the patterns (see ``glob_match``): path -> ``infra_id``."""
        rules = [glob_match(pattern) for pattern in globs]
        entries = ((os.fsdecode(path), entry) for path, entry in self.entries(commit).items())
        return {name: infra_id(*entry) for name, entry in entries if any(rule.fullmatch(name) for rule in rules)}

    # --- changing

    def create(self) -> None:
        """Make the mirror if it is not there; its name appears when it is whole."""
        repo = self._repo
        if not (repo / "HEAD").exists():
            temporary = repo.with_name(".repo.git.making")
            system.remove_tree(temporary)
            result = self._run(init_command(temporary), env=self._local_env, timeout=60)
            if not result.ok:
                raise _failure(result, "", "git init")
            temporary.chmod(0o700)
            fail_point("mirror.create")
            temporary.rename(repo)
        attributes = repo / "info" / "attributes"
        if system.read_trusted(attributes, 4096) != ATTRIBUTES:
            system.make_directory(repo / "info", 0o755, os.geteuid(), os.getegid())
            fail_point("mirror.attributes")
            system.atomic_write(attributes, ATTRIBUTES, 0o644)

    def resolve(self, url: str, branch: str) -> str:
        """The commit that a branch (or else a tag) of this name stands at, on the other server."""
        way = access(valid_url(url))
        command = ls_remote_command(self._repo, way.url, valid_branch(branch), way.settings)
        env = {**self._remote_env, **way.env}
        result = self._run(command, env=env, timeout=min(self._timeout, 60.0), max_output=1 << 24, inherit=())
        if not result.ok:
            raise _failure(result, url, "asking")
        refs = {ref: oid for oid, _, ref in (line.partition("\t") for line in result.out.splitlines())}
        for ref in refs_of(branch):
            if ref in refs:
                return valid_commit(refs[ref])
        raise Refused("git-ref-missing", f"{redact_url(url)} has no branch {branch}", hint="Check the branch's name.")

    def fetch(self, url: str, ref: str, commit: str | None = None, *, look: bool = True) -> str:
        """Bring ``commit`` (or else what the branch or tag ``ref`` stands at) into the mirror, and return it.

        A commit that is there already costs no connection; ``look`` for it, unless whoever calls has just done so. One
        that the branch does not hold is asked for by its id, and where the other server does not allow that, looked for
        in all branches.
        """
        valid_url(url)
        wanted = valid_commit(commit) if commit is not None else None
        branch = valid_branch(ref, "ref")
        self.create()
        if wanted is not None and look and self.has_commit(wanted):
            return wanted
        self.clean()
        fail_point("fetch.start")
        found = self._fetch_ref(url, branch)
        if wanted is None:
            if found is None:
                raise Refused("git-ref-missing", f"{redact_url(url)} has no branch {ref}", hint="Check its name.")
            wanted = found
        elif found != wanted and not self.has_commit(wanted):
            self._fetch_commit(url, wanted)
        fail_point("fetch.done")
        return wanted

    def _fetch_ref(self, url: str, branch: str) -> str | None:
        for kind in ("heads", "tags"):
            target = f"refs/lightship/{kind}/{flat(branch)}"
            if self._fetch(url, [f"+refs/{kind}/{branch}:{target}"]):
                # The file of a branch that has just been written; a tag may first have to be followed to its commit.
                written = system.read_trusted(self._repo / target, 64) if kind == "heads" else None
                if written is not None and re.fullmatch(_COMMIT, written):
                    return written.decode().strip()
                return self.read("rev-parse", "--verify", "--quiet", f"{target}^{{commit}}").out.strip()
        return None

    def _fetch_commit(self, url: str, commit: str) -> None:
        if self._fetch(url, [f"+{commit}:refs/lightship/commits/{commit}"]) and self.has_commit(commit):
            return
        self._fetch(url, ["+refs/heads/*:refs/lightship/all/*"], prune=True)
        if not self.has_commit(commit):
            raise Refused(
                "git-ref-missing",
                f"{redact_url(url)} has no commit {commit}",
                hint="Push it first. A commit that no branch holds any more cannot be had from every git server.",
            )

    def _fetch(self, url: str, refspecs: Sequence[str], prune: bool = False) -> bool:
        """False when the other server lacks the ref, or does not give it away."""
        way = access(valid_url(url))
        command = fetch_command(self._repo, way.url, refspecs, prune, way.settings)
        env = {**self._remote_env, **way.env}
        # Not with the lock: ssh may leave a connection open in the background, for the next one.
        result = self._run(command, env=env, timeout=self._timeout, inherit=())
        if not result.ok and not result.timed_out and re.search(LOCKED, result.err):
            # A fetch that outlived its killed agent made a lock after we had looked.
            self.clean()
            result = self._run(command, env=env, timeout=self._timeout, inherit=())
        if result.ok:
            return True
        if not result.timed_out and re.search(NO_REF, result.err):
            return False
        raise _failure(result, url, "fetching from")

    def size(self, commit: str) -> tuple[int, int]:
        """The bytes and the number of the commit's files, as they will lie in a tree."""
        listed = self.read("ls-tree", "-r", "-l", "-z", commit).stdout.split(b"\0")
        sizes = [entry.split(b"\t", 1)[0].split()[3] for entry in listed if entry]
        return sum(int(size) for size in sizes if size.isdigit()), len(sizes)

    def export(self, commit: str, folder: Path) -> None:
        """Write the commit's files, and nothing else, into an empty folder."""
        index = folder.with_name(folder.name + ".index")
        try:
            words = (f"--work-tree={folder}", "read-tree", "-m", "-u", commit)
            self.read(*words, env={"GIT_INDEX_FILE": str(index)}, timeout=600)
        finally:
            index.unlink(missing_ok=True)

    def maintain(self) -> None:
        """Unite the packs when fetches have left many, for each makes git slower and no fetch ever takes one away.

        A geometric repack writes the small packs anew and leaves the large one alone, so that its time follows what was
        fetched and not the size of the repository. A git without it (before 2.33) repacks all, as ``gc`` does. Never in
        the background: the service's lock is to cover every git that runs. What goes wrong is tried again next time.
        """
        if not many_packs(self._repo):
            return
        fail_point("mirror.maintain")
        united = self._run(repack_command(self._repo), env=self._local_env, timeout=self._timeout)
        if united.status == _USAGE:
            self._run(self.command("gc", "--quiet"), env=self._local_env, timeout=self._timeout)

    def clean(self) -> None:
        """Remove what killed git processes left. The service's lock guarantees that no other git of ours runs, except
        one that outlived its agent: that one is ended first."""
        fail_point("mirror.clean")
        left = [path for path in leftovers(self._repo) if path.name.endswith(".lock")]
        if left:
            _end_orphans(self._repo)
        for path in leftovers(self._repo):
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                path.unlink()
        system.remove_tree(self._repo / INCOMING)


def _end_orphans(repo: Path) -> None:
    """Kill git processes that work on the mirror and are not ours: their agent is dead, and we hold its lock."""
    sign = f"--git-dir={repo}".encode()
    inherited = f"GIT_DIR={repo}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            argv = (entry / "cmdline").read_bytes().split(b"\0")
            if Path(os.fsdecode(argv[0])).name.startswith("git") and (
                sign in argv or inherited in (entry / "environ").read_bytes().split(b"\0")
            ):
                found.append(int(entry.name))
        except OSError:
            continue
    for pid in found:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    for _ in range(100):
        if not any(_runs(pid) for pid in found):
            return
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    """A process that has ended, even if nobody has asked for its status yet, has no arguments left."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False
