"""What is known of a user's project: read from its files, never by running any of them."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import tomllib
from pathlib import Path
from typing import Literal, TypeAlias

from lightship.config import rules
from lightship.config.rules import RuleError
from lightship.errors import UsageError
from lightship.operations.settings_reader import Settings, read_settings
from lightship_agent.records import dataclass, field

__all__ = ["GitFacts", "ProjectFacts", "Requirements", "Tree", "find_project"]

_LARGEST_FILE = 1_000_000
_MOST_ENTRIES = 2000

InstallKind: TypeAlias = Literal["requirements", "uv", "poetry", "pipenv", "pyproject", "none"]


@dataclass(frozen=True)
class Requirements:
    """How the project's packages are installed: the files to copy into the build, and what they name."""

    kind: InstallKind = "none"
    files: tuple[str, ...] = ()
    main: str = ""
    names: frozenset[str] = frozenset()
    """Normalised names of packages, as far as they can be told."""
    itself: bool = False
    """Whether they install the project's own code, which an image without code cannot."""
    git: bool = False
    """Whether one is fetched by git."""
    django: int = 0
    """The least Django asked for: its first number."""


@dataclass(frozen=True)
class GitFacts:
    """The repository that the project lies in."""

    top: str = ""
    remote: str = ""
    branch: str = ""


@dataclass(frozen=True)
class ProjectFacts:
    """Everything that :func:`lightship.operations.init.plan_init` decides by."""

    directory: str
    existing: frozenset[str] = frozenset()
    """Those of the files that ``init`` may write which are there."""
    own_dockerfile: bool = False
    """Whether the Dockerfile that is there is one for lightship."""
    django: bool = False
    manage_folder: str = ""
    """Where ``manage.py`` lies: empty at the top, or the name of a directory."""
    settings_module: str = ""
    production_settings: str = ""
    """A settings module for production that ``wsgi.py`` does not use by itself."""
    settings: Settings | None = None
    production: Settings | None = None
    wsgi_module: str = ""
    app: str = ""
    """A plain WSGI application that was found, or the one that was asked for."""
    frameworks: tuple[str, ...] = ()
    """Packages that the plain application's module imports."""
    routes: tuple[str, ...] = ()
    requirements: Requirements = field(default_factory=Requirements)
    python: str = ""
    python_source: str = ""
    celery: bool = False
    has_migrations: bool = False
    git: GitFacts = field(default_factory=GitFacts)
    skipped: tuple[str, ...] = ()
    """Files that were left out, because their names or kinds are not usable."""


class Tree:
    """The project's files: read with a size cap, regular files only, no link followed out of the project."""

    def __init__(self, top: Path) -> None:
        self.top = top.resolve()

    def read(self, path: str) -> str | None:
        """The text of a file, or None."""
        place = self.top / path
        try:
            if not place.resolve().is_relative_to(self.top):
                return None
            fd = os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError, RuntimeError):
            return None
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return None
            return file.read(_LARGEST_FILE).decode("utf-8", "replace").removeprefix("\ufeff")

    def names(self, folder: str = "") -> list[str]:
        """The names in a directory, sorted; none if it is not one."""
        found: list[str] = []
        try:
            with os.scandir(self.top / folder) as entries:
                for entry in entries:
                    found.append(entry.name)
                    if len(found) >= _MOST_ENTRIES:
                        break
        except (OSError, ValueError):
            return []
        return sorted(found)

    def folders(self) -> list[str]:
        """Directories at the top that may be packages or hold the project."""
        return [
            n for n in self.names() if n.isidentifier() and (self.top / n).is_dir() and not (self.top / n).is_symlink()
        ]


