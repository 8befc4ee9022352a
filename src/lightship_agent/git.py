"""The bare mirror of the service's repository.

Pure functions build git's arguments; ``Mirror`` runs them. Nothing here ever has a work tree that somebody else can
write, and what comes from outside reaches an argument only past ``names`` and after ``--``.

Fetches are always full: a killed shallow fetch leaves ``shallow.lock`` behind, which blocks the next one. Every fetch
keeps its pack (``fetch.unpackLimit=1``): a pack appears by one rename, complete, so that a commit that is there has all
that belongs to it, even after a kill. Loose objects would come one by one, the commit before its trees.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lightship_agent import failpoints, system
from lightship_agent.credentials import access
from lightship_agent.errors import AgentFailure, Refused
from lightship_agent.failpoints import fail_point
from lightship_agent.names import redact_text, redact_url, valid_branch, valid_commit, valid_url
from lightship_agent.paths import ServicePaths
from lightship_agent.system import Completed, Run

__all__ = [
    "ATTRIBUTES",
    "Blobs",
    "Change",
    "Commit",
    "Mirror",
    "ModeChange",
    "environment",
    "fetch_command",
    "glob_match",
    "infra_id",
    "local",
    "ls_remote_command",
    "network",
]

failpoints.register(
    mirror__create="the mirror is made in a temporary place and about to get its name",
    mirror__clean="what killed git processes left is about to be removed",
    mirror__maintain="the mirror's packs are about to be united",
    mirror__attributes="the mirror's rules for files are about to be written",
    fetch__start="a fetch is about to run",
    fetch__done="a fetch ended well",
)

MANY_PACKS = 50
"""So many packs the mirror may have before they are united: what git itself has in ``gc.autoPackLimit``."""
_USAGE = 129  # how git ends that was given an option which it does not know

ATTRIBUTES = b"* !text !eol !crlf !ident !filter !working-tree-encoding\n"
"""The mirror's info/attributes, which outrank every .gitattributes: a tree holds each file byte for byte as it was
committed, and no filter (a filter is a program) is ever run."""

_SSH = (
    "ssh -oBatchMode=yes -oStrictHostKeyChecking=yes -oConnectTimeout=15 "
    "-oServerAliveInterval=10 -oServerAliveCountMax=3"
)
_KEPT = (
    "GIT_SSH",
    "GIT_SSH_COMMAND",
    "GIT_SSL_CAINFO",
    "GIT_SSL_CAPATH",
    "GIT_ASKPASS",
    "GIT_HTTP_USER_AGENT",
    # When a server that falls silent is given up; without them after the 30 seconds of _NETWORK.
    "GIT_HTTP_LOW_SPEED_LIMIT",
    "GIT_HTTP_LOW_SPEED_TIME",
)
_ALWAYS = ("core.hooksPath=/dev/null", "core.fsmonitor=false", "gc.auto=0", "maintenance.auto=false")
_LOCAL = (
    "core.attributesFile=/dev/null",
    "core.autocrlf=false",
    "core.symlinks=true",
    "core.fileMode=true",
    "core.ignoreCase=false",
    "core.protectNTFS=true",
    "core.sparseCheckout=false",
    "core.splitIndex=false",
    "core.untrackedCache=false",
    "core.quotePath=false",
)
_NETWORK = ("fetch.unpackLimit=1", "fetch.recurseSubmodules=false", "http.lowSpeedLimit=1000", "http.lowSpeedTime=30")
_BIG = 512 * 1024 * 1024
_MESSAGE = 500
_USUAL_MODE = 0o100644


# --- arguments ------------------------------------------------------------------


def _command(repo: Path, settings: Sequence[str], words: Sequence[str]) -> list[str]:
    options = [word for setting in settings for word in ("-c", setting)]
    return ["git", f"--git-dir={repo}", *options, *words]


def local(repo: Path, *words: str) -> list[str]:
    """A git command that reads the mirror."""
    return _command(repo, (*_ALWAYS, *_LOCAL), words)


def network(repo: Path, *words: str, settings: Sequence[str] = ()) -> list[str]:
    """A git command that talks to another server."""
    return _command(repo, (*_ALWAYS, *_NETWORK, *settings), words)


def fetch_command(
    repo: Path, url: str, refspecs: Sequence[str], prune: bool = False, settings: Sequence[str] = ()
) -> list[str]:
    """Fetch exactly these refs, with all their history."""
    words = ["fetch", "--quiet", "--no-tags", "--no-recurse-submodules", *(["--prune"] if prune else [])]
    return network(repo, *words, "--", url, *refspecs, settings=settings)


def ls_remote_command(repo: Path, url: str, branch: str, settings: Sequence[str] = ()) -> list[str]:
    """Ask where a branch (or a tag) stands."""
    return network(repo, "ls-remote", "--quiet", "--", url, *_refs(branch), settings=settings)


def _refs(branch: str) -> tuple[str, str, str]:
    """What a name may mean, the first first. A tag with a message is asked for what it stands at."""
    return f"refs/heads/{branch}", f"refs/tags/{branch}^{{}}", f"refs/tags/{branch}"


def environment(base: Mapping[str, str], *, remote: bool) -> dict[str, str]:
    """git's environment.

    Whatever could point git elsewhere (GIT_DIR, GIT_INDEX_FILE, GIT_CONFIG_COUNT...) is dropped. The system's
    configuration is never read: a ``safe.directory=*`` there would switch off git's protection. root's own (global)
    configuration is read when another server is asked, because credential helpers, proxies and ``insteadOf`` live
    there; commands that only read the mirror go without it.
    """
    env = {name: value for name, value in base.items() if not name.startswith("GIT_") or name in _KEPT}
    env.update(
        LC_ALL="C",
        GIT_TERMINAL_PROMPT="0",
        GIT_ALLOW_PROTOCOL="https:http:ssh:file",
        GIT_CONFIG_NOSYSTEM="1",
        GIT_ATTR_NOSYSTEM="1",
        GIT_NO_REPLACE_OBJECTS="1",
        GIT_OPTIONAL_LOCKS="0",
    )
    if remote:
        if "GIT_SSH" not in env:
            env.setdefault("GIT_SSH_COMMAND", _SSH)
    else:
        env["GIT_CONFIG_GLOBAL"] = "/dev/null"
    return env


def _flat(branch: str) -> str:
    """One part of a ref's name for a branch: 'a' and, later, 'a/b' must not stand in each other's way."""
    name = branch.replace("%", "%25").replace("/", "%2F")
    return name if len(name) <= 200 else hashlib.sha256(branch.encode()).hexdigest()  # noqa: PLR2004 (a name's length)


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
class Change:
    """One file that differs between two commits; ``status`` is A, D, M or T."""

    status: str
    path: str


def infra_id(mode: int, oid: str) -> str:
    """What a file is to an image: its blob and, unless that is the usual one, its mode. A build copies both."""
    return oid if mode == _USUAL_MODE else f"{oid} {mode:o}"


class ModeChange(NamedTuple):
    """One entry that differs between two trees, as the difference writer needs it. A mode of 0 means: not there."""

    old_mode: int
    new_mode: int
    oid: str
    path: bytes


class Blobs:
    """``git cat-file --batch``: many blobs from one process."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None and process.stdout is not None  # noqa: S101 (for the type checker)
        self._ask = process.stdin
        self._answer = os.fdopen(os.dup(process.stdout.fileno()), "rb", 1 << 16)

    def close(self) -> None:
        """No more questions."""
        self._answer.close()

    def read(self, oids: Sequence[str]) -> Iterator[Iterator[bytes]]:
        """For each id in turn, its content in pieces. Each must be read to its end before the next."""
        # Few enough that all questions fit in the pipe before any answer is read: neither side can wait for the other.
        for start in range(0, len(oids), 500):
            batch = oids[start : start + 500]
            self._ask.write("".join(f"{oid}\n" for oid in batch).encode())
            for oid in batch:
                header = self._answer.readline(200).split()
                if len(header) != 3 or header[1] != b"blob":  # noqa: PLR2004 (id, kind, size)
                    raise AgentFailure("git-damaged", f"the mirror lacks the object {oid}")
                yield self._content(int(header[2]))

    def _content(self, size: int) -> Iterator[bytes]:
        while size:
            piece = self._answer.read(min(size, 1 << 20))
            if not piece:
                raise AgentFailure("git-failed", "git cat-file ended early")
            size -= len(piece)
            yield piece
        self._answer.read(1)


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
_NO_REF = re.compile(
    r"couldn't find remote ref|no such remote ref|not our ref|unadvertised object|no matching remote head"
)
_LOCKED = re.compile(r"Unable to create '[^']*\.lock'|cannot lock ref|\.lock': File exists")


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
        base = os.environ if base_env is None else base_env
        self._local_env = environment(base, remote=False)
        self._remote_env = environment(base, remote=True)

    # --- reading

    def command(self, *words: str) -> list[str]:
        """The arguments of a git command that reads the mirror."""
        return local(self._repo, *words)

    def read(self, *words: str, env: Mapping[str, str] | None = None, timeout: float = 120.0) -> Completed:
        """Run a git command that reads the mirror; refused when it fails."""
        result = self.attempt(*words, env=env, timeout=timeout)
        if not result.ok or result.truncated:
            raise _failure(result, "", f"git {words[0]}")
        return result

    def attempt(self, *words: str, env: Mapping[str, str] | None = None, timeout: float = 120.0) -> Completed:
        """The same, for commands that answer by their status."""
        return self._run(self.command(*words), env={**self._local_env, **(env or {})}, timeout=timeout, max_output=_BIG)

    @contextlib.contextmanager
    def blobs(self) -> Iterator[Blobs]:
        """One process that reads many blobs."""
        with system.pipe_to(self.command("cat-file", "--batch"), self._local_env) as process:
            blobs = Blobs(process)
            try:
                yield blobs
            finally:
                blobs.close()

    def has_commit(self, commit: str) -> bool:
        """The commit is there, and so is all that belongs to it."""
        if not (self._repo / "HEAD").exists():
            return False
        return self.attempt("cat-file", "-e", f"{valid_commit(commit)}^{{commit}}").ok

    def commit_info(self, commit: str) -> Commit:
        """Who wrote a commit, when, and its subject. The strings are the author's: escape them where they are shown."""
        found = self._log(["--max-count=1", "--no-walk", valid_commit(commit)])
        if not found:
            raise Refused("git-ref-missing", f"the commit {commit} is not in the mirror")
        return found[0]

    def log(self, a: str, b: str, limit: int = 50) -> list[Commit]:
        """The commits that ``b`` has and ``a`` has not, newest first, at most ``limit``."""
        return self._log([f"--max-count={int(limit)}", f"{valid_commit(a)}..{valid_commit(b)}"])

    def count(self, a: str, b: str) -> int:
        """How many commits ``b`` has that ``a`` has not."""
        return int(self.read("rev-list", "--count", f"{valid_commit(a)}..{valid_commit(b)}").out)

    def _log(self, words: Sequence[str]) -> list[Commit]:
        # Fields end in NUL, which no commit message can hold.
        options = ("--no-show-signature", "--no-color", "--no-notes", "--no-mailmap", "--encoding=UTF-8")
        result = self.read("log", "-z", "--format=tformat:%H%x00%s%x00%an%x00%at", *options, *words, "--")
        fields = result.out.split("\0")
        return [
            Commit(fields[i], fields[i + 1][:_MESSAGE], fields[i + 2][:_MESSAGE], int(fields[i + 3] or 0))
            for i in range(0, len(fields) - 3, 4)
        ]

    def is_ancestor(self, a: str, b: str) -> bool:
        """``b`` is ``a`` or was built upon it."""
        result = self.attempt("merge-base", "--is-ancestor", valid_commit(a), valid_commit(b))
        if result.status not in (0, 1):
            raise _failure(result, "", "git merge-base")
        return result.ok

    def changed(self, a: str, b: str) -> list[Change]:
        """The files that differ. Bytes of a path that are not UTF-8 come as surrogate escapes."""
        words = ("diff-tree", "-r", "-z", "--name-status", "--no-renames", "--ignore-submodules=none")
        fields = self.read(*words, valid_commit(a), valid_commit(b), "--").stdout.split(b"\0")
        return [Change(fields[i].decode(), os.fsdecode(fields[i + 1])) for i in range(0, len(fields) - 1, 2)]

    def differences(self, a: str, b: str) -> list[ModeChange]:
        """The same with modes and ids, for the tree to be brought forward."""
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
            words = ("init", "--quiet", "--bare", "--template=", "--", str(temporary))
            result = self._run(["git", *words], env=self._local_env, timeout=60)
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
        for ref in _refs(branch):
            if ref in refs:
                return valid_commit(refs[ref])
        raise Refused("git-ref-missing", f"{redact_url(url)} has no branch {branch}", hint="Check the branch's name.")

    def fetch(self, url: str, ref: str, commit: str | None = None) -> str:
        """Bring ``commit`` (or else what the branch or tag ``ref`` stands at) into the mirror, and return it.

        A commit that is there already costs no connection. One that the branch does not hold is asked for by its id,
        and where the other server does not allow that, looked for in all branches.
        """
        valid_url(url)
        wanted = valid_commit(commit) if commit is not None else None
        branch = valid_branch(ref, "ref")
        self.create()
        if wanted is not None and self.has_commit(wanted):
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
            target = f"refs/lightship/{kind}/{_flat(branch)}"
            if self._fetch(url, [f"+refs/{kind}/{branch}:{target}"]):
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
        if not result.ok and not result.timed_out and _LOCKED.search(result.err):
            # A fetch that outlived its killed agent made a lock after we had looked.
            self.clean()
            result = self._run(command, env=env, timeout=self._timeout, inherit=())
        if result.ok:
            return True
        if not result.timed_out and _NO_REF.search(result.err):
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
        if sum(1 for _ in (self._repo / "objects" / "pack").glob("*.pack")) <= MANY_PACKS:
            return
        fail_point("mirror.maintain")
        command = self.command()
        united = self._run(
            [*command, "repack", "--geometric=2", "-d", "-q"], env=self._local_env, timeout=self._timeout
        )
        if united.status == _USAGE:
            self._run([*command, "gc", "--quiet"], env=self._local_env, timeout=self._timeout)

    def clean(self) -> None:
        """Remove what killed git processes left. The service's lock guarantees that no other git of ours runs, except
        one that outlived its agent: that one is ended first."""
        fail_point("mirror.clean")
        left = [path for path in self._leftovers() if path.name.endswith(".lock")]
        if left:
            _end_orphans(self._repo)
        for path in self._leftovers():
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                path.unlink()

    def _leftovers(self) -> Iterator[Path]:
        yield from self._repo.glob("*.lock")
        yield from (self._repo / "objects" / "info").glob("*.lock")
        pack = self._repo / "objects" / "pack"
        for pattern in ("tmp_*", ".tmp-*", "*.keep", "*.lock"):
            yield from pack.glob(pattern)
        yield from (self._repo / "refs").rglob("*.lock")


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
