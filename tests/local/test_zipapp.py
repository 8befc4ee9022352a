"""The agent as one file runs by itself: no package of the controller, no site packages, only Python."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import lightship_agent
from lightship.transport.zipapp import agent_bytes, agent_file

OLDEST = (3, 9)


@functools.cache
def interpreters() -> list[str]:
    """Every Python on PATH that the agent promises to run on, each version once."""
    folders = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    paths = [path for folder in folders for path in sorted(folder.glob("python3*")) if os.access(path, os.X_OK)]
    paths = [path for path in paths if re.fullmatch(r"python3(\.\d+)?", path.name)]
    found: dict[tuple[int, ...], str] = {}
    # Both processes of a run ask while they gather the tests; what pyenv puts in their place takes half a second each.
    with ThreadPoolExecutor(4) as pool:
        for path, version in zip(paths, pool.map(version_of, paths), strict=True):
            if version >= OLDEST:
                found.setdefault(version, str(path))
    return list(found.values())


def version_of(python: Path) -> tuple[int, ...]:
    """What an interpreter says that it is; nothing if it does not run."""
    asked = [str(python), "-I", "-S", "-c", "import sys; print(*sys.version_info[:2])"]
    said = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=False)
    return tuple(int(part) for part in said.stdout.split()) if said.returncode == 0 else ()


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    folder.chmod(0o700)
    return agent_file(folder)


def run(python: str, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    command = [python, "-I", "-S", *arguments]
    # An environment that holds nothing: what is on this machine's Python path must not help.
    return subprocess.run(command, capture_output=True, text=True, input=text, env={}, cwd="/", timeout=60, check=False)


def test_the_same_source_gives_the_same_bytes(agent: Path) -> None:
    assert agent_bytes() == agent.read_bytes()
    assert agent_file(agent.parent) == agent


def test_it_holds_the_agent_and_nothing_else(agent: Path) -> None:
    with zipfile.ZipFile(agent) as archive:
        names = archive.namelist()
        assert archive.testzip() is None
    assert all(name in ("__main__.py", "__main__.pyc") or name.startswith("lightship_agent/") for name in names)
    assert "lightship_agent/boot/entry.py" in names


@pytest.mark.parametrize("python", interpreters())
def test_every_module_imports_without_site_packages(python: str, agent: Path) -> None:
    with zipfile.ZipFile(agent) as archive:
        modules = sorted(
            name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            for name in archive.namelist()
            if name.endswith(".py") and name.startswith("lightship_agent/") and "/boot/" not in name
        )
    program = (
        f"import sys; sys.path.insert(0, {str(agent)!r})\nimport {', '.join(modules)}\nprint(lightship_agent.VERSION)"
    )
    done = run(python, "-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == lightship_agent.VERSION


@pytest.mark.parametrize("python", interpreters())
def test_it_holds_a_conversation(python: str, agent: Path, tmp_path: Path) -> None:
    hello = {
        "protocol": 1,
        "service": "shop",
        "root": str(tmp_path),
        "container": "shop",
        "who": "ada@example",
        "why": "test",
        "lock": False,
        "wait": 0,
    }
    requests = [{"id": 1, "op": "hello", "args": hello}, {"id": 2, "op": "bye", "args": {}}]
    done = run(python, str(agent), text="".join(json.dumps(request) + "\n" for request in requests))
    assert done.returncode == 0, done.stderr
    last = [json.loads(line) for line in done.stdout.splitlines()][-1]
    assert last["id"] == 2
    assert "result" in last
    assert "Traceback" not in done.stderr


def test_an_agent_of_the_same_version_takes_each_module_from_its_place_in_the_file(agent: Path) -> None:
    program = f"""
import sys
sys.path.insert(0, {str(agent)!r})
sys.argv[:] = [{str(agent)!r}, "--version"]
import zipimport
main = zipimport.zipimporter({str(agent)!r})
import os
os._exit = lambda status: None
exec(main.get_code("__main__"), {{"__name__": "__main__"}})
import lightship_agent
from lightship_agent import actions, builder
for module in (lightship_agent, actions, builder):
    print(type(module.__loader__).__name__, module.__file__, module.__spec__.has_location)
print(actions.__loader__.get_source("lightship_agent.actions").splitlines()[0])
"""
    done = run(sys.executable, "-c", program)
    assert done.stderr == ""
    assert done.stdout.splitlines()[1:] == [
        f"_Importer {agent}/lightship_agent/__init__.py True",
        f"_Importer {agent}/lightship_agent/actions.py True",
        f"_Importer {agent}/lightship_agent/builder.py True",
        '"""The operations of the protocol, for one service, within one conversation."""',
    ]


def test_python_is_found() -> None:
    assert shutil.which("python3")
    assert interpreters()


# What costs an agent more milliseconds at its start than a process of git, with all that it imports itself.
_HEAVY = "_hashlib ast base64 dataclasses dis hashlib inspect platform pkgutil random runpy shutil tempfile tokenize "
_HEAVY += "traceback typing zlib"
# And those of its own modules that are for what few deploys do.
_SELDOM = "builder images proxy proxy_server proxy_socket receive registry setup"


@pytest.mark.parametrize("python", interpreters())
def test_it_imports_nothing_heavy_at_its_start(agent: Path, python: str) -> None:
    code = "import sys; before = set(sys.modules); sys.path.insert(0, sys.argv[1]); import lightship_agent.__main__"
    done = run(python, "-c", f"{code}; print(*(set('{_HEAVY}'.split()) & set(sys.modules) - before))", str(agent))
    assert (done.stdout.split(), done.stderr) == ([], "")


@pytest.mark.parametrize("python", interpreters())
def test_a_conversation_imports_nothing_that_it_does_not_need(agent: Path, python: str, tmp_path: Path) -> None:
    hello = {"protocol": 1, "service": "shop", "root": str(tmp_path), "lock": True}
    requests = [{"id": 1, "op": "hello", "args": hello}, {"id": 2, "op": "status"}, {"id": 3, "op": "bye"}]
    seldom = [f"lightship_agent.{name}" for name in _SELDOM.split()]
    code = "import sys; before = set(sys.modules); sys.path.insert(0, sys.argv[1])\n"
    code += "from lightship_agent.__main__ import main; status = main()\n"
    code += f"print(*(set('{_HEAVY}'.split() + {seldom}) & set(sys.modules) - before)); sys.exit(status)"
    text = "".join(json.dumps(request) + "\n" for request in requests)
    done = run(python, "-c", code, str(agent), text=text)
    *answers, imported = done.stdout.split("\n")[:-1]
    assert "result" in json.loads(answers[-1]), answers
    assert (imported, done.stderr) == ("", "")
