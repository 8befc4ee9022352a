"""What the set-up reads off a machine: apt's sources, pip's settings; and that it trusts no stale process number."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

PROJECT = Path(__file__).resolve().parent.parent.parent
TOOLS = PROJECT / "tools"


def tool(name: str) -> ModuleType:
    """One of the programs in tools/, under a name that no other module has."""
    if str(TOOLS) not in sys.path:
        sys.path.append(str(TOOLS))
    spec = importlib.util.spec_from_file_location(f"tool_{name}", TOOLS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


base_image, engine = tool("base_image"), tool("engine")

DEB822 = """\
# a comment
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/own.gpg

Types: deb
URIs: https://elsewhere.example/packages
Suites: nodistro
Components: main

Types: deb
Enabled: no
URIs: http://off.example/debian
Suites: bookworm
Components: main
"""


def test_reads_both_formats_of_apt_sources(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d" / "debian.sources").write_text(DEB822)
    (tmp_path / "sources.list").write_text(
        "# deb http://no.example/debian bookworm main\n"
        "deb [arch=amd64 signed-by=/k.gpg] http://old.example/debian bookworm-security main # why\n"
        "deb-src http://old.example/debian bookworm main\n"
        "deb file:/local/debian bookworm main\n"
    )
    found = base_image.apt_sources(tmp_path)
    assert [source.line() for source in found] == [
        "deb [signed-by=/k.gpg] http://old.example/debian bookworm-security main",
        "deb [signed-by=/usr/share/keyrings/own.gpg] http://mirror.example/debian bookworm main contrib",
        "deb [signed-by=/usr/share/keyrings/own.gpg] http://mirror.example/debian bookworm-updates main contrib",
    ]


def test_takes_addresses_from_pip_and_leaves_paths_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nindex-url = https://index.example/simple\nextra-index-url =\n  file:///opt/x\n  https://more.example/s\n"
        "find-links = /opt/wheels\ntrusted-host = index.example\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    assert base_image.pip_settings() == (
        "[global]\nindex-url = https://index.example/simple\n"
        "extra-index-url = https://more.example/s\ntrusted-host = index.example\n"
    )
    monkeypatch.setenv("PIP_INDEX_URL", "https://other.example/simple")
    assert "index-url = https://other.example/simple\n" in base_image.pip_settings()


def test_the_wheels_are_what_the_templates_install() -> None:
    for path in (PROJECT / "src/lightship/templates/Dockerfile", PROJECT / "examples/shop/Dockerfile"):
        assert re.search(r"pip install --no-cache-dir " + re.escape(" ".join(base_image.WHEELS)), path.read_text())


def test_an_engine_of_others_is_never_taken_for_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = tmp_path / "engine.json"
    monkeypatch.setattr(engine, "RECORD", record)
    assert engine.ours() is None
    # A process of that number runs, but it is not dockerd.
    record.write_text(json.dumps({"manager": "none", "pid": os.getpid(), "started": engine.started_at(os.getpid())}))
    assert engine.ours() is None
    # It is dockerd by name, but began at another time: the number was given to another one since.
    monkeypatch.setattr(engine, "program_of", lambda _pid: "dockerd")
    assert engine.ours() is not None
    record.write_text(json.dumps({"manager": "none", "pid": os.getpid(), "started": "1"}))
    assert engine.ours() is None
    record.write_text("broken")
    assert engine.ours() is None


def test_a_process_that_nobody_collected_has_ended() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        assert engine.started_at(process.pid)
        assert engine.program_of(process.pid) == "sleep"
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert Path(f"/proc/{process.pid}/stat").exists()
        assert engine.started_at(process.pid) is None
        assert engine.program_of(process.pid) == ""


def test_without_root_it_says_what_to_do_in_one_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr(engine, "is_root", lambda: False)
    monkeypatch.setattr(engine, "ask", lambda: (False, "Cannot connect to the Docker daemon"))
    with pytest.raises(engine.TroubleError) as caught:
        engine.ensure()
    text = str(caught.value)
    assert "docker.io" in text
    assert "make unit" in text
    assert len(text.splitlines()) < 24
    monkeypatch.setattr(engine, "ask", lambda: (False, "Got permission denied while trying to connect"))
    with pytest.raises(engine.TroubleError, match="usermod"):
        engine.ensure()
