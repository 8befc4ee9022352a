"""The Dockerfile of ``lightship init``: how a project's packages get into an image that holds no code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib import resources

from lightship.operations.project import ProjectFacts, Requirements
from lightship_agent.records import dataclass

__all__ = ["Docker", "render_dockerfile", "template"]

_DEFAULT_PYTHON = (3, 11)
_OLDEST_PYTHON = (3, 9)
_NEEDS_312 = 6  # Django 6 and later

# Debian packages that a Python package needs: to be built, and to run.
_SYSTEM_PACKAGES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "psycopg2": (("libpq-dev",), ("libpq5",)),
    "psycopg": ((), ("libpq5",)),
    "mysqlclient": (("default-libmysqlclient-dev", "pkg-config"), ("libmariadb3",)),
}


@dataclass(frozen=True)
class Docker:
    """The Dockerfile and what belongs to it."""

    text: str
    ignore: str
    infra: tuple[str, ...]
    """The key ``infra``, when its default does not name all files that the image is made of."""
    requirements: str
    """The text of a requirements.txt to write; empty when the project says what it needs."""
    found: tuple[str, ...]
    assumed: tuple[str, ...]
    todo: tuple[str, ...]


@cache
def _source(name: str) -> str:
    return resources.files("lightship.templates").joinpath(name).read_text(encoding="utf-8")


def template(name: str, **values: str) -> str:
    """A file of :mod:`lightship.templates` with its ``{{names}}`` filled in. Each must be given."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], _source(name))


def render_dockerfile(project: ProjectFacts, service: str) -> Docker:
    """The Dockerfile for a project."""
    found: list[str] = []
    assumed: list[str] = []
    todo: list[str] = []
    wanted, made = project.requirements, ""
    if wanted.kind == "none":
        made = _made_requirements(project)
        wanted = Requirements("requirements", ("requirements.txt",), "requirements.txt")
        lines = ", ".join(line for line in made.splitlines() if not line.startswith("#"))
        assumed.append(f"no requirements were found; a requirements.txt was written with {lines or 'nothing in it'}")
        todo.append("complete requirements.txt: the image has only what it names")
    else:
        found.append(f"packages from {wanted.main}")
    if wanted.itself:
        todo.append(f"{wanted.main} installs the project itself, but the image holds no code: take that line out")
    if "pyuwsgi" in wanted.names:
        todo.append("take pyuwsgi out of the requirements: it replaces the compiled uWSGI and cannot reload itself")
    python = _python(project, made, assumed, found)
    build, run = _system_packages(wanted)
    if build or run:
        assumed.append(f"the image needs Debian's {', '.join(dict.fromkeys((*build, *run)))}")
    text = template(
        "Dockerfile",
        service=service,
        infra_words=" and ".join(wanted.files),
        base_image=f"python:{python}-slim-bookworm",
        build_packages=_apt(build),
        run_packages=_apt(run),
        install=_install(wanted),
    )
    ignore = template("dockerignore", dockerignore="\n".join(f"!{path}" for path in wanted.files))
    return Docker(text, ignore, _infra(wanted), made, tuple(found), tuple(assumed), tuple(todo))


def _made_requirements(project: ProjectFacts) -> str:
    names = list(project.frameworks)
    if project.django:
        docstring = project.settings.docstring if project.settings else ""
        match = re.search(r"using Django (\d{1,2}\.\d{1,2}(?:\.\d{1,3})?)", docstring)
        names = [
            f"Django~={match[1]}"
            if match and match[1].count(".") > 1
            else f"Django=={match[1]}.*"
            if match
            else "Django"
        ]
    return "# What the image has, besides uWSGI and Supervisor.\n" + "".join(f"{name}\n" for name in names)


def _python(project: ProjectFacts, made: str, assumed: list[str], found: list[str]) -> str:
    match = re.search(r"Django[~=]=(\d+)", made)
    django = int(match[1]) if match else project.requirements.django
    least = (3, 12) if django >= _NEEDS_312 else _DEFAULT_PYTHON
    if project.python:
        asked = (3, int(project.python.partition(".")[2]))
        exact = project.python_source != "pyproject.toml"
        chosen = max(asked, _OLDEST_PYTHON if exact else least)
        found.append(f"Python {project.python} asked for in {project.python_source}")
        if chosen != asked:
            assumed.append(f"Python 3.{chosen[1]} will do")
        return f"3.{chosen[1]}"
    assumed.append(f"Python 3.{least[1]} (BASE_IMAGE in the Dockerfile)")
    return f"3.{least[1]}"


def _system_packages(wanted: Requirements) -> tuple[tuple[str, ...], tuple[str, ...]]:
    build = [one for name in sorted(wanted.names) for one in _SYSTEM_PACKAGES.get(name, ((), ()))[0]]
    run = [one for name in sorted(wanted.names) for one in _SYSTEM_PACKAGES.get(name, ((), ()))[1]]
    build += ["git"] if wanted.git else []
    return tuple(dict.fromkeys(build)), tuple(dict.fromkeys(run))


def _apt(packages: tuple[str, ...]) -> str:
    if not packages:
        return ""
    return (
        f"RUN apt-get update \\\n    && apt-get install -y --no-install-recommends {' '.join(packages)} \\\n"
        "    && rm -rf /var/lib/apt/lists/*\n"
    )


_PIP = "/opt/venv/bin/pip install --no-cache-dir"
_EXPORTS = {
    "uv": (
        "'uv<1'",
        "uv export --frozen --no-dev --no-emit-project --format requirements-txt -o requirements.txt",
    ),
    "poetry": ("'poetry<3' poetry-plugin-export", "poetry export --only main --output requirements.txt"),
    "pipenv": ("pipenv", "pipenv requirements --hash > requirements.txt"),
}
_LISTED = (
    'import tomllib; print(*tomllib.load(open("/build/pyproject.toml", "rb"))["project"]["dependencies"], sep="\\n")'
)


def _install(wanted: Requirements) -> str:
    """The layers that install a project's packages."""
    copies = "".join(f"COPY {path} /build/{path}\n" for path in wanted.files)
    if wanted.kind in _EXPORTS:
        tools, export = _EXPORTS[wanted.kind]
        name = wanted.kind
        return (
            f"# {name} turns its lock file into requirements, in an environment of its own that is not in the image.\n"
            f"RUN python3 -m venv /opt/{name} && /opt/{name}/bin/pip install --no-cache-dir {tools}\n"
            f"{copies}RUN cd /build && /opt/{name}/bin/{export} \\\n    && {_PIP} -r requirements.txt"
        )
    if wanted.kind == "pyproject":
        return (
            f"{copies}RUN python3 -c '{_LISTED}' > /build/requirements.txt \\\n    && {_PIP} -r /build/requirements.txt"
        )
    return f"{copies}RUN {_PIP} -r /build/{wanted.main}"


def _infra(wanted: Requirements) -> tuple[str, ...]:
    """What to put under ``infra``: its default has all these files but pyproject.toml."""
    return ("Dockerfile", ".dockerignore", "deploy/**", "pyproject.toml") if wanted.kind == "pyproject" else ()
