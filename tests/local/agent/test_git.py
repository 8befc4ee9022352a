"""The mirror against real repositories: what is fetched, what is refused and with which code, what is read."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightship_agent import git, gitcommand
from lightship_agent.errors import AgentFailure, ProtocolError, Refused
from lightship_agent.git import Mirror
from lightship_agent.paths import ServicePaths
from support.repo import ALONE

ENV = {**ALONE, "GIT_AUTHOR_NAME": "Ann", "GIT_AUTHOR_DATE": "1700000000 +0000"}


class Origin:
    """A repository as a user has it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self.git("init", "-q", "-b", "main")

    def git(self, *words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(self.path), *words], env=ENV, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    def commit(self, files: dict[str, str | None], message: str = "change") -> str:
        for name, content in files.items():
            path = self.path / name
            if content is None:
                path.unlink()
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content)
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", message)
        return self.git("rev-parse", "HEAD")


@pytest.fixture
def origin(tmp_path: Path) -> Origin:
    return Origin(tmp_path / "origin")


@pytest.fixture
def mirror(paths: ServicePaths) -> Mirror:
    return Mirror(paths, base_env=ENV, timeout=20)


def test_commands_keep_outside_words_behind_the_options() -> None:
    command = gitcommand.fetch_command(Path("/m"), "URL", ["+refs/heads/x:refs/y"])
    assert command[-3:] == ["--", "URL", "+refs/heads/x:refs/y"]
    assert not any(word.startswith("--depth") for word in command)
    assert "core.hooksPath=/dev/null" in command
    command = gitcommand.ls_remote_command(Path("/m"), "URL", "main")
    assert command[command.index("--") + 1] == "URL"


def test_the_environment_is_gits_own() -> None:
    base = {"PATH": "/bin", "GIT_DIR": "/evil", "GIT_CONFIG_COUNT": "1", "GIT_SSH_COMMAND": "mine"}
    env = gitcommand.environment(base, remote=True)
    assert "GIT_DIR" not in env
    assert "GIT_CONFIG_COUNT" not in env
    assert "GIT_CONFIG_GLOBAL" not in env
    assert env["GIT_SSH_COMMAND"] == "mine"
    assert env["GIT_TERMINAL_PROMPT"] == "0"
    env = gitcommand.environment({}, remote=True)
    assert "StrictHostKeyChecking=yes" in env["GIT_SSH_COMMAND"]
    assert "BatchMode=yes" in env["GIT_SSH_COMMAND"]
    assert gitcommand.environment({}, remote=False)["GIT_CONFIG_GLOBAL"] == "/dev/null"


def test_a_branch_is_fetched_whole_and_once(origin: Origin, mirror: Mirror, paths: ServicePaths) -> None:
    first = origin.commit({"a": "1"})
    second = origin.commit({"a": "2"})
    assert not mirror.has_commit(second)
    assert mirror.resolve(str(origin.path), "main") == second
    assert mirror.fetch(str(origin.path), "main") == second
    assert mirror.has_commit(first)
    assert not (paths.repo / "shallow").exists()
    assert (paths.repo.stat().st_mode & 0o777) == 0o700
    origin.path.rename(origin.path.with_name("gone"))
    assert mirror.fetch(str(origin.path), "main", second) == second


def test_a_mirror_can_be_asked_before_it_is_made(origin: Origin, mirror: Mirror) -> None:
    commit = origin.commit({"a": "1"})
    assert mirror.resolve(str(origin.path), "main") == commit


