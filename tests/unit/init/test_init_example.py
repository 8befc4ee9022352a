"""The example service is what init writes, and the files agree with one another."""

from __future__ import annotations

import configparser
import json
import shutil
from pathlib import Path

import pytest
from typer import Typer
from typer.testing import CliRunner

from lightship.cli.init import init
from lightship.config.load import load
from lightship.operations.init import init_project

SHOP = Path(__file__).resolve().parents[3] / "examples" / "shop"
SAME = ("Dockerfile", ".dockerignore", "deploy/supervisord.conf", "deploy/uwsgi.ini")


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    return Path(
        shutil.copytree(SHOP, tmp_path / "shop", ignore=shutil.ignore_patterns("__pycache__", "media", ".lightship"))
    )


def supervisor(reload: str, top: Path) -> configparser.RawConfigParser:
    for name in ("lightship.yml", *SAME):
        (top / name).unlink(missing_ok=True)
    init_project(top, reload=reload)  # type: ignore[arg-type]
    parser = configparser.RawConfigParser(inline_comment_prefixes=(";",))
    parser.read_string((top / "deploy/supervisord.conf").read_text())
    return parser


def test_init_has_nothing_to_add_to_the_example(shop: Path) -> None:
    assert init_project(shop).written == ()


def test_the_example_is_what_init_writes(shop: Path) -> None:
    for name in ("lightship.yml", *SAME):
        (shop / name).unlink()
    assert set(init_project(shop).written) >= {"lightship.yml", *SAME}
    for name in SAME:
        assert (shop / name).read_text() == (SHOP / name).read_text(), name
    made, theirs = (load(top / "lightship.yml").services["shop"] for top in (shop, SHOP))
    different = {key for key in made.model_dump() if getattr(made, key) != getattr(theirs, key)}
    assert different <= {"repository", "branch", "env", "secrets"}


def test_slots_can_finish_their_requests(shop: Path) -> None:
    slot = supervisor("swap", shop)["fcgi-program:slot"]
    assert slot["stopasgroup"] == "false"
    assert slot["killasgroup"] == "true"
    assert slot["stopsignal"] == "TERM"
    assert slot["numprocs"] == "3"
    ini = (shop / "deploy/uwsgi.ini").read_text()
    assert "die-on-term =" not in ini
    assert "hook-master-start = unix_signal:15 gracefully_kill_them_all" in ini
    assert "socket =" not in ini.replace("http-socket =", "").replace("unix", "")
    harakiri = next(int(line.partition("=")[2]) for line in ini.splitlines() if line.startswith("harakiri ="))
    assert harakiri <= int(slot["stopwaitsecs"])


@pytest.mark.parametrize("reload", ["touch", "chain"])
def test_one_uwsgi_that_reloads_itself(shop: Path, reload: str) -> None:
    found = supervisor(reload, shop)
    assert "launcher.py main" in found["program:main"]["command"]
    assert "program:keeper" not in found
    ini = (shop / "deploy/uwsgi.ini").read_text()
    assert ("touch-chain-reload" if reload == "chain" else "touch-reload") + " = /srv/lightship/code/reload" in ini
    assert ("lazy-apps = true" in ini) == (reload == "chain")
    assert load(shop / "lightship.yml").services["shop"].reload == reload


def test_the_command(shop: Path) -> None:
    program = Typer()
    program.command()(init)
    run = CliRunner().invoke
    shown = run(program, [str(shop)])
    assert shown.exit_code == 0
    assert "nothing to write" in shown.output
    (shop / "Dockerfile").unlink()
    shown = run(program, [str(shop), "--json", "--dry-run"])
    assert shown.exit_code == 0
    assert json.loads(shown.output)["result"]["written"] == ["Dockerfile"]
    assert not (shop / "Dockerfile").exists()
    shown = run(program, [str(shop / "shop"), "--json"])
    assert shown.exit_code == 3
    assert json.loads(shown.output)["error"]["code"] == "init-nothing-found"
    assert run(program, [str(shop), "--reload", "sideways"]).exit_code == 2