def find_project(path: Path, app: str = "", written: tuple[str, ...] = ()) -> ProjectFacts:
    """What there is in ``path``; ``app`` is the application that the user names, ``written`` what init may write."""
    if not path.is_dir():
        raise UsageError(f"{path} is not a directory", hint="Run init at the top of your project.")
    tree = Tree(path)
    requirements, skipped = _requirements(tree)
    python, python_source = _python(tree)
    manage = _manage(tree)
    settings_module, wsgi_module = ("", "")
    if manage is not None and not app:
        settings_module, wsgi_module = _django(tree, manage)
    inside = Tree(tree.top / manage) if manage else tree
    settings = read_settings(settings_module, inside.read) if settings_module else None
    production = _production(inside, settings_module)
    plain = app or ("" if settings_module or wsgi_module else _plain_app(tree))
    return ProjectFacts(
        directory=str(tree.top),
        existing=frozenset(name for name in written if os.path.lexists(tree.top / name)),
        own_dockerfile="lightship" in (tree.read("Dockerfile") or "").lower(),
        django=manage is not None and not app,
        manage_folder=manage or "",
        settings_module=settings_module,
        production_settings=production,
        settings=settings,
        production=read_settings(production, inside.read) if production else None,
        wsgi_module=wsgi_module,
        app=plain,
        frameworks=_frameworks(tree, plain) if plain else (),
        routes=_routes(inside, settings, settings_module),
        requirements=requirements,
        python=python,
        python_source=python_source,
        celery="celery" in requirements.names or any("celery.py" in inside.names(f) for f in inside.folders()),
        has_migrations=any("migrations" in inside.names(f) for f in inside.folders()),
        git=_git(tree.top),
        skipped=skipped,
    )


# --- Django ----------------------------------------------------------------------------------------------------------

_MODULE = r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*"
_DEFAULT_SETTINGS = re.compile(rf"""DJANGO_SETTINGS_MODULE["']\s*(?:,|\]\s*=)\s*["']({_MODULE})["']""", re.ASCII)


def _manage(tree: Tree) -> str | None:
    """The directory of ``manage.py``: "" at the top, a name one level down, None where there is none."""
    if _is_manage(tree.read("manage.py")):
        return ""
    found = [folder for folder in tree.folders() if _is_manage(tree.read(f"{folder}/manage.py"))]
    return found[0] if len(found) == 1 else None


def _is_manage(text: str | None) -> bool:
    return text is not None and ("DJANGO_SETTINGS_MODULE" in text or "django" in text)


def _django(tree: Tree, folder: str) -> tuple[str, str]:
    """The settings module that the WSGI module uses by default, and the WSGI module."""
    inside = Tree(tree.top / folder) if folder else tree
    match = _DEFAULT_SETTINGS.search(inside.read("manage.py") or "")
    settings = match[1] if match else ""
    if not settings:
        settings = next((f"{f}.settings" for f in inside.folders() if _has_module(inside, f"{f}.settings")), "")
    wsgi = _wsgi_module(inside, settings)
    match = _DEFAULT_SETTINGS.search(inside.read(wsgi.replace(".", "/") + ".py") or "") if wsgi else None
    return (match[1] if match and _has_module(inside, match[1]) else settings), wsgi


def _has_module(tree: Tree, module: str) -> bool:
    base = module.replace(".", "/")
    return any(tree.read(path) is not None for path in (f"{base}.py", f"{base}/__init__.py"))


def _wsgi_module(tree: Tree, settings_module: str) -> str:
    settings = read_settings(settings_module, tree.read) if settings_module else None
    named = settings.get("WSGI_APPLICATION") if settings else None
    if isinstance(named, str) and re.fullmatch(_MODULE, named, re.ASCII) and "." in named:
        module = named.rpartition(".")[0]
        if tree.read(module.replace(".", "/") + ".py") is not None:
            return module
    around = [settings_module.split(".", maxsplit=1)[0]] if settings_module else []
    return next((f"{f}.wsgi" for f in [*around, *tree.folders()] if tree.read(f"{f}/wsgi.py") is not None), "")


def _production(tree: Tree, settings_module: str) -> str:
    """The module beside the default one that is called production, if it is not the default one."""
    package = settings_module.rpartition(".")[0]
    places = [package] if package.endswith("settings") else [settings_module]
    for place in filter(None, places):
        for name in ("production", "prod"):
            module = f"{place}.{name}"
            if module != settings_module and tree.read(module.replace(".", "/") + ".py") is not None:
                return module
    return ""


