"""How git is run: its arguments and its environment, on a server and on the controller. Nothing here runs it.

Every repository that lightship keeps is bare and its own; a command names it, and reads no configuration that could
make git run a program or point it elsewhere. What comes from outside reaches an argument only past an allow-list
(``names`` on a server, the configuration's rules on the controller) and after ``--``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

__all__ = [
    "ALLOWED_PROTOCOLS",
    "LOCKED",
    "MANY_PACKS",
    "NO_REF",
    "environment",
    "fetch_command",
    "flat",
    "init_command",
    "leftovers",
    "local",
    "ls_remote_command",
    "many_packs",
    "network",
    "refs_of",
    "repack_command",
]

ALLOWED_PROTOCOLS = "https:http:ssh:file"
"""Transports that run no program of the address's choosing."""

MANY_PACKS = 50
"""So many packs a repository may have before they are united: what git itself has in ``gc.autoPackLimit``."""

NO_REF = r"couldn't find remote ref|no such remote ref|not our ref|unadvertised object|no matching remote head"
"""What git says when the other side lacks a ref, or does not give it away."""

LOCKED = r"Unable to create '[^']*\.lock'|cannot lock ref|\.lock': File exists"
"""What git says when another one, or one that was killed, holds a lock."""

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
    return network(repo, "ls-remote", "--quiet", "--", url, *refs_of(branch), settings=settings)


def refs_of(branch: str) -> tuple[str, str, str]:
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
        GIT_ALLOW_PROTOCOL=ALLOWED_PROTOCOLS,
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


def flat(branch: str) -> str:
    """One part of a ref's name for a branch: 'a' and, later, 'a/b' must not stand in each other's way."""
    name = branch.replace("%", "%25").replace("/", "%2F")
    if len(name) <= 200:  # noqa: PLR2004 (a name's length)
        return name
    import hashlib  # noqa: PLC0415 - it loads OpenSSL, which takes a tenth of an agent's start

    return hashlib.sha256(branch.encode()).hexdigest()


def init_command(folder: Path) -> list[str]:
    """Make an empty bare repository, without anything of a template."""
    return ["git", "init", "--quiet", "--bare", "--template=", "--", str(folder)]


def many_packs(repo: Path) -> bool:
    """Whether fetches have left so many packs that they are to be united."""
    return sum(1 for _ in (repo / "objects" / "pack").glob("*.pack")) > MANY_PACKS


def repack_command(repo: Path) -> list[str]:
    """Unite the small packs. git before 2.33 does not know how, and ends with status 129."""
    return local(repo, "repack", "--geometric=2", "-d", "-q")


def leftovers(repo: Path) -> Iterator[Path]:
    """The files that killed git processes leave behind."""
    yield from repo.glob("*.lock")
    yield from (repo / "objects" / "info").glob("*.lock")
    pack = repo / "objects" / "pack"
    for pattern in ("tmp_*", ".tmp-*", "*.keep", "*.lock"):
        yield from pack.glob(pattern)
    yield from (repo / "refs").rglob("*.lock")
