"""What a deploy tells and keeps: no secret anywhere, and nothing that could do more than be read.

One service with a secret of each source goes through deploys that succeed and that fail in every phase, and prints its
secrets wherever it can. Meanwhile the arguments of all processes of the machine are read, over and over.
"""

from __future__ import annotations

import base64
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.engine import Engine
from support.processes import ArgumentWatch
from support.repo import ENVIRONMENT
from support.site import LIGHTSHIP, Said, Site

SECRETS = {"FILE_SECRET": 'f1le-geheim "+/é', "ENV_SECRET": "env-geheim-$HOME", "COMMAND_SECRET": "c0mmand geheim'x"}
TELLS = """
import base64, os, pathlib, sys
told = [os.environ.get(name, "") for name in ("FILE_SECRET", "ENV_SECRET", "COMMAND_SECRET")]
told += [repr(told), base64.b64encode(told[0].encode()).decode(), ascii(told[0])]
"""
RAISES = TELLS + 'raise RuntimeError("cannot use " + " ".join(told))'
# Boots while nobody has put the file there, and tells its log everything.
LATER = (
    TELLS
    + 'print(told, flush=True)\nif pathlib.Path("/srv/lightship/shared/break").exists():\n    raise ValueError(told)'
)
PRINTS = TELLS + 'print("\\n".join(told))\nprint(*told, file=sys.stderr)\nsys.exit(3)'
MEMORY = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(done.returncode)
"""


def forms(value: str) -> list[str]:
    """How a secret would stand in a text: as it is, in JSON, in Python, encoded."""
    encoded = base64.b64encode(value.encode()).decode().rstrip("=")
    return [value, json.dumps(value)[1:-1], repr(value)[1:-1], ascii(value)[1:-1], encoded[:-2]]


FORMS = sorted({form for value in SECRETS.values() for form in forms(value)})


def holds_none(text: str, what: str) -> None:
    found = [form for form in FORMS if form in text]
    assert not found, f"{what}: {found} in ...{text[max(0, text.find(found[0]) - 200) :][:500]}"


@pytest.fixture(scope="module")
def watch() -> Iterator[ArgumentWatch]:
    with ArgumentWatch(*FORMS, also=("--env-file",)) as watch:
        yield watch


@pytest.fixture(scope="module")
def site(engine: Engine, tmp_path_factory: pytest.TempPathFactory, watch: ArgumentWatch) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("told")
    sources = {}
    for name in ("FILE_SECRET", "COMMAND_SECRET"):
        path = folder / name.lower()
        path.write_text(SECRETS[name])
        path.chmod(0o600)
    sources["FILE_SECRET"] = {"file": str(folder / "file_secret")}
    sources["ENV_SECRET"] = {"env": "OUR_SECRET"}
    sources["COMMAND_SECRET"] = {"command": ["cat", str(folder / "command_secret")]}
    site = Site(engine, folder / "site", settings={"secrets": sources, "env": {"PLAIN": "plain-value"}})
    site.environment["OUR_SECRET"] = SECRETS["ENV_SECRET"]
    try:
        site.change("v1", more=LATER)
        told(site.deploy("--verbose", environment={"LIGHTSHIP_DEBUG": "1"}))
        yield site
    finally:
        site.close()


def told(said: Said) -> Said:
    """What a command said, which holds no secret."""
    holds_none(said.stdout, "stdout")
    holds_none(said.stderr, "stderr")
    return said


def every_way(site: Site, *arguments: str, expect: int) -> list[Said]:
    """Run a command for programs, for people, and for whoever looks for a fault."""
    return [
        told(site.run(*arguments, "--json", expect=expect)),
        told(site.run(*arguments, "--verbose", environment={"LIGHTSHIP_DEBUG": "1"}, expect=expect)),
    ]


def test_the_service_has_its_secrets(site: Site) -> None:
    variables = json.loads(site.engine.docker("inspect", "--format", "{{json .Config.Env}}", site.container()))
    assert {f"{name}={value}" for name, value in SECRETS.items()} <= set(variables)


def test_a_traceback_that_holds_them_is_told_without(site: Site) -> None:
    site.change("v2", more=RAISES)
    refused, verbose = every_way(site, "deploy", "--retry", expect=3)
    assert "cannot use ***" in refused.error["message"]
    assert "***" in refused.error["detail"]["traceback"]
    assert "RuntimeError: cannot use ***" in verbose.stderr


def test_a_check_that_prints_them_is_told_without(site: Site) -> None:
    site.change("v3", {"prints.py": PRINTS})
    for required, expect in ((True, 3), (False, 0)):
        site.configure(checks=[{"name": "prints", "command": ["python3", "prints.py"], "required": required}])
        words = ["deploy", "--retry"] if required else ["deploy", "--retry", "--kind", "code"]
        said = every_way(site, *words, expect=expect)
        # A check that only warns holds nothing up: what it said may come too late to be told at all.
        assert "***" in said[0].stdout or not required
    site.configure(checks=[])


def test_a_build_that_fails_tells_none(site: Site) -> None:
    dockerfile = (site.repository.tree / "Dockerfile").read_text()
    site.repository.commit("broken", {"Dockerfile": dockerfile + "\nRUN env; exit 7\n"})
    told(site.deploy("--verbose", expect=3))
    site.change("mended", {"Dockerfile": dockerfile})
    told(site.deploy())


def test_a_rollback_tells_none_though_it_cannot_ask_for_them(site: Site) -> None:
    site.change("v4", more=LATER)
    told(site.deploy())
    goal = site.current
    site.change("v5")
    told(site.deploy())
    (site.home / "shared" / "break").touch()
    key = Path(site.folder.parent / "file_secret")
    key.rename(key.with_suffix(".away"))
    try:
        for said in every_way(site, "rollback", "--to", str(goal), expect=3):
            assert "***" in said.stdout + said.stderr
        assert told(site.run("status", "--json", expect=0)).result
    finally:
        key.with_suffix(".away").rename(key)
        (site.home / "shared" / "break").unlink()


def test_the_services_log_and_commands_in_it_are_told_without(site: Site) -> None:
    told(site.run("logs", "--lines", "1000", expect=0))
    shown = told(site.run("exec", "--", "env", expect=0)).stdout
    assert "FILE_SECRET=***" in shown
    assert "PLAIN=plain-value" in shown
    told(site.run("exec", "--json", "--", "env", expect=0))


def test_a_secret_that_was_changed_is_not_told_of_either(site: Site) -> None:
    site.environment["OUR_SECRET"] = "another-geheim-one"
    site.change("v6", more=RAISES)
    # The new value is a container deploy; the code does not import in it.
    told(site.deploy("--retry", expect=3))
    said = site.run("exec", "--", "env", expect=0)
    told(said)
    assert "ENV_SECRET=***" in said.stdout
    site.environment["OUR_SECRET"] = SECRETS["ENV_SECRET"]


def test_no_file_but_the_variables_own_holds_them(site: Site) -> None:
    kept = []
    for path in sorted(site.home.rglob("*")):
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or "repo.git" in path.parts:
            continue
        if path.name == "env" or path.name.startswith("env."):
            assert stat.S_IMODE(status.st_mode) == 0o600
            assert status.st_uid == 0
            kept.append(path)
        # What the container itself wrote of its own failure is the container's, and it has the secrets anyway.
        elif "run" not in path.relative_to(site.home).parts:
            holds_none(path.read_bytes().decode("utf-8", "replace"), str(path))
    assert kept
    assert stat.S_IMODE((site.home / "state").stat().st_mode) == 0o700


def test_no_label_and_no_argument_of_the_container_holds_them(site: Site) -> None:
    for name in site.containers():
        found = json.loads(site.engine.docker("inspect", name))[0]
        found["Config"].pop("Env")
        holds_none(json.dumps(found, ensure_ascii=False), name)


def test_no_process_ever_had_them_in_its_arguments(site: Site, watch: ArgumentWatch) -> None:
    assert watch.also_seen == {"--env-file"}, "the watch did not see the container's variables handed over"
    assert watch.rounds > 1000
    assert watch.found == []


HOSTILE = "\x1b]52;c;Y3VybA==\x07 \x1b[2J\x1b[HDeploy OK \u202egnp.exe \u2066"


def test_hostile_commits_are_shown_inert(site: Site) -> None:
    for name in ("\x1b[2J\x1b[HDeploy OK", "\u202egnp.exe", "new\nline"):
        (site.repository.tree / name).write_text("x")
    (Path(os.fsdecode(os.fsencode(site.repository.tree) + b"/\xff\xfe"))).write_text("x")
    message = site.folder / "message"
    message.write_bytes(HOSTILE.encode() + b" \xff")
    site.change("v7")
    author = [f"--author={HOSTILE} <a@example.org>", "-c", "i18n.commitEncoding=UTF-8"]
    git = ["git", "-C", str(site.repository.tree), *author[1:], "commit", "--quiet", "--amend", "-F", str(message)]
    for command in (["git", "-C", str(site.repository.tree), "add", "--all"], [*git, author[0]]):
        subprocess.run(command, env={**os.environ, **ENVIRONMENT}, check=True, capture_output=True)
    site.repository.push()
    for words in (["plan"], ["deploy", "--verbose"], ["status"], ["releases"]):
        said = site.run(*words, expect=0)
        assert (said.stdout + said.stderr).replace("\n", "").isprintable(), words
        if words[0] != "deploy":
            assert "\\x1b[2J" in said.stdout
            said = site.run(*words, "--json", expect=0)
            assert said.stdout.isascii()
            assert "Deploy OK" in json.dumps(said.result)


def test_a_line_of_200_mb_costs_little_memory(site: Site) -> None:
    program = "import sys\nfor _ in range(200): sys.stdout.write('a' * 1000000)\nsys.exit(3)"
    site.change("v8", {"long.py": program})
    site.configure(checks=[{"name": "long", "command": ["python3", "long.py"], "timeout": 120}])
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(LIGHTSHIP), "deploy", "--json"],
        cwd=site.folder, env={**os.environ, **site.environment},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert len(done.stdout) < 200_000
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "check-failed"
    assert error["detail"]["output"].endswith("aaa")
    # In KiB, of the largest process of all that the deploy started.
    assert int(done.stderr.splitlines()[-1]) < 150_000
