"""Hostile words to the command line and in lightship.yml: exit status 2, told why, nothing run, nothing written.

Every program that a command could start is a stand-in that leaves a mark; every file below the test's own folder is
held against what was there before.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from lightship.cli.main import main_status
from lightship.config.rules import COMMIT, REF, RuleError

REFS = [
    "--upload-pack=touch /tmp/p;git-upload-pack",
    "--exec=touch /tmp/p",
    "main; curl x.sh | sh",
    "$(id)",
    "+refs/*:refs/*",
    "HEAD@{1}",
    "a.lock",
    "../../etc",
    "/etc",
    "\u0661\u0662",
    "main\n",
    "\x1b]52;c;Y3VybA==\x07",
    "\x1b[2J\x1b[HDeploy OK",
    "\u202egnp.exe",
    "\udcff",
    "x" * 100_000,
    "",
]
REPOSITORIES = [
    "ext::sh -c touch% /tmp/pwned",
    "ssh://-oProxyCommand=touch%20x/y",
    "git@-oProxyCommand=x:y",
    "-u./payload",
    "http://u:tok3n@git.example/r",
    "https://u:to%0Ak3n@git.example/r",
    "/srv/git\n/x",
]
# What it is in lightship.yml, and the key that the error is to name.
VALUES: list[tuple[dict[str, Any], str]] = [
    *(({"branch": ref}, "branch") for ref in REFS if ref != "\udcff"),
    *(({"repository": url}, "repository") for url in REPOSITORIES),
    ({"image": "--privileged"}, "image"),
    ({"image": "web:1\n"}, "image"),
    ({"image": {"dockerfile": "../../etc/passwd"}}, "image.dockerfile"),
    ({"options": ["--privileged"]}, "options[0]"),
    ({"options": ["-v/:/host"]}, "options[0]"),
    ({"volumes": ["/var/run/docker.sock:/s"]}, "volumes[0]"),
    ({"volumes": ["-v/:/host"]}, "volumes[0]"),
    ({"env": {"A": "1\nLD_PRELOAD=/x.so"}}, "env.A"),
    ({"env": {"A=1\nLD_PRELOAD": "/x.so"}}, "env"),
    ({"root": "/etc"}, "root"),
    ({"shared": ["../../etc"]}, "shared[0]"),
    ({"ports": ["\u0668\u0660:80"]}, "ports[0]"),
    ({"app": "shop.wsgi:application()"}, "app"),
    ({"servers": ["-oProxyCommand=x"]}, "servers[0]"),
]
DOCUMENTS = {
    "a service's name": ('services: {"web\\n": {repository: /srv/git/r}}', "services"),
    "an option for a name": ("services: {--privileged: {repository: /srv/git/r}}", "services"),
    "a Python object": (
        'services: {web: {repository: !!python/object/apply:os.system ["touch CANARY"]}}',
        "are not allowed",
    ),
    "a truth for a branch": ("services: {web: {repository: /srv/git/r, branch: on}}", "branch"),
    "an octal number": ("services: {web: {repository: /srv/git/r, branch: 0123456}}", "branch"),
    "a key twice": ("services: {web: {repository: /srv/git/r, branch: main, branch: dev}}", "branch"),
    "an unknown key": ("services: {web: {repository: /srv/git/r, brnach: main}}", "did you mean branch?"),
    "an alias bomb": (
        "a: &a [x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"{n}: &{n} [{','.join(['*' + p] * 9)}]\n" for p, n in zip("abcdefgh", "bcdefghi", strict=True)),
        "",
    ),
    "deep nesting": ("[" * 100_000, ""),
    "bytes that are no text": ("services: {web: {repository: /srv/git/\udcff}}", ""),
    "a directory for a file": ("", ""),
}


class Ground:
    """A folder with a service, a root for it, a home, and nothing on PATH but programs that leave a mark."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.capsys = capsys
        self.canary = folder / "canary"
        for name in ("project", "home", "bin", "srv"):
            (folder / name).mkdir()
        for name in ("git", "docker", "ssh", "sh", "curl", "touch"):
            program = folder / "bin" / name
            program.write_text(f'#!/bin/sh\necho {name} "$@" >>{self.canary}\nexit 1\n')
            program.chmod(0o755)
        self.configure()

    def configure(self, **keys: Any) -> None:
        service = {"repository": "/srv/git/shop.git", "root": str(self.folder / "srv"), **keys}
        self.write(json.dumps({"services": {"web": service}}))

    def write(self, text: str) -> None:
        (self.folder / "project" / "lightship.yml").write_bytes(text.encode("utf-8", "surrogateescape"))

    def snapshot(self) -> dict[str, tuple[int, int, bytes]]:
        found = {}
        for path in sorted(self.folder.rglob("*")):
            status = path.lstat()
            content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
            found[str(path)] = (status.st_mode, status.st_mtime_ns, content)
        return found

    def refused(self, *arguments: str) -> dict[str, Any]:
        """Run a command that is to be refused, for people and for programs; what it told programs."""
        before = self.snapshot()
        assert main_status(arguments) == 2
        output = self.capsys.readouterr()
        assert output.out == ""
        assert output.err.startswith("error: ")
        assert output.err.replace("\n", "").isprintable()
        assert len(output.err) < 8000
        assert main_status([arguments[0], "--json", *arguments[1:]]) == 2
        output = self.capsys.readouterr()
        assert output.err == ""
        assert output.out.isascii()
        assert self.snapshot() == before
        assert not self.canary.exists()
        error: dict[str, Any] = json.loads(output.out)["error"]
        return error


