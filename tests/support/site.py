"""A small real service for the tests: its repository, its lightship.yml, its image, and the `lightship` command on it.

The service is plain WSGI without a framework, so that its image is built in seconds and a release boots at once. It
answers ``/`` with its version, and does on demand what services do wrong.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lightship.operations.init import plan_init, write_init
from lightship.operations.project import find_project
from support.engine import Engine
from support.load import Load
from support.observer import Observer
from support.repo import Repository

LIGHTSHIP = Path(sys.executable).parent / "lightship"
APPLICATION = '''
"""A service: its version, slow answers, and the path to break."""
import os
import time
import urllib.parse

from service import version

time.sleep(version.IMPORT_SECONDS)


def application(environ, start_response):
    path = environ["PATH_INFO"]
    query = urllib.parse.parse_qs(environ["QUERY_STRING"])
    if path == "/slow":
        time.sleep(float(query["seconds"][0]))
    status = "200 OK"
    if path == "/health/":
        status = version.HEALTH_STATUS
    if path == "/" and version.FAIL_PAGES:
        status = "500 Internal Server Error"
    start_response(status, [("Content-Type", "text/plain")])
    return [version.VERSION.encode()]
'''

VERSION = """
VERSION = "{version}"
IMPORT_SECONDS = {import_seconds}
HEALTH_STATUS = "{health}"
FAIL_PAGES = {fail_pages}
{more}
"""


def version_file(
    version: str, *, import_seconds: float = 0.0, health: str = "200 OK", fail_pages: bool = False, more: str = ""
) -> str:
    """The file that says which version this is, and what it does wrong."""
    return VERSION.format(
        version=version, import_seconds=import_seconds, health=health, fail_pages=fail_pages, more=more
    )


@dataclass(frozen=True)
class Said:
    """What a `lightship` command did and said."""

    status: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def json(self) -> dict[str, Any]:
        """The envelope that ``--json`` printed."""
        found: dict[str, Any] = json.loads(self.stdout)
        return found

    @property
    def result(self) -> dict[str, Any]:
        """The result within the envelope."""
        found: dict[str, Any] = self.json["result"]
        return found

    @property
    def shown(self) -> str:
        """What a failing test has to show of it: the error of an envelope alone, the end of anything else."""
        try:
            text = json.dumps(self.json["error"] or self.result.get("outcome"), indent=1)
        except (ValueError, TypeError, KeyError, AttributeError):
            text = self.stdout
        return f"{text[-6000:]}\n{self.stderr[-6000:]}"

    @property
    def error(self) -> dict[str, Any]:
        """The error within the envelope, an empty one when there is none."""
        return self.json.get("error") or {}


@dataclass
class Site:
    """One service of a test. ``settings`` are further keys of its lightship.yml, as JSON (which is YAML)."""

    engine: Engine
    folder: Path
    name: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    variant: Literal["swap", "touch", "chain"] = "swap"
    files: Mapping[str, str | None] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    port: int = 0

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.name = self.name or self.engine.name("site")
        self.port = self.port or self.engine.free_port()
        self.root = self.folder / "srv"
        self.repository = Repository(self.folder / "git")
        self.repository.write({**self.infrastructure(), **self.code("v1"), **self.files})
        self.repository.commit(message="first")
        self.configure()

    # --- its files

    def infrastructure(self) -> dict[str, str]:
        """The Dockerfile and what goes with it, as `lightship init` writes them for this service."""
        with tempfile.TemporaryDirectory() as made:
            project = Path(made) / "service"
            for name, text in {**self.code("v1"), "requirements.txt": "# nothing but uWSGI\n"}.items():
                (project / name).parent.mkdir(parents=True, exist_ok=True)
                (project / name).write_text(text)
            plan = plan_init(find_project(project, app="service.wsgi:application"), reload=self.variant)
            write_init(plan)
            (project / "lightship.yml").unlink()
            return {str(path.relative_to(project)): path.read_text() for path in project.rglob("*") if path.is_file()}

    def code(self, version: str, **what: Any) -> dict[str, str]:
        """The application's files."""
        return {
            "service/__init__.py": "",
            "service/wsgi.py": APPLICATION,
            "service/version.py": version_file(version, **what),
        }

    def configure(self, **settings: Any) -> None:
        """Write lightship.yml, with further settings of the service."""
        self.settings = {**self.settings, **settings}
        service: dict[str, Any] = {
            "repository": str(self.repository.remote),
            "branch": "main",
            "root": str(self.root),
            "app": "service.wsgi:application",
            "image": {"dockerfile": "Dockerfile", "args": {"BASE_IMAGE": self.engine.base_image}},
            "ports": [f"127.0.0.1:{self.port}:8000"],
            "health": {"path": "/health/", "host": "localhost"},
            "options": [self.engine.option],
            "reload": self.variant,
            **self.settings,
        }
        path = self.folder / "lightship.yml"
        path.write_text(json.dumps({"services": {self.name: service}}, indent=1))

    def change(self, version: str, files: Mapping[str, str | bytes | None] | None = None, **what: Any) -> str:
        """Commit and push another version; its commit."""
        self.repository.write({"service/version.py": version_file(version, **what), **(files or {})})
        return self.repository.commit(message=f"Version {version}")

    # --- the command

    def run(
        self,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        timeout: float = 300,
        expect: int | None = None,
        folder: Path | None = None,
    ) -> Said:
        """Run a `lightship` command on this service, from beside its lightship.yml or from another folder."""
        started = time.monotonic()
        done = subprocess.run(
            [str(LIGHTSHIP), *arguments],
            cwd=folder or self.folder,
            env={**os.environ, **self.environment, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        said = Said(done.returncode, done.stdout, done.stderr, time.monotonic() - started)
        if expect is not None:
            assert said.status == expect, f"{arguments} ended with {said.status}\n{said.shown}"
        return said

    def deploy(self, *arguments: str, expect: int | None = 0, **options: Any) -> Said:
        """`lightship deploy --json`."""
        return self.run("deploy", "--json", *arguments, expect=expect, **options)

    def start(self, *arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start a `lightship` command and go on."""
        return subprocess.Popen(
            [str(LIGHTSHIP), *arguments],
            cwd=self.folder,
            env={**os.environ, **self.environment, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    # --- looking at it

    @property
    def home(self) -> Path:
        """The service's directory on the server."""
        return self.root / self.name

    @property
    def current(self) -> str | None:
        """The commit that `current` names."""
        link = self.home / "code" / "current"
        return link.readlink().name if link.is_symlink() else None

    @property
    def url(self) -> str:
        """Where the service answers."""
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str = "/", timeout: float = 10) -> tuple[int, str, str]:
        """Status, body and release of an answer."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=timeout) as answer:
                return answer.status, answer.read().decode(), answer.headers.get("X-Release", "")
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(), error.headers.get("X-Release", "")

    def answers(self) -> bool:
        """Whether the service answers at all, and not with an error."""
        try:
            return self.get()[0] < 500
        except OSError:
            return False

    def load(self, rate: float = 100, seconds: float = 120, **options: Any) -> Load:
        """A load on the service, to be used as a context."""
        return Load(self.url + "/", rate=rate, seconds=seconds, **options)

    def observer(self, seconds: float = 120, **options: Any) -> Observer:
        """A 1 kHz observer of `current`, to be used as a context."""
        return Observer(self.home / "code" / "current", seconds=seconds, **options)

    def container(self) -> str:
        """The name of the container that serves."""
        state = json.loads((self.home / "state" / "state.json").read_text())
        return f"{self.name}-{state['instance']}"

    def workers(self) -> list[dict[str, Any]]:
        """Every worker as `lightship status` tells of it."""
        slots = self.run("status", "--json").result["servers"][0]["facts"]["slots"]
        return [worker for slot in slots.values() for worker in slot["workers"]]

    def snapshot(self) -> dict[str, Any]:
        """What a command that changes nothing must leave as it is: each file on the server, processes, the container.

        Left out are the lock, whose number grows with each holder, and the mirror, which a plan may fetch into.
        """
        shown = self.engine.docker("inspect", "--format", "{{.Id}} {{.State.StartedAt}}", self.container())
        files: dict[str, Any] = {}
        for path in sorted((*self.home.glob("state/**/*"), *self.home.glob("code/**/*"))):
            found = path.lstat()
            if path.name in ("lock", "fence", "mirror.lock") or "__pycache__" in path.parts:
                continue
            written = () if path.is_dir() and not path.is_symlink() else (found.st_size, found.st_mtime_ns)
            files[str(path.relative_to(self.home))] = (found.st_ino, found.st_mode, *written)
        return {"container": shown, "files": files, "workers": self.workers(), "containers": self.containers()}

    def containers(self) -> list[str]:
        """All the containers of the service, stopped ones too."""
        listed = self.engine.docker("ps", "--all", "--filter", f"name=^/?{self.name}-", "--format", "{{.Names}}")
        return listed.split()

    def logs(self) -> str:
        """What the service wrote."""
        done = subprocess.run(["docker", "logs", self.container()], capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    def close(self) -> None:
        """Remove its containers and files."""
        for name in self.containers():
            self.engine.docker("rm", "--force", "--volumes", name, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)
