"""What a Django settings module says, read from its source.

Nothing is imported or executed: the files belong to the user and may do anything. Only what is written down as a
constant, a path built from ``BASE_DIR``, or a look-up in the environment is understood; all else is unknown.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import TypeAlias

from lightship_agent.records import dataclass, field

__all__ = ["UNKNOWN", "EnvLookup", "Settings", "TreePath", "Unknown", "read_settings"]

Reader: TypeAlias = Callable[[str], str | None]
"""Gives a file's text by its path below the project, or None."""


@dataclass(frozen=True)
class Unknown:
    """A value that cannot be told without running the code."""


UNKNOWN = Unknown()


@dataclass(frozen=True)
class TreePath:
    """A path built from ``BASE_DIR``: it lies inside the project, so inside every release."""

    path: str


@dataclass(frozen=True)
class EnvLookup:
    """A value taken from an environment variable; ``default`` is None when there must be one."""

    name: str
    default: str | None = None
    required: bool = False


@dataclass(frozen=True)
class Settings:
    """A settings module and those it takes everything from."""

    values: Mapping[str, object] = field(default_factory=dict)
    environment: tuple[EnvLookup, ...] = ()
    docstring: str = ""

    def get(self, name: str) -> object:
        """The value, None when it is not set, or :data:`UNKNOWN`."""
        return self.values.get(name)


def read_settings(module: str, read: Reader) -> Settings | None:
    """The settings that ``module`` (``shop.settings``) names; None when there is no such file or it does not parse."""
    return _Reading(read).module(module, depth=0)


_DEPTH = 8


class _Reading:
    """One reading: follows ``from .base import *`` a few modules deep."""

    def __init__(self, read: Reader) -> None:
        self.read = read

    def module(self, module: str, depth: int) -> Settings | None:
        base = module.replace(".", "/")
        for path in (f"{base}.py", f"{base}/__init__.py"):
            text = self.read(path)
            if text is None:
                continue
            try:
                tree = ast.parse(text)
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                return None
            package = module if path.endswith("__init__.py") else module.rpartition(".")[0]
            return self.body(tree, package, path, depth)
        return None

    def body(self, tree: ast.Module, package: str, path: str, depth: int) -> Settings:
        values: dict[str, object] = {}
        found: list[EnvLookup] = []
        docstring = ast.get_docstring(tree) or ""
        for statement in _statements(tree.body):
            if isinstance(statement, ast.ImportFrom) and depth < _DEPTH and any(a.name == "*" for a in statement.names):
                other = self.module(_absolute(statement, package), depth + 1)
                if other is not None:
                    values.update(other.values)
                    found += other.environment
                    docstring = docstring or other.docstring
                continue
            found += _lookups(statement)
            target, node = _assignment(statement)
            if target and node is not None:
                values[target] = _told(node, values, path)
        return Settings(values, tuple(dict.fromkeys(found)), docstring)


