"""Stages and servers on the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lightship.cli.main import main_status

FILE = """
services:
  shop:
    repository: /nowhere/shop.git
    stages:
      staging: {servers: [web.invalid]}
      production: {servers: [web.invalid, b.invalid], root: /srv/production}
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "lightship.yml"
    path.write_text(FILE)
    monkeypatch.delenv("LIGHTSHIP_STAGE", raising=False)
    return path


@pytest.mark.parametrize("command", ["deploy", "plan", "rollback", "status", "releases", "logs", "exec"])
def test_every_command_asks_for_the_stage(file: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    rest = ["--", "true"] if command == "exec" else []
    assert main_status([command, "--config", str(file), "--json", *rest]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "stage"


def test_the_variable_names_the_stage(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LIGHTSHIP_STAGE", "production")
    for option, server in (((), "b.invalid"), (("--stage", "staging"), "web.invalid")):
        assert main_status(["config", "show", "--config", str(file), "--json", *option]) == 0
        shown = json.loads(capsys.readouterr().out)["result"]["services"]["shop"]
        assert shown["servers"][-1] == server


def test_a_server_that_is_not_there_is_no_server(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["status", "--stage", "production", "--server", "a.invalid", "--config", str(file), "--json"]
    assert main_status(words) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["code"], error["hint"]) == ("server", "did you mean b.invalid?")


def test_this_machine_is_reached_without_asyncssh() -> None:
    program = (
        "import sys; from lightship.operations.context import Connector; from lightship.model import Server\n"
        "import lightship.operations.deploy\n"
        "connect = Connector([Server('a', 'localhost', local=True), Server('b', 'b.invalid')])\n"
        "connect('a'); connect('b'); sys.exit('asyncssh' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
