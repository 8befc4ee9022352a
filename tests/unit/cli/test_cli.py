"""The command line itself: start-up, help, usage errors, and the reference page."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lightship.cli.main import COMMANDS, load_command, main_status
from lightship.cli.reference import missing_help, reference

PAGE = Path(__file__).resolve().parents[3] / "docs" / "reference" / "cli.md"
# What only some commands need; the list of commands must not pay for it.
HEAVY = ("pydantic", "rich", "asyncio", "yaml", "lightship.config.schema", "lightship.operations")


def test_the_reference_page_is_fresh() -> None:
    assert PAGE.read_text("utf-8") == reference(), "run: python -m lightship.cli.reference > docs/reference/cli.md"


def test_every_command_and_option_has_help() -> None:
    assert missing_help() == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_can_be_imported_and_says_what_it_does(name: str) -> None:
    assert load_command(name).help


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_the_start_imports_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys; from lightship.cli.main import main_status\n"
        f"main_status({arguments!r})\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert done.stderr.strip() == "[]"


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main_status(["deplyo"]) == 2
    assert "did you mean deploy?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["deploy", "--frobnicate"],
        ["deploy", "--kind", "sideways"],
        ["deploy", "--wait", "-1"],
        ["logs", "--lines", "many"],
        ["exec"],
        ["deploy", "--config", "/does/not/exist.yml"],
    ],
)
def test_a_wrong_command_line_is_a_usage_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main_status(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert main_status([*arguments, "--json"]) == 2
    output = capsys.readouterr()
    document = json.loads(output.out)
    assert (document["version"], document["ok"], document["exit_status"]) == (1, False, 2)
    assert output.err == ""


def test_an_unexpected_error_is_short(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("surprise \x1b[2J")

    monkeypatch.setattr("lightship.operations.context.load_context", broken)
    monkeypatch.delenv("LIGHTSHIP_DEBUG", raising=False)
    assert main_status(["status"]) == 1
    error = capsys.readouterr().err
    assert "unexpected RuntimeError: surprise \\x1b[2J" in error
    assert "Traceback" not in error
    monkeypatch.setenv("LIGHTSHIP_DEBUG", "1")
    assert main_status(["status"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main_status([]) == 2
    assert "Commands:" in capsys.readouterr().out


def test_the_program_ends_with_the_exit_status(tmp_path: Path) -> None:
    script = "from lightship.cli.entry import run; run()"
    done = subprocess.run(
        [sys.executable, "-c", script, "status"], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 2
    assert "no lightship.yml" in done.stderr
