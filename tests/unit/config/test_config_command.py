"""``lightship config``: what it prints and how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from lightship.cli.config import app

GOOD = """\
defaults:
  env: {LANG: C.UTF-8}
services:
  shop:
    repository: https://u:tok3n@git.example/shop.git
    secrets: {KEY: {env: SHOP_KEY}}
  other: {repository: /srv/git/other}
"""


def run(path: Path, *args: str) -> Result:
    return CliRunner().invoke(app, [*args, "--config", str(path)], env={"SHOP_KEY": "hunter2"})


def envelope(result: Result) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(result.stdout)
    assert set(found) >= {"version", "command", "ok", "exit_status", "result", "error"}
    assert found["version"] == 1
    assert found["exit_status"] == result.exit_code
    return found


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "lightship.yml"
    path.write_text(GOOD)
    return path


def test_check(good: Path) -> None:
    result = run(good, "check")
    assert (result.exit_code, result.stdout) == (0, "lightship.yml: 2 services, no problems\n")
    found = envelope(run(good, "check", "--json"))
    assert (found["command"], found["ok"], found["error"]) == ("config check", True, None)
    assert found["result"]["services"] == ["other", "shop"]


def test_check_tells_all_problems(tmp_path: Path) -> None:
    path = tmp_path / "lightship.yml"
    path.write_text('services: {shop: {repository: "ext::sh -c x", brnach: "\\e]52;c;Y3VybA==\\a", "\\e[2J": 1}}')
    result = run(path, "check")
    assert result.exit_code == 2
    assert "did you mean branch?" in result.stderr
    assert "lightship.yml:1:31: services.shop.repository: 'ext::sh -c x': must be" in result.stderr
    assert "\x1b" not in result.output
    found = envelope(run(path, "check", "--json"))
    assert not found["ok"]
    assert found["error"]["code"] == "configuration"
    assert len(found["error"]["detail"]["problems"]) == 3


def test_check_of_a_missing_file(tmp_path: Path) -> None:
    assert run(tmp_path / "x.yml", "check").exit_code == 2
    assert envelope(run(tmp_path / "x.yml", "check", "--json"))["exit_status"] == 2


def test_show(good: Path) -> None:
    result = run(good, "show")
    assert result.exit_code == 0
    assert "repository: https://***@git.example/shop.git" in result.stdout
    assert "env: SHOP_KEY" in result.stdout
    assert "LANG: C.UTF-8" in result.stdout
    found = envelope(run(good, "show", "shop", "--json"))
    assert list(found["result"]["services"]) == ["shop"]
    assert found["result"]["services"]["shop"]["keep"] == 5
    for text in (result.output, json.dumps(found)):
        assert "tok3n" not in text
        assert "hunter2" not in text


def test_show_of_an_unknown_service(good: Path) -> None:
    result = run(good, "show", "shp")
    assert result.exit_code == 2
    assert "hint: did you mean shop?" in result.stderr


def test_schema(good: Path) -> None:
    schema = json.loads(run(good, "schema").stdout)
    assert schema["properties"]["services"]
    assert envelope(run(good, "schema", "--json"))["result"] == schema
