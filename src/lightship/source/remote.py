"""The git remote, asked once: which commit is this ref? One ``git ls-remote``, no clone.

A ref reaches git only past the allow-list of ``config.rules`` and spelled out in full (``refs/heads/...``), so that it
can be neither an option nor a pattern; a repository only as a ``Repository`` and after ``--``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Literal

from lightship.config.repository import Repository
from lightship.config.rules import REF, RuleError
from lightship.config.secrets import Secret, redact
from lightship.errors import RefusedError, UsageError
from lightship.source.git import Ran, run
from lightship_agent.gitcommand import ALLOWED_PROTOCOLS
from lightship_agent.records import dataclass

__all__ = [
    "Resolved",
    "check_ref",
    "git_environment",
    "helper_settings",
    "is_commit",
    "ls_remote_command",
    "not_read",
    "parse_ls_remote",
    "remote_environment",
    "resolve",
    "too_slow",
]

_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_MOST = 1024 * 1024
# The password of a URL is not for the eyes of whoever reads an error.
_PASSWORD = re.compile(r"(?<=://)[^/@\s]+@")
# Run by a shell, and therefore without a word of anybody else's in it.
_HELPER = (
    '!f() { test "$1" = get && printf "username=%s\\npassword=%s\\n" "$LIGHTSHIP_GIT_USER" "$LIGHTSHIP_GIT_PASSWORD"; '
    "}; f"
)
_LOCATION = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR", "GIT_NAMESPACE")


@dataclass(frozen=True, slots=True)
class Resolved:
    """A ref and the commit it named when it was asked for."""

    ref: str
    commit: str
    kind: Literal["branch", "tag", "commit"]


def is_commit(text: str) -> bool:
    """Whether the text is a full commit id."""
    return _COMMIT.fullmatch(text) is not None


def git_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for git: asks nobody for a password, runs no foreign transport, answers in English."""
    kept = {name: value for name, value in environment.items() if name not in _LOCATION}
    kept.update(GIT_TERMINAL_PROMPT="0", GIT_ALLOW_PROTOCOL=ALLOWED_PROTOCOLS, LC_ALL="C", GIT_ASKPASS="true")
    if "GIT_SSH" not in kept:
        # A host whose key is not known is refused, whatever the user's own configuration of ssh would do about it.
        kept.setdefault("GIT_SSH_COMMAND", "ssh -oBatchMode=yes -oStrictHostKeyChecking=yes")
    return kept


def ls_remote_command(repository: Repository, ref: str) -> list[str]:
    """The command that lists what a ref may mean."""
    names = [f"refs/heads/{ref}", f"refs/tags/{ref}", f"refs/tags/{ref}^{{}}"]
    if ref.startswith(("refs/heads/", "refs/tags/")):
        names = [ref, f"{ref}^{{}}"]
    address, credentials = repository.access()
    settings = helper_settings(address) if credentials else ()
    return ["git", *(word for one in settings for word in ("-c", one)), "ls-remote", "--", address, *names]


def credential_environment(repository: Repository) -> dict[str, str]:
    """What git's helper hands on: arguments are for all to read, the environment of a process is not."""
    _, credentials = repository.access()
    return dict(zip(("LIGHTSHIP_GIT_USER", "LIGHTSHIP_GIT_PASSWORD"), credentials, strict=True)) if credentials else {}


def helper_settings(address: str) -> tuple[str, ...]:
    """git's settings for an address that came with credentials."""
    # The first empties the list of helpers, which might keep what they are told; the second is for this host alone.
    host = "/".join(address.split("/")[:3])
    return "credential.helper=", f"credential.{host}.helper={_HELPER}"


def hide_password(text: str) -> str:
    """The text without what stands before the ``@`` of a URL."""
    return _PASSWORD.sub("***@", text)


def parse_ls_remote(output: str, ref: str) -> Resolved | None:
    """What the answer of ``git ls-remote`` says about the ref. A name that is both branch and tag is refused."""
    found: dict[str, str] = {}
    for line in output.splitlines():
        commit, _, name = line.partition("\t")
        if is_commit(commit):
            found[name] = commit
    full = ref.startswith("refs/")
    tag = ref if full else f"refs/tags/{ref}"
    branch = found.get(ref if full else f"refs/heads/{ref}") if not ref.startswith("refs/tags/") else None
    tagged = found.get(f"{tag}^{{}}", found.get(tag)) if not ref.startswith("refs/heads/") else None
    if branch and tagged and branch != tagged:
        raise UsageError(
            f"{ref} is both a branch ({branch[:7]}) and a tag ({tagged[:7]})",
            hint=f"say which: --ref refs/heads/{ref} or --ref refs/tags/{ref}",
            code="ambiguous-ref",
        )
    if branch:
        return Resolved(ref, branch, "branch")
    return Resolved(ref, tagged, "tag") if tagged else None


def check_ref(ref: str) -> None:
    """Refuse what cannot be a ref, before anybody is asked for it."""
    try:
        REF(ref)
    except RuleError as error:
        raise UsageError(f"--ref {ref[:200]!r} {error.rule}", hint=error.hint, code="bad-ref") from error


async def resolve(repository: Repository, ref: str, *, timeout: float = 30.0) -> Resolved:
    """The commit of a branch, a tag or a full commit id. Raises ``UsageError`` or ``RefusedError``."""
    check_ref(ref)
    if is_commit(ref):
        return Resolved(ref, ref, "commit")
    output = await _ask(ls_remote_command(repository, ref), repository, timeout)
    resolved = parse_ls_remote(output, ref)
    if resolved is None:
        raise UsageError(
            f"there is no branch or tag {ref} in {repository}",
            hint="is it pushed? a commit has to be given in full (40 digits)",
            code="no-such-ref",
        )
    return resolved


async def _ask(command: list[str], repository: Repository, timeout: float) -> str:
    environment = remote_environment(repository)
    try:
        ran = await run(command, environment, timeout=timeout, most=_MOST)
    except TimeoutError:
        raise too_slow(repository, timeout) from None
    if ran.status != 0:
        raise not_read(repository, ran)
    return ran.output.decode("utf-8", "replace")


def remote_environment(repository: Repository) -> dict[str, str]:
    """The environment for a git that asks the repository for something."""
    return {**git_environment(os.environ), **credential_environment(repository)}


def too_slow(repository: Repository, seconds: float) -> RefusedError:
    """The git server took too long."""
    return RefusedError(
        f"{repository} did not answer within {seconds:g} s", hint="is the git server reachable?", code="git-timeout"
    )


def not_read(repository: Repository, ran: Ran) -> RefusedError:
    """git could not read the repository, and said why."""
    shown = str(repository)
    _, credentials = repository.access()
    words = redact(hide_password(ran.errors.strip()), map(Secret, credentials or ()))[-2000:]
    last = next((line for line in words.splitlines() if line.startswith(("fatal:", "ERROR:"))), words)
    return RefusedError(
        f"cannot read {shown}: {last.removeprefix('fatal: ')}",
        hint="try: git ls-remote " + shown,
        code="git-remote",
        detail={"stderr": words},
    )