def test_a_commit_is_not_looked_for_twice(origin: Origin, mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = origin.commit({"a": "1"})
    asked: list[str] = []
    monkeypatch.setattr(mirror, "has_commit", lambda one: asked.append(one) or False)
    assert mirror.fetch(str(origin.path), "main", commit, look=False) == commit
    assert asked == []
    assert mirror.fetch(str(origin.path), "main", commit) == commit
    assert asked == [commit]


def test_of_many_names_those_of_commits_are_told(origin: Origin, mirror: Mirror) -> None:
    commit = origin.commit({"a": "1"})
    assert mirror.have_commits([commit]) == set(), "there is no mirror yet"
    origin.git("tag", "-a", "-m", "one", "v1")
    mirror.fetch(str(origin.path), "v1")
    tag, tree, blob = (origin.git("rev-parse", name) for name in ("v1", f"{commit}^{{tree}}", f"{commit}:a"))
    names = [tree, "1" * 40, tag, blob, commit]
    assert mirror.have_commits(names) == {tag, commit}
    assert {one for one in names if mirror.has_commit(one)} == {tag, commit}


def test_a_tag_is_taken_where_no_branch_is(origin: Origin, mirror: Mirror) -> None:
    tagged = origin.commit({"a": "1"})
    origin.git("tag", "-a", "v1", "-m", "one")
    origin.commit({"a": "2"})
    assert mirror.resolve(str(origin.path), "v1") == tagged
    assert mirror.fetch(str(origin.path), "v1") == tagged


def test_a_commit_of_another_branch_is_found(origin: Origin, mirror: Mirror) -> None:
    base = origin.commit({"a": "1"})
    origin.git("checkout", "-q", "-b", "other")
    wanted = origin.commit({"b": "1"})
    tip = origin.commit({"b": "2"})
    origin.git("checkout", "-q", "main")
    assert mirror.fetch(f"file://{origin.path}", "main", wanted) == wanted
    assert mirror.has_commit(base)
    assert mirror.fetch(str(origin.path), "deleted-branch", tip) == tip


def test_branches_whose_names_are_in_each_others_way(origin: Origin, mirror: Mirror) -> None:
    origin.commit({"a": "1"})
    origin.git("branch", "topic")
    mirror.fetch(str(origin.path), "topic")
    origin.git("branch", "-D", "topic")
    origin.git("checkout", "-q", "-b", "topic/one")
    tip = origin.commit({"a": "2"})
    assert mirror.fetch(str(origin.path), "topic/one") == tip


def test_a_rewritten_branch_is_followed(origin: Origin, mirror: Mirror) -> None:
    old = origin.commit({"a": "1"})
    mirror.fetch(str(origin.path), "main")
    origin.git("commit", "-q", "--amend", "-m", "rewritten")
    new = origin.git("rev-parse", "HEAD")
    assert mirror.fetch(str(origin.path), "main") == new
    assert mirror.has_commit(old)
    assert not mirror.is_ancestor(old, new)


def test_what_is_missing_has_its_own_code(origin: Origin, mirror: Mirror, tmp_path: Path) -> None:
    origin.commit({"a": "1"})
    url = str(origin.path)
    for call, code in (
        (lambda: mirror.fetch(url, "nosuch"), "git-ref-missing"),
        (lambda: mirror.resolve(url, "nosuch"), "git-ref-missing"),
        (lambda: mirror.fetch(url, "main", "1" * 40), "git-ref-missing"),
        (lambda: mirror.fetch(str(tmp_path / "none"), "main"), "git-unreachable"),
        (lambda: mirror.fetch("https://u:tok3n@127.0.0.1:1/r", "main"), "git-unreachable"),
        (lambda: mirror.resolve("https://u:tok3n@localhost:1/r", "main"), "git-unreachable"),
    ):
        with pytest.raises(Refused) as caught:
            call()
        assert caught.value.code == code, caught.value.message
        assert "tok3n" not in str(caught.value.as_dict())


@pytest.mark.parametrize(
    ("stderr", "code"),
    [
        ("Host key verification failed.\nfatal: Could not read from remote repository.", "git-host-key"),
        ("git@h: Permission denied (publickey).\nfatal: Could not read from remote repository.", "git-auth"),
        ("fatal: could not read Username for 'https://h': terminal prompts disabled", "git-auth"),
        ("fatal: Authentication failed for 'https://u:tok3n@h/'", "git-auth"),
        ("ssh: Could not resolve hostname h: Name or service not known", "git-unreachable"),
        ("fatal: unable to access 'https://u:tok3n@h/': Operation too slow.", "git-unreachable"),
        ("fatal: the remote end hung up unexpectedly", "git-unreachable"),
        ("fatal: protocol error: bad pack header", "git-unreachable"),
        ("fetch-pack: unexpected disconnect while reading sideband packet\nfatal: early EOF", "git-unreachable"),
        ("error: RPC failed; curl 18 transfer closed with 9 bytes remaining to read", "git-unreachable"),
        ("fatal: expected flush after ref listing", "git-unreachable"),
        ("fatal: expected 'packfile'", "git-unreachable"),
        ("error: 403 bytes of body are still expected\nfatal: early EOF", "git-unreachable"),
        ("fatal: unable to access 'https://h/': The requested URL returned error: 403", "git-auth"),
        ("fatal: something else", "git-failed"),
    ],
)
def test_causes_are_told_apart(paths: ServicePaths, tmp_path: Path, stderr: str, code: str) -> None:
    fake = tmp_path / "bin"
    fake.mkdir()
    (fake / "git").write_text(f"#!/bin/sh\ncat >&2 <<'X'\n{stderr}\nX\nexit 128\n")
    (fake / "git").chmod(0o755)
    mirror = Mirror(paths, base_env={**ENV, "PATH": f"{fake}:{ENV['PATH']}"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{fake}:{ENV['PATH']}")
        with pytest.raises(Refused) as caught:
            mirror.resolve("https://u:tok3n@h/r", "main")
    assert caught.value.code == code
    assert "tok3n" not in str(caught.value.as_dict())


def test_a_server_that_does_not_answer_is_a_timeout(paths: ServicePaths) -> None:
    mirror = Mirror(paths, base_env={**ENV, "GIT_SSH_COMMAND": "sleep 30 #"}, timeout=0.3)
    begun = time.monotonic()
    with pytest.raises(Refused) as caught:
        mirror.fetch("ssh://git@example.org/r", "main")
    assert caught.value.code == "git-timeout"
    assert time.monotonic() - begun < 4


def test_hostile_words_run_nothing(origin: Origin, mirror: Mirror, tmp_path: Path) -> None:
    origin.commit({"a": "1"})
    proof = tmp_path / "proof"
    for url in (f"ext::sh -c touch% {proof}", f"--upload-pack=touch {proof};git-upload-pack", f"-u{proof}"):
        with pytest.raises(ProtocolError):
            mirror.fetch(url, "main")
    for ref in (f"--upload-pack=touch {proof}", "+refs/*:refs/*"):
        with pytest.raises(ProtocolError):
            mirror.fetch(str(origin.path), ref)
    assert not proof.exists()


def test_hooks_and_the_monitor_of_the_mirror_do_not_run(
    origin: Origin, mirror: Mirror, paths: ServicePaths, tmp_path: Path
) -> None:
    mirror.create()
    proof = tmp_path / "proof"
    (paths.repo / "hooks").mkdir()
    hook = paths.repo / "hooks" / "reference-transaction"
    hook.write_text(f"#!/bin/sh\ntouch {proof}\n")
    hook.chmod(0o755)
    with (paths.repo / "config").open("a") as file:
        file.write(f'[core]\n\tfsmonitor = "touch {proof}"\n')
    origin.commit({"a": "1"})
    mirror.fetch(str(origin.path), "main")
    assert not proof.exists()


def test_what_a_killed_git_left_is_no_obstacle(origin: Origin, mirror: Mirror, paths: ServicePaths) -> None:
    origin.commit({"a": "1"})
    mirror.fetch(str(origin.path), "main")
    for name in (
        "shallow.lock",
        "packed-refs.lock",
        "config.lock",
        "refs/lightship/heads/main.lock",
        "objects/pack/tmp_pack_x",
        "objects/pack/pack-1.keep",
    ):
        (paths.repo / name).touch()
    tip = origin.commit({"a": "2"})
    assert mirror.fetch(str(origin.path), "main") == tip
    assert not list(paths.repo.rglob("*.lock"))
    assert not list(paths.repo.rglob("tmp_*"))


def test_a_git_that_outlived_its_agent_is_ended(origin: Origin, mirror: Mirror, paths: ServicePaths) -> None:
    origin.commit({"a": "1"})
    mirror.create()
    command = gitcommand.local(paths.repo, "cat-file", "--batch")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENV) as orphan:
        assert orphan.stdin is not None and orphan.stdout is not None
        orphan.stdin.write(b"HEAD\n")
        orphan.stdin.flush()
        assert orphan.stdout.readline() == b"HEAD missing\n"  # it runs: its arguments are there to be seen
        (paths.repo / "shallow.lock").touch()
        mirror.fetch(str(origin.path), "main")
        assert orphan.wait(5) == -signal.SIGKILL


KILLED = """
import sys; from lightship_agent.git import Mirror; from lightship_agent.paths import ServicePaths
Mirror(ServicePaths.at(sys.argv[1], "shop")).fetch(sys.argv[2], "main")
"""


@pytest.mark.parametrize("point", ["mirror.create", "fetch.start", "fetch.done"])
def test_a_kill_around_a_fetch_needs_no_repair(origin: Origin, mirror: Mirror, paths: ServicePaths, point: str) -> None:
    tip = origin.commit({"a": "1"})
    env = {**os.environ, **ENV, "LIGHTSHIP_TESTING": "1", "LIGHTSHIP_FAILPOINTS": f"{point}=kill"}
    done = subprocess.run([sys.executable, "-c", KILLED, str(paths.root), str(origin.path)], env=env, check=False)
    assert done.returncode == -signal.SIGKILL
    assert mirror.fetch(str(origin.path), "main") == tip


def test_between_any_two_commits_it_is_known_which_was_built_upon_which(origin: Origin, mirror: Mirror) -> None:
    other = origin.commit({"a": "1"})

    def made(*parents: str) -> str:
        words = [word for parent in parents for word in ("-p", parent)]
        return origin.git("commit-tree", f"{other}^{{tree}}", *words, "-m", f"upon {parents}")

    root = made()
    left, right = made(root), made(root, other)
    merged, joined = made(left, right), made(right, other)
    top = made(merged, joined)
    origin.git("update-ref", "refs/heads/main", top)
    mirror.fetch(str(origin.path), "main")
    for a, b in itertools.permutations([other, root, left, right, merged, joined, top], 2):
        between = mirror.log(a, b)
        listed = origin.git("rev-list", f"{a}..{b}").split()
        assert sorted(one.commit for one in between.commits) == sorted(listed)
        assert (between.count, between.ahead) == (len(listed), mirror.is_ancestor(a, b)), (a, b)


def test_commits_are_described(origin: Origin, mirror: Mirror) -> None:
    first = origin.commit({"a": "1"}, "first\n\nbody")
    origin.commit({"a": "2"}, "second \x1b[2J")
    third = origin.commit({"b": "2", "d/\n\u00fc": "x", "a": None}, "third")
    mirror.fetch(str(origin.path), "main")
    info = mirror.commit_info(first)
    assert (info.commit, info.subject, info.author, info.time) == (first, "first", "Ann", 1700000000)
    for limit, shown in ((50, ["third", "second \x1b[2J"]), (2, ["third", "second \x1b[2J"]), (1, ["third"])):
        between = mirror.log(first, third, limit)
        assert [one.subject for one in between.commits] == shown
        assert (between.count, between.ahead) == (2, True)
    back = mirror.log(third, first)
    assert (list(back.commits), back.count, back.ahead) == ([], 0, False)
    assert mirror.is_ancestor(first, third)
    assert not mirror.is_ancestor(third, first)
    found = {change.path: change.status for change in mirror.changed(first, third)}
    assert found == {"a": "D", "b": "A", "d/\n\u00fc": "A"}
    assert mirror.changed(first, first) == []
    with pytest.raises(AgentFailure):
        mirror.commit_info("1" * 40)


def test_infrastructure_is_found_by_patterns(origin: Origin, mirror: Mirror) -> None:
    commit = origin.commit({"Dockerfile": "x", "docker/a/b.conf": "y", "app/requirements.txt": "z", "app/x.py": "p"})
    mirror.fetch(str(origin.path), "main")
    found = mirror.infra_files(commit, ["Dockerfile", "docker/**", "requirements*.txt"])
    assert sorted(found) == ["Dockerfile", "app/requirements.txt", "docker/a/b.conf"]
    assert all(len(oid) == 40 for oid in found.values())
    assert mirror.infra_files(commit, []) == {}


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("Dockerfile", "a/b/Dockerfile", True),
        ("Dockerfile", "Dockerfile.old", False),
        ("/Dockerfile", "a/Dockerfile", False),
        ("/Dockerfile", "Dockerfile", True),
        ("*.txt", "a/b.txt", True),
        ("a/*.txt", "a/b/c.txt", False),
        ("a/**/c.txt", "a/c.txt", True),
        ("a/**/c.txt", "a/x/y/c.txt", True),
        ("**/c.txt", "c.txt", True),
        ("a/**", "a/b/c", True),
        ("a/**", "ab/c", False),
        ("docker/", "docker/x/y", True),
        ("docker", "x/docker/y", True),
        ("f[0-9].cfg", "f1.cfg", True),
        ("f[!0-9].cfg", "f1.cfg", False),
        ("f[", "f[", True),
        ("f[z-a]", "f[z-a]", True),
        ("a.c", "abc", False),
        ("a?c", "a/c", False),
        ("*", "a\nb", True),
    ],
)
def test_the_rule_of_patterns(pattern: str, path: str, expected: bool) -> None:
    assert (git.glob_match(pattern).fullmatch(path) is not None) is expected


