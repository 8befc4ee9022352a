"""Builds git repositories for the tests: a work tree, and the bare remote that lightship fetches from."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

# Nothing of the machine's or the user's git settings may change what a test does.
ENVIRONMENT = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_AUTHOR_NAME": "Ada",
    "GIT_AUTHOR_EMAIL": "ada@example.org",
    "GIT_COMMITTER_NAME": "Ada",
    "GIT_COMMITTER_EMAIL": "ada@example.org",
}
# All that the git of an agent is given: no home, and nothing of the process that runs the tests.
ALONE = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **ENVIRONMENT}


def git(folder: Path, *arguments: str) -> str:
    """Run git in a folder; its output."""
    environment = {**os.environ, **ENVIRONMENT}
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        raise AssertionError(f"git {' '.join(arguments)} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stdout.strip()


class Repository:
    """A work tree with a bare remote beside it. Every commit is pushed unless told otherwise."""

    def __init__(self, folder: Path, *, branch: str = "main") -> None:
        self.tree = folder / "work"
        self.remote = folder / "remote.git"
        self.branch = branch
        self.tree.mkdir(parents=True)
        self.remote.mkdir(parents=True)
        git(self.remote, "init", "--quiet", "--bare", f"--initial-branch={branch}")
        git(self.tree, "init", "--quiet", f"--initial-branch={branch}")
        git(self.tree, "remote", "add", "origin", str(self.remote))

    def write(self, files: Mapping[str, str | bytes | None]) -> None:
        """Write files into the work tree; None removes one."""
        for name, content in files.items():
            path = self.tree / name
            if content is None:
                path.unlink()
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)

    def commit(
        self, message: str = "Change", files: Mapping[str, str | bytes | None] | None = None, *, push: bool = True
    ) -> str:
        """Commit everything, with these files written first; the commit's full name."""
        self.write(files or {})
        git(self.tree, "add", "--all")
        git(self.tree, "commit", "--quiet", "--allow-empty", "--no-gpg-sign", "--message", message)
        if push:
            self.push()
        return self.head

    def replace(self, name: str, old: str, new: str, message: str = "", *, push: bool = True) -> str:
        """Commit a change of one text, which has to be there."""
        text = (self.tree / name).read_text()
        if old not in text:
            raise AssertionError(f"{name} does not hold {old!r}")
        return self.commit(message or f"Change {name}", {name: text.replace(old, new)}, push=push)

    def push(self) -> None:
        """Push the branch, by force: tests rewrite history too."""
        git(self.tree, "push", "--quiet", "--force", "origin", f"HEAD:refs/heads/{self.branch}")

    @property
    def head(self) -> str:
        """The commit that the work tree is at."""
        return git(self.tree, "rev-parse", "HEAD")

    @property
    def files(self) -> list[str]:
        """The names of all files of the latest commit."""
        return git(self.tree, "ls-tree", "-r", "--name-only", "HEAD").splitlines()
