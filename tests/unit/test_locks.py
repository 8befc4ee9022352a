"""The locks hold versions and hashes; where packages come from is each machine's own affair."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent.parent
LOCKS = sorted((PROJECT / "requirements").glob("*.lock"))


def pinned(path: Path) -> dict[str, str]:
    return dict(re.findall(r"(?m)^([A-Za-z0-9._-]+)==(\S+)", path.read_text()))


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_a_lock_names_no_address_and_no_path(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"://|@ |--(?:extra-)?index-url|--find-links|--trusted-host", text)
    assert not re.search(r"(?m)(?:^|\s)[.~]?/", text)


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_every_requirement_is_pinned_and_hashed(path: Path) -> None:
    requirements = [part for part in re.split(r"(?m)^(?=[A-Za-z0-9])", path.read_text()) if part.strip()]
    assert requirements
    for part in requirements:
        assert re.match(r"[A-Za-z0-9._-]+==\S+", part), part
        assert "--hash=sha256:" in part, part


def test_what_is_tested_is_what_users_run() -> None:
    runtime, dev = (pinned(PROJECT / "requirements" / f"{name}.lock") for name in ("runtime", "dev"))
    assert runtime.items() <= dev.items()
    assert {"pydantic", "pyyaml", "rich", "typer"} <= runtime.keys()
    assert {"setuptools", "pytest", "mypy", "ruff"} <= dev.keys()