def test_many_blobs_come_from_one_process(origin: Origin, mirror: Mirror) -> None:
    contents = {f"f{number}": f"{number}\n" * number for number in range(520)} | {"big": "x" * 3_000_000}
    commit = origin.commit(dict(contents))
    mirror.fetch(str(origin.path), "main")
    entries = mirror.entries(commit)
    with mirror.objects() as objects:
        for (path, _), content in zip(entries.items(), objects.read([e[1] for e in entries.values()]), strict=True):
            assert b"".join(content).decode() == contents[path.decode()]
        with pytest.raises(AgentFailure):
            next(objects.read(["1" * 40]))


@pytest.mark.parametrize("old_git", [False, True])
def test_many_packs_are_united_and_nothing_is_lost(
    origin: Origin, mirror: Mirror, monkeypatch: pytest.MonkeyPatch, old_git: bool
) -> None:
    monkeypatch.setattr(gitcommand, "MANY_PACKS", 3)
    if old_git:
        # A git that does not know the option ends with the status of wrong usage.
        command = mirror.command()
        known = mirror._run
        monkeypatch.setattr(
            mirror,
            "_run",
            lambda found, **how: known([*command, "repack", "--no-such-option"] if "repack" in found else found, **how),
        )
    commits = []
    for number in range(5):
        commits.append(origin.commit({"a": f"{number}", f"f{number}": "x"}))
        mirror.fetch(str(origin.path), "main")
    packs = mirror._repo / "objects" / "pack"
    assert len(list(packs.glob("*.pack"))) == 5
    mirror.maintain()
    assert len(list(packs.glob("*.pack"))) <= 2
    assert all(mirror.has_commit(commit) for commit in commits)
    mirror.maintain()
    assert len(list(packs.glob("*.pack"))) <= 2
