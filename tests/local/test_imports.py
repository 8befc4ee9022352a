"""Imports point down, and the agent stands alone: read off the sources, whether or not a line is ever run."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parent.parent.parent / "src"
CONTROLLER = sorted((SRC / "lightship").rglob("*.py"))
AGENT = sorted((SRC / "lightship_agent").rglob("*.py"))

# What a part may import of lightship, beside itself.
ANYWHERE = {"errors", "model", "result", "cache", "failpoints"}
ALLOWED = {
    "errors": set(),
    "cache": {"errors"},
    "failpoints": {"errors"},
    "model": {"errors"},
    "result": {"errors", "model"},
    "config": ANYWHERE,
    # What the fingerprint is taken of, and what a repository may be called, is said by the configuration.
    "source": ANYWHERE | {"config"},
    "plan": ANYWHERE,
    "image": ANYWHERE | {"config"},
    "templates": ANYWHERE,
    "transport": ANYWHERE,
    "pool": ANYWHERE | {"transport"},
    "rollout": ANYWHERE | {"transport", "plan"},
    # Spans are made of a rollout's events, and of nothing that makes them.
    "trace": ANYWHERE | {"rollout"},
    "operations": ANYWHERE
    | {"rollout", "transport", "pool", "config", "source", "plan", "image", "templates", "trace"},
    # A way in beside the command line: what Ansible's plugins call.
    "playbook": ANYWHERE | {"operations", "rollout", "transport", "config", "source", "plan", "image", "trace"},
    "output": ANYWHERE | {"operations", "rollout", "plan", "config", "trace"},
    "cli": ANYWHERE | {"operations", "output", "config", "rollout", "plan", "trace"},
    "hub": ANYWHERE | {"operations", "output", "config", "rollout", "plan"},
}
# Both sides keep repositories of their own, by the same rules: they are written once.
KNOWN_OF_THE_AGENT = {
    "lightship_agent",
    "lightship_agent.protocol",
    "lightship_agent.gitcommand",
    "lightship_agent.records",
}
INPUT_OUTPUT = {
    "asyncio", "io", "os", "pathlib", "shutil", "socket", "subprocess", "tempfile", "threading", "time", "urllib",
}  # fmt: skip


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, anywhere in it, by its full name."""
    package = path.relative_to(SRC).with_suffix("").parts
    package = package[:-1]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                # `from package import module` imports the module, `from module import name` the module alone.
                inner = f"{module}.{alias.name}"
                target = SRC.joinpath(*inner.split("."))
                yield (inner if target.is_dir() or target.with_suffix(".py").exists() else module), node.lineno


def part_of(path: Path) -> str:
    """Which part of the controller a file belongs to."""
    inside = path.relative_to(SRC / "lightship").parts
    return inside[0].removesuffix(".py")


def shown(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(SRC)) for path in paths]


@pytest.mark.parametrize("path", CONTROLLER, ids=shown(CONTROLLER))
def test_the_controller_imports_only_downwards(path: Path) -> None:
    part = part_of(path)
    if part == "__init__":
        return
    assert part in ALLOWED, f"{part} has no place in the picture of the imports yet"
    for name, line in imports(path):
        if not name.startswith("lightship."):
            continue
        other = name.split(".")[1]
        assert other == part or other in ALLOWED[part], f"{path}:{line}: {part} imports {name}"


@pytest.mark.parametrize("path", CONTROLLER, ids=shown(CONTROLLER))
def test_of_the_agent_the_controller_knows_only_the_protocol_how_git_is_run_and_its_records(path: Path) -> None:
    for name, line in imports(path):
        if name.split(".")[0] == "lightship_agent":
            assert name in KNOWN_OF_THE_AGENT, f"{path}:{line}: imports {name}"


@pytest.mark.parametrize("path", AGENT, ids=shown(AGENT))
def test_the_agent_needs_nothing_but_python(path: Path) -> None:
    # boot/ is what runs inside the container: beside each other, and under uWSGI, which brings a module of its own.
    own = {"lightship_agent", "uwsgi", "keeper"} if "boot" in path.parts else {"lightship_agent"}
    for name, line in imports(path):
        first = name.split(".")[0]
        assert first in sys.stdlib_module_names or first in own, f"{path}:{line}: imports {name}"


def test_the_plan_has_no_input_or_output() -> None:
    for path in (SRC / "lightship" / "plan").rglob("*.py"):
        for name, line in imports(path):
            assert name.split(".")[0] not in INPUT_OUTPUT, f"{path}:{line}: imports {name}"