def _told(node: ast.expr, values: Mapping[str, object], path: str) -> object:
    """A setting's value. One that is computed of a single environment variable is known to come from there."""
    try:
        value = _Evaluation(values, path).value(node)
    except RecursionError:
        return UNKNOWN
    lookups = {
        found for inner in ast.walk(node) if isinstance(inner, ast.expr) and (found := _lookup(inner)) is not None
    }
    return lookups.pop() if value is UNKNOWN and len(lookups) == 1 else value


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements, those under ``try`` too, since settings often import an optional ``local``."""
    for statement in body:
        if isinstance(statement, ast.Try):
            yield from _statements(statement.body)
        else:
            yield statement


def _absolute(statement: ast.ImportFrom, package: str) -> str:
    if not statement.level:
        return statement.module or ""
    parts = package.split(".") if package else []
    kept = parts[: len(parts) - (statement.level - 1)]
    return ".".join([*kept, *([statement.module] if statement.module else [])])


def _assignment(statement: ast.stmt) -> tuple[str, ast.expr | None]:
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1 and isinstance(statement.targets[0], ast.Name):
        return statement.targets[0].id, statement.value
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        return statement.target.id, statement.value
    return "", None


def _lookups(statement: ast.stmt) -> list[EnvLookup]:
    """Every look-up in the environment within a statement."""
    return [
        found for node in ast.walk(statement) if isinstance(node, ast.expr) and (found := _lookup(node)) is not None
    ]


# os.environ.get, os.getenv; django-environ's env(...) and python-decouple's config(...).
_GETTERS = ("os.environ.get", "environ.get", "os.getenv", "getenv")
_REQUIRING = re.compile(r"(?:env|config)(?:\.(?:str|bool|int|list|db|url|db_url|json|float|tuple|path))?")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return ""


def _lookup(node: ast.expr) -> EnvLookup | None:
    if isinstance(node, ast.Subscript) and _dotted(node.value) in ("os.environ", "environ"):
        key = _text(node.slice)
        return EnvLookup(key, None, required=True) if key and _NAME.fullmatch(key) else None
    if not isinstance(node, ast.Call) or not node.args:
        return None
    called, key = _dotted(node.func), _text(node.args[0])
    if not key or not _NAME.fullmatch(key):
        return None
    given = [*node.args[1:2], *(k.value for k in node.keywords if k.arg == "default")]
    if called in _GETTERS:
        return EnvLookup(key, _text(given[0]) if given else None)
    if _REQUIRING.fullmatch(called):
        return EnvLookup(key, _text(given[0]) if given else None, required=not given)
    return None


def _text(node: ast.expr) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


class _Evaluation:
    """Values of expressions, as far as they can be told."""

    def __init__(self, known: Mapping[str, object], path: str) -> None:
        self.known = known
        self.path = path

    def value(self, node: ast.expr) -> object:  # noqa: PLR0911 - one return for each kind of expression
        lookup = _lookup(node)
        if lookup is not None:
            return lookup
        if isinstance(node, ast.Constant) and (node.value is None or isinstance(node.value, (str, bool, int))):
            return node.value
        if isinstance(node, (ast.List, ast.Tuple)):
            return tuple(self.value(item) for item in node.elts)
        if isinstance(node, ast.Dict):
            keys = [_text(key) if key is not None else None for key in node.keys]
            return {key: self.value(item) for key, item in zip(keys, node.values, strict=True) if key is not None}
        if isinstance(node, ast.Name):
            return TreePath(self.path) if node.id == "__file__" else self.known.get(node.id, UNKNOWN)
        if isinstance(node, ast.BinOp):
            return self.operation(node)
        if isinstance(node, (ast.Call, ast.Attribute, ast.Subscript)):
            return self.path_value(node)
        return UNKNOWN

    def operation(self, node: ast.BinOp) -> object:
        left, right = self.value(node.left), self.value(node.right)
        if isinstance(node.op, ast.Div):
            return _below(left, right)
        if isinstance(node.op, ast.Add) and isinstance(left, tuple) and isinstance(right, tuple):
            return left + right
        return UNKNOWN

    def path_value(self, node: ast.expr) -> object:
        """Paths: ``Path(__file__).resolve().parent.parent``, ``os.path.join(BASE_DIR, "media")`` and the like."""
        if isinstance(node, ast.Call):
            return self.call(node)
        if isinstance(node, ast.Attribute) and node.attr == "parent":
            return _parent(self.value(node.value), 1)
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute) and node.value.attr == "parents":
            index = self.value(node.slice)
            return _parent(self.value(node.value.value), index + 1) if isinstance(index, int) else UNKNOWN
        return UNKNOWN

    def call(self, node: ast.Call) -> object:
        called = _dotted(node.func)
        first = node.args[0] if node.args else None
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("resolve", "absolute", "as_posix"):
            return self.value(node.func.value)
        if called == "environ.Path" or first is None:
            return UNKNOWN
        if called in ("Path", "pathlib.Path", "os.path.abspath", "os.path.realpath", "str", "os.fspath"):
            return self.value(first)
        if called == "os.path.dirname":
            inside = (
                TreePath(self.path) if isinstance(first, ast.Name) and first.id == "__file__" else self.value(first)
            )
            return _parent(inside, 1)
        if called == "os.path.join":
            joined = self.value(first)
            for part in node.args[1:]:
                joined = _below(joined, self.value(part))
            return joined
        return UNKNOWN


def _parent(value: object, levels: int) -> object:
    if not isinstance(value, TreePath):
        return UNKNOWN
    parts = PurePosixPath(value.path).parts
    return TreePath("/".join(parts[: len(parts) - levels])) if 0 < levels <= len(parts) else UNKNOWN


def _below(left: object, right: object) -> object:
    if not isinstance(right, str):
        return UNKNOWN
    if isinstance(left, TreePath):
        return (
            TreePath(f"{left.path}/{right}".strip("/")) if ".." not in right and not right.startswith("/") else UNKNOWN
        )
    return f"{left.rstrip('/')}/{right}" if isinstance(left, str) else UNKNOWN