_ROUTE = re.compile(r"""\bpath\(\s*["']([A-Za-z0-9_/-]{1,60})["']""")


def _routes(tree: Tree, settings: Settings | None, settings_module: str) -> tuple[str, ...]:
    named = settings.get("ROOT_URLCONF") if settings else None
    module = named if isinstance(named, str) else settings_module.split(".", maxsplit=1)[0] + ".urls"
    if not re.fullmatch(_MODULE, module, re.ASCII):
        return ()
    return tuple(_ROUTE.findall(tree.read(module.replace(".", "/") + ".py") or ""))


# --- plain WSGI ------------------------------------------------------------------------------------------------------

_PLAIN = re.compile(
    r"^(app|application)\s*(?::[^=\n]+)?=\s*(?:[\w.]+\.)?(?:Flask|create_app|App|Bottle|API)\(", re.MULTILINE
)
_IMPORT = re.compile(r"^\s*(?:from|import)\s+([A-Za-z_][A-Za-z0-9_]*)", re.MULTILINE)
_KNOWN_FRAMEWORKS = {"flask": "Flask", "bottle": "bottle", "falcon": "falcon", "pyramid": "pyramid"}


def _plain_app(tree: Tree) -> str:
    for path in ("wsgi.py", "app.py", "main.py", "application.py"):
        match = _PLAIN.search(tree.read(path) or "")
        if match:
            return f"{path.removesuffix('.py')}:{match[1]}"
    return ""


def _frameworks(tree: Tree, app: str) -> tuple[str, ...]:
    base = app.partition(":")[0].replace(".", "/")
    text = tree.read(f"{base}.py") or tree.read(f"{base}/__init__.py") or ""
    return tuple(sorted({_KNOWN_FRAMEWORKS[name] for name in _IMPORT.findall(text) if name in _KNOWN_FRAMEWORKS}))


# --- packages --------------------------------------------------------------------------------------------------------

_LOCKS: tuple[tuple[InstallKind, str, str], ...] = (
    ("uv", "uv.lock", "pyproject.toml"),
    ("poetry", "poetry.lock", "pyproject.toml"),
    ("pipenv", "Pipfile.lock", "Pipfile"),
)
_MAIN_FILES = ("requirements.txt", "requirements/production.txt", "requirements/prod.txt", "requirements/base.txt")
_REQUIREMENT = re.compile(r"^\s*([A-Za-z0-9][A-Za-z0-9._-]*)", re.ASCII)
_ITSELF = re.compile(r"^\s*(?:-e\s*|--editable[\s=])?\.(?:/|\[|\s|$)")
_DJANGO = re.compile(r"^\s*django(?:\[[^]]*\])?\s*(?:>=|~=|===?)\s*(\d{1,3})", re.IGNORECASE | re.ASCII)
_INCLUDE = re.compile(r"^\s*(?:-r|-c|--requirement|--constraint)[\s=]*(\S+)")


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _usable(path: str) -> bool:
    try:
        rules.RELATIVE_PATH(path)
    except RuleError:
        return False
    return True


def _requirements(tree: Tree) -> tuple[Requirements, tuple[str, ...]]:
    """How to install, the most exact way first; and the files whose names cannot stand in a Dockerfile."""
    top = [name for name in tree.names() if re.fullmatch(r"requirements.*\.txt", name)]
    below = [f"requirements/{name}" for name in tree.names("requirements") if name.endswith(".txt")]
    texts = {path: text for path in top + below if (text := tree.read(path)) is not None}
    skipped = tuple(path for path in top + below if not _usable(path) or path not in texts)
    files = tuple(path for path in texts if _usable(path))
    pyproject = _toml(tree.read("pyproject.toml"))
    for kind, lock, manifest in _LOCKS:
        text = tree.read(lock)
        if text is not None and tree.read(manifest) is not None:
            names = frozenset(
                map(_normal, re.findall(r"""^(?:name = "|\s{8}")([A-Za-z0-9._-]+)""", text, re.MULTILINE))
            )
            return Requirements(kind, (manifest, lock), lock, names), skipped
    main = next((path for path in _MAIN_FILES if path in files), files[0] if len(files) == 1 else "")
    if main:
        return _from_files(texts, main), skipped
    project = pyproject.get("project")
    dependencies = project.get("dependencies") if isinstance(project, dict) else None
    if isinstance(dependencies, list) and all(isinstance(one, str) for one in dependencies):
        matches = [match for one in dependencies if (match := _REQUIREMENT.match(one))]
        names = frozenset(_normal(match[1]) for match in matches)
        asked = _least_django(dependencies)
        return Requirements("pyproject", ("pyproject.toml",), "pyproject.toml", names, django=asked), skipped
    return Requirements(), skipped


