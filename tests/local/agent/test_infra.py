"""The infrastructure's files found by the difference are those that a listing of the whole commit finds."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from lightship_agent.git import Mirror
from lightship_agent.infra import infra_at, infra_from
from lightship_agent.paths import ServicePaths
from support.repo import ALONE, Repository

GLOBS = ["Dockerfile", "requirements*.txt", "deploy/**", "*.lock"]


class Server:
    """A mirror that counts the listings of whole commits."""

    def __init__(self, folder: Path) -> None:
        self.repository = Repository(folder)
        self.paths = ServicePaths.at(str(folder / "srv"), "shop")
        self.paths.state.mkdir(parents=True)
        self.mirror = Mirror(self.paths, base_env=ALONE)
        self.listings = 0
        self.listed = self.mirror.infra_files

        def counted(commit: str, globs: Sequence[str]) -> dict[str, str]:
            self.listings += 1
            return self.listed(commit, globs)

        self.mirror.infra_files = counted  # type: ignore[method-assign]

    def commit(self, files: Mapping[str, str | None]) -> str:
        made = self.repository.commit(files=files)
        self.mirror.fetch(str(self.repository.remote), "main", made)
        return made

    def at(self, commit: str, globs: Sequence[str] = GLOBS, keep: bool = True) -> dict[str, str]:
        found = infra_at(self.paths, self.mirror, commit, globs, keep=keep)
        assert found == self.listed(commit, globs)
        return found

    @property
    def kept(self) -> Path:
        return self.paths.state / "infra.json"


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


def test_only_the_first_commit_is_listed_and_the_others_follow_by_what_differs(server: Server) -> None:
    server.at(server.commit({"Dockerfile": "1", "app.py": "1", "deploy/uwsgi.ini": "1", "sub/poetry.lock": "1"}))
    server.at(server.commit({"app.py": "2"}))
    server.at(server.commit({"deploy/uwsgi.ini": None, "requirements-dev.txt": "1", "Dockerfile": "2"}))
    assert server.listings == 1


def test_any_two_commits_give_the_same_as_a_listing_of_each(server: Server) -> None:
    chance = random.Random(7)
    names = ["Dockerfile", "x/Dockerfile", "requirements.txt", "deploy/a", "deploy/b/c", "a.py", "x/y.lock", "x/z"]
    commits = [server.commit(dict.fromkeys(names, "0"))]
    here = set(names)
    for number in range(12):
        change: dict[str, str | None] = {}
        for name in chance.sample(names, 3):
            change[name] = None if name in here and chance.random() < 0.4 else str(number)
            here = here - {name} if change[name] is None else here | {name}
        commits.append(server.commit(change))
    for _ in range(30):
        base, commit = chance.choice(commits), chance.choice(commits)
        assert infra_from(server.mirror, base, server.listed(base, GLOBS), commit, GLOBS) == server.at(commit)


def test_other_patterns_are_looked_for_anew(server: Server) -> None:
    commit = server.commit({"Dockerfile": "1", "app.py": "1"})
    assert set(server.at(commit)) == {"Dockerfile"}
    assert set(server.at(commit, ["*.py"])) == {"app.py"}
    assert server.listings == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda path, _: path.write_text("torn {"),
        lambda path, _: path.write_bytes(b"\0" * 100),
        lambda path, _: path.write_text("[]"),
        lambda path, old: path.write_text(json.dumps({**old, "files": None})),
        lambda path, old: path.write_text(json.dumps({**old, "commit": "0" * 40, "files": {"a.lock": "x"}})),
        lambda path, old: path.write_text(json.dumps({**old, "version": "0.0.1", "files": {"a.lock": "x"}})),
    ],
)
def test_what_cannot_be_used_of_the_last_time_costs_a_listing_and_no_more(server: Server, damage: object) -> None:
    first, second = server.commit({"Dockerfile": "1"}), server.commit({"Dockerfile": "2"})
    server.at(first)
    damage(server.kept, json.loads(server.kept.read_text()))  # type: ignore[operator]
    server.at(second)
    assert server.listings == 2


def test_nothing_is_written_without_the_lock_nor_when_nothing_is_new(server: Server) -> None:
    first, second = server.commit({"Dockerfile": "1"}), server.commit({"Dockerfile": "2"})
    server.at(first, keep=False)
    assert not server.kept.exists()
    server.at(first)
    before = server.kept.stat().st_ino
    server.at(first)
    server.at(second, keep=False)
    assert server.kept.stat().st_ino == before
    assert subprocess.run(
        ["stat", "-c", "%a", str(server.kept)], capture_output=True, text=True, check=True
    ).stdout == ("600\n")


def test_a_file_that_becomes_executable_or_a_link_is_another_one(server: Server) -> None:
    """A build copies the mode as well: an entry point that was made executable makes another image."""
    before = server.at(server.commit({"deploy/run.sh": "x", "app.py": "1"}))
    script = server.repository.tree / "deploy/run.sh"
    script.chmod(0o755)
    executable = server.at(server.commit({}))
    script.unlink()
    script.symlink_to("x")
    link = server.at(server.commit({}))
    assert set(before) == set(executable) == set(link) == {"deploy/run.sh"}
    assert len({before["deploy/run.sh"], executable["deploy/run.sh"], link["deploy/run.sh"]}) == 3
    assert executable["deploy/run.sh"] == f"{before['deploy/run.sh']} 100755"
    assert server.listings == 1