@pytest.fixture
def ground(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Ground]:
    made = Ground(tmp_path, capsys)
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home" / "cache"))
    yield made


def test_the_ground_shows_what_is_run_and_written(ground: Ground) -> None:
    before = ground.snapshot()
    assert main_status(["deploy"]) == 3
    assert "git ls-remote" in ground.canary.read_text()
    assert ground.snapshot() != before


OPTIONS: dict[str, tuple[list[str], Callable[[str], object]]] = {
    "--ref": (["deploy", "--ref"], REF),
    "--ref of a plan": (["plan", "--ref"], REF),
    "--commit": (["deploy", "--commit"], COMMIT),
    "--commit of a dry run": (["deploy", "--dry-run", "--commit"], COMMIT),
    "--to": (["rollback", "--to"], COMMIT),
    "--to of a dry run": (["rollback", "--dry-run", "--to"], COMMIT),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_a_hostile_ref_commit_or_release_is_refused(ground: Ground, option: str) -> None:
    words, _ = OPTIONS[option]
    for value in REFS if option == "--ref" else REFS[::4]:
        error = ground.refused(*words[:-1], f"{words[-1]}={value}")
        assert error["message"].startswith(f"{option.split(maxsplit=1)[0]} ")
        assert "must be a " in error["message"]
        assert repr(value)[1:20] in error["message"]


@pytest.mark.parametrize("option", ["--ref", "--commit", "--to"])
def test_any_text_is_a_ref_by_the_rule_or_refused(ground: Ground, option: str) -> None:
    words, rule = OPTIONS[option]

    @settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.text(st.characters(codec=None), max_size=40))
    def check(value: str) -> None:
        try:
            rule(value)
        except RuleError:
            ground.refused(*words[:-1], f"{words[-1]}={value}")
        else:
            assume(False)

    check()


@pytest.mark.parametrize("value", ["web\n", "--privileged", "../../etc", "\x1b[2J", "/etc", "$(id)"])
def test_a_service_that_is_not_there_is_refused(ground: Ground, value: str) -> None:
    for command in ("deploy", "rollback"):
        error = ground.refused(command, "--", value)
        assert repr(value)[1:-1] in error["message"]


@pytest.mark.parametrize(("keys", "path"), VALUES, ids=lambda value: repr(value)[:60])
def test_a_hostile_value_is_refused_by_its_field_its_value_and_the_rule(
    ground: Ground, keys: dict[str, Any], path: str
) -> None:
    ground.configure(**keys)
    error = ground.refused("deploy")
    (problem,) = error["detail"]["problems"]
    assert problem["path"].startswith(f"services.web.{path}")
    assert problem["rule"]
    assert problem["value"].isprintable()
    assert "k3n" not in json.dumps(error)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_hostile_document_is_refused_in_no_time(ground: Ground, name: str) -> None:
    text, said = DOCUMENTS[name]
    if name == "a directory for a file":
        (ground.folder / "project" / "lightship.yml").unlink()
        (ground.folder / "project" / "lightship.yml").mkdir()
    else:
        ground.write(text.replace("CANARY", str(ground.canary)))
    begun = time.monotonic()
    error = ground.refused("deploy")
    assert time.monotonic() - begun < 10
    assert said in json.dumps(error)


def test_a_fifo_for_a_file_keeps_nobody_waiting(ground: Ground) -> None:
    (ground.folder / "project" / "lightship.yml").unlink()
    os.mkfifo(ground.folder / "project" / "lightship.yml")
    ground.refused("deploy")