def _from_files(texts: dict[str, str], main: str) -> Requirements:
    """A requirements file and those it includes."""
    files: list[str] = []
    names: set[str] = set()
    waiting, itself, git = [main], False, False
    while waiting:
        path = waiting.pop()
        if path in files or path not in texts or not _usable(path):
            continue
        files.append(path)
        for line in texts[path].splitlines():
            include, named = _INCLUDE.match(line), _REQUIREMENT.match(line)
            itself = itself or _ITSELF.match(line) is not None
            git = git or "git+" in line.partition("#")[0]
            if include:
                waiting.append(os.path.normpath(os.path.join(os.path.dirname(path), include[1])))  # noqa: PTH118, PTH120
            elif named:
                names.add(_normal(named[1]))
    asked = _least_django([line for path in files for line in texts[path].splitlines()])
    return Requirements("requirements", tuple(sorted(files)), main, frozenset(names), itself, git, asked)


def _least_django(lines: list[str]) -> int:
    found = [match for line in lines if (match := _DJANGO.match(line))]
    return max((int(match[1]) for match in found), default=0)


def _toml(text: str | None) -> dict[str, object]:
    try:
        return tomllib.loads(text or "")
    except (tomllib.TOMLDecodeError, RecursionError):
        return {}


def _python(tree: Tree) -> tuple[str, str]:
    """The Python version that the project asks for, as ``3.12``, and the file that says so."""
    for path in (".python-version", "runtime.txt"):
        match = re.search(r"^(?:python-)?(3\.\d{1,2})", tree.read(path) or "", re.MULTILINE)
        if match:
            return match[1], path
    project = _toml(tree.read("pyproject.toml")).get("project")
    wanted = project.get("requires-python") if isinstance(project, dict) else None
    match = re.search(r"(?:>=|==|~=)\s*(3\.\d{1,2})", wanted) if isinstance(wanted, str) else None
    if match:
        return match[1], "pyproject.toml"
    match = re.search(r"""^python_version\s*=\s*"(3\.\d{1,2})""", tree.read("Pipfile") or "", re.MULTILINE)
    if match:
        return match[1], "Pipfile"
    match = re.search(r"^FROM\s+python:(3\.\d{1,2})\b", tree.read("Dockerfile") or "", re.MULTILINE | re.IGNORECASE)
    return (match[1], "Dockerfile") if match else ("", "")


# --- git -------------------------------------------------------------------------------------------------------------


def _git(top: Path) -> GitFacts:
    """Where the project's repository is fetched from. No command that runs a hook or a monitor."""
    found = _ask_git(top, "rev-parse", "--show-toplevel")
    if not found:
        return GitFacts()
    branch = _ask_git(top, "symbolic-ref", "--quiet", "--short", "HEAD")
    remote = _ask_git(top, "config", "--get", f"branch.{branch}.remote") if branch else ""
    names = _ask_git(top, "remote").split("\n")
    chosen = next((name for name in (remote, "origin", *names) if name and name in names), "")
    return GitFacts(found, _ask_git(top, "config", "--get", f"remote.{chosen}.url") if chosen else "", branch)


def _ask_git(top: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(top), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=10,
            check=False,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace").strip() if done.returncode == 0 else ""
