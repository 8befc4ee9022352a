"""The agent of this machine is started ahead only for commands that ask servers, and none but this machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lightship.operations.ahead import looks_local

LOCAL = "services:\n  shop:\n    app: shop.wsgi\n"


def written(folder: Path, text: str = LOCAL) -> Path:
    (folder / "lightship.yml").write_text(text)
    return folder


@pytest.mark.parametrize("command", ["deploy", "plan", "rollback", "status", "releases"])
def test_a_command_that_asks_this_machine(command: str, tmp_path: Path) -> None:
    assert looks_local([command, "shop", "--json"], written(tmp_path))
    (tmp_path / "deeper").mkdir()
    assert looks_local([command], tmp_path / "deeper")


@pytest.mark.parametrize("words", [[], ["init"], ["config", "check"], ["deploy", "--help"], ["--help"], ["logs"]])
def test_one_that_does_not(words: list[str], tmp_path: Path) -> None:
    assert not looks_local(words, written(tmp_path))


@pytest.mark.parametrize(
    ("line", "local"),
    [
        ("    servers: [local]", True),
        ("    # servers: [deploy@web1.example]", True),
        ("    servers: [deploy@web1.example]", False),
        ("    servers: [local, web1.example]", False),
        ("    servers:\n      - local", False),
        ("    inventory: hosts.yml", False),
    ],
)
def test_it_is_a_look_at_the_text_of_the_file(line: str, local: bool, tmp_path: Path) -> None:
    assert looks_local(["deploy"], written(tmp_path, f"{LOCAL}{line}\n")) is local


def test_the_file_that_is_named_is_the_one_that_is_looked_at(tmp_path: Path) -> None:
    other = tmp_path / "other.yml"
    other.write_text(LOCAL + "    inventory: hosts.yml\n")
    written(tmp_path)
    assert not looks_local(["deploy", "--config", str(other)], tmp_path)
    assert not looks_local(["deploy", "-c", str(tmp_path / "none.yml")], tmp_path)
    assert not looks_local(["deploy"], Path("/"))


def test_an_agent_that_nobody_speaks_to_ends_with_the_command(tmp_path: Path) -> None:
    """The command is refused before it asks any server; its agent has been started by then."""
    script = (
        "import sys; from lightship.transport import launch; from lightship.cli.entry import run\n"
        "started = launch._popen\n"
        "def told(*args):\n"
        "    process = started(*args)\n"
        "    print('agent', process.pid, file=sys.stderr, flush=True)\n"
        "    return process\n"
        "launch._popen = told\n"
        "sys.argv = ['lightship', 'deploy', '--ref', '-x']\n"
        "run()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=written(tmp_path), capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2, done.stderr
    [pid] = [int(line.split()[1]) for line in done.stderr.splitlines() if line.startswith("agent ")]
    deadline = 100
    while (path := Path(f"/proc/{pid}/stat")).exists() and path.read_text().rpartition(")")[2].split()[0] not in "ZX":
        deadline -= 1
        assert deadline, "the agent waits for somebody who is gone"
        __import__("time").sleep(0.1)
