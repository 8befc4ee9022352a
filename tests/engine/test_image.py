"""The image that init's files make, on a real engine: what is in it, who runs in it, and what it may write."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import lightship_agent
from lightship.operations.init import init_project
from support.engine import Engine

SHOP = Path(__file__).resolve().parents[2] / "examples" / "shop"
BOOT = Path(lightship_agent.__file__).parent / "boot"
OLD, NEW = "a" * 40, "b" * 40
USER = 10001


@dataclass
class Instance:
    """A running container, with the server's files laid out as the agent does it."""

    engine: Engine
    home: Path
    name: str
    port: int

    def get(self, path: str, timeout: float = 30) -> tuple[int, str, str]:
        """Status, body and release of an answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=timeout) as answer:
                return answer.status, answer.read().decode(), answer.headers.get("X-Release", "")
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(), error.headers.get("X-Release", "")

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command in the container; its output."""
        return self.engine.docker("exec", self.name, *command, check=check)

    def wants(self, slots: dict[str, Any]) -> None:
        """Say which slots are to run."""
        path = self.home / "code/instances/1.json"
        settings = json.loads(path.read_text()) if path.exists() else {}
        new = path.with_suffix(".new")
        new.write_text(json.dumps({**settings, "slots": slots}))
        new.rename(path)

    def flip(self, release: str) -> None:
        """Make a release the current one."""
        link = self.home / "code/next"
        link.symlink_to(f"releases/{release}")
        link.rename(self.home / "code/current")

    def worker_states(self, slot: str) -> list[str]:
        """What the workers of a slot say."""
        files = sorted((self.home / "run/slots" / slot).glob("worker-?.json"))
        return [json.loads(file.read_text())["state"] for file in files]

    def processes(self) -> list[tuple[int, str]]:
        """User number and command line of every process in the container."""
        rows = self.engine.docker("top", self.name, "-eo", "pid,uid,args").splitlines()[1:]
        return [(int(uid), args) for _, uid, args in (row.split(None, 2) for row in rows)]


def until(true: Callable[[], Any], seconds: float = 20) -> Any:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)
    return found


def lay_out(home: Path, project: Path, settings: dict[str, Any]) -> None:
    for folder in ("code/boot", "code/releases", "code/instances", "run", "shared/media"):
        (home / folder).mkdir(parents=True)
    for file in BOOT.glob("*.py"):
        shutil.copy(file, home / "code/boot")
    ignore = shutil.ignore_patterns("__pycache__", ".git")
    for release in (OLD, NEW):
        shutil.copytree(project, home / "code/releases" / release, ignore=ignore)
    (home / "code/current").symlink_to(f"releases/{OLD}")
    (home / "code/reload").touch()
    (home / "code/instances/1.json").write_text(json.dumps({"patience": 30, **settings}))
    for folder in (home / "shared", home / "shared/media"):
        os.chown(folder, USER, USER)


def start(engine: Engine, image: str, home: Path, *, container_env: dict[str, str]) -> Instance:
    made = Instance(engine, home, engine.name("image"), engine.free_port())
    environment = [f"--env={name}={value}" for name, value in {"LIGHTSHIP_INSTANCE": "1", **container_env}.items()]
    engine.run(
        f"--publish=127.0.0.1:{made.port}:8000",
        *environment,
        f"--volume={home}/code:/srv/lightship/code:ro",
        f"--volume={home}/run:/srv/lightship/run",
        f"--volume={home}/shared:/srv/lightship/shared",
        image,
        name=made.name,
    )
    return made


def is_up(instance: Instance, path: str = "/") -> bool:
    try:
        return instance.get(path, 5)[0] < 500
    except OSError:
        return False


@pytest.fixture(scope="module")
def image(engine: Engine) -> str:
    return engine.build(SHOP, f"{engine.name('image')}:1")


@pytest.fixture
def shop(engine: Engine, image: str, tmp_path: Path) -> Iterator[Instance]:
    health = {"path": "/health/", "host": "localhost"}
    slots = {"0": {"release": OLD, "generation": 1}}
    lay_out(tmp_path, SHOP, {"app": "shop.wsgi:application", "health": health, "slots": slots})
    for release in (OLD, NEW):
        (tmp_path / "code/releases" / release / "media").symlink_to("/srv/lightship/shared/media")
    (tmp_path / "code/releases" / NEW / "shop/version.py").write_text('VERSION = "2"\n')
    made = start(engine, image, tmp_path, container_env={"SECRET_KEY": "test"})
    until(lambda: is_up(made))
    yield made
    engine.docker("rm", "--force", made.name)


def test_there_is_no_code_and_no_secret_in_the_image(engine: Engine, image: str) -> None:
    listing = engine.docker(
        "run", "--rm", "--label", engine.label, "--entrypoint", "/bin/sh", image, "-c",
        "find / -xdev ( -name version.py -path '*shop*' -o -name manage.py -o -name lightship.yml ) 2>/dev/null; "
        "ls -A /build /srv/lightship 2>/dev/null; ls /etc/lightship".replace("( ", "\\( ").replace(" )", " \\)"),
    )  # fmt: skip
    assert listing.split() == ["supervisord.conf", "uwsgi.ini"]
    settings = json.loads(engine.docker("image", "inspect", image))[0]["Config"]
    assert not any(value.startswith("SECRET_KEY") for value in settings["Env"])
    assert settings["StopSignal"] == "SIGTERM"


def test_uwsgi_is_the_compiled_one(engine: Engine, image: str) -> None:
    shown = engine.docker(
        "run", "--rm", "--label", engine.label, "--entrypoint", "/bin/sh", image, "-c",
        "cd /opt/venv/bin; head -c4 uwsgi | od -An -c; ./uwsgi --version; ./pip list --format=freeze",
    )  # fmt: skip
    lines = shown.splitlines()
    assert lines[0].split() == ["177", "E", "L", "F"]
    assert lines[1] == "2.0.31"
    packages = {line.partition("==")[0].lower() for line in lines[2:]}
    assert {"uwsgi", "supervisor", "django"} <= packages
    assert "pyuwsgi" not in packages


def test_a_change_of_requirements_compiles_nothing(engine: Engine, image: str, tmp_path: Path) -> None:
    top = Path(shutil.copytree(SHOP, tmp_path / "shop"))
    # Never the same twice, or the builder remembers it from the last run.
    (top / "requirements.txt").write_text(f"Django==5.2.*\nsqlparse\n# {time.time_ns()}\n")
    command = ["docker", "build", "--build-arg", f"BASE_IMAGE={engine.base_image}", "--label", engine.label]
    done = subprocess.run(
        [*command, "--tag", f"{engine.name('image')}:2", str(top)],
        env={**os.environ, "BUILDKIT_PROGRESS": "plain"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )

    def is_cached(step: str) -> bool:
        # The engine's two builders: "Using cache" and "CACHED" stand in the line after the step.
        rest = done.stdout.partition(step)[2].split("\n", 1)[1]
        return any(word in rest.strip().split("\n", 1)[0] for word in ("Using cache", "CACHED"))

    assert is_cached("install --no-cache-dir uwsgi==")
    assert not is_cached("install --no-cache-dir -r /build/requirements.txt")


def test_workers_are_not_root_and_cannot_write_the_code(shop: Instance) -> None:
    uwsgi = [uid for uid, args in shop.processes() if "uwsgi" in args]
    assert len(uwsgi) == 5
    assert set(uwsgi) == {USER}
    assert shop.run("sh", "-c", "touch /srv/lightship/code/current/x 2>&1 || true").endswith("Read-only file system")
    mode = shop.run("stat", "-c", "%a %U", "/run/lightship-supervisor.sock")
    assert mode == "700 root"
    rejected = shop.run("python3", "-c", "import os; os.setuid(10001); open('/etc/lightship/x', 'w')", check=False)
    assert rejected == ""
    assert shop.run("ls", "/etc/lightship").split() == ["supervisord.conf", "uwsgi.ini"]


def test_pages_and_uploads(shop: Instance) -> None:
    status, body, release = shop.get("/")
    assert (status, release) == (200, OLD)
    assert "<strong>1</strong>" in body
    form = b'--x\r\nContent-Disposition: form-data; name="file"; filename="../a b.txt"\r\n\r\n' + b"0" * 300_000
    request = urllib.request.Request(
        f"http://127.0.0.1:{shop.port}/upload",
        data=form + b"\r\n--x--\r\n",
        headers={"Content-Type": "multipart/form-data; boundary=x"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert json.loads(answer.read()) == {"name": "a_b.txt", "size": 300_000}
    assert (shop.home / "shared/media/a_b.txt").stat().st_size == 300_000
    assert len(shop.get("/media/a_b.txt")[1]) == 300_000
    assert shop.get("/nothing/")[0] == 404


def test_a_body_that_nobody_reads_resets_nothing(shop: Instance) -> None:
    request = urllib.request.Request(f"http://127.0.0.1:{shop.port}/nothing/", data=b"0" * 5_000_000)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=30)
    assert caught.value.code == 404
    caught.value.close()


def test_the_other_slot_takes_over_and_the_container_stops_gracefully(shop: Instance) -> None:
    shop.wants({"0": {"release": OLD, "generation": 1}, "1": {"release": NEW, "generation": 2}})
    until(lambda: shop.worker_states("1") == ["ready"] * 4)
    assert {shop.get("/health/")[2] for _ in range(20)} == {OLD}
    shop.flip(NEW)
    until(lambda: shop.worker_states("1") == ["serving"] * 4 and shop.worker_states("0") == ["parked"] * 4)
    assert {shop.get("/health/")[2] for _ in range(20)} == {NEW}
    shop.wants({"1": {"release": NEW, "generation": 2}})
    until(lambda: sum("uwsgi" in args for _, args in shop.processes()) == 5)
    answers: list[tuple[int, str, str]] = []
    request = threading.Thread(target=lambda: answers.append(shop.get("/slow/?seconds=2")))
    request.start()
    time.sleep(0.7)
    shop.engine.docker("stop", "--time", "30", shop.name)
    request.join()
    assert answers == [(200, "2\n", NEW)]
    assert shop.engine.docker("inspect", "--format", "{{.State.ExitCode}}", shop.name) == "0"


@pytest.mark.parametrize("reload", ["touch", "chain"])
def test_uwsgi_s_own_ways_to_reload(engine: Engine, tmp_path: Path, reload: str) -> None:
    top = Path(shutil.copytree(SHOP, tmp_path / "shop"))
    for name in ("lightship.yml", "deploy/supervisord.conf", "deploy/uwsgi.ini"):
        (top / name).unlink()
    init_project(top, reload=reload)  # type: ignore[arg-type]
    made = engine.build(top, f"{engine.name('image')}:1")
    health = {"path": "/health/", "host": "localhost"}
    lay_out(tmp_path / "server", SHOP, {"app": "shop.wsgi:application", "health": health})
    instance = start(engine, made, tmp_path / "server", container_env={"SECRET_KEY": "test"})
    until(lambda: is_up(instance))
    assert instance.get("/health/")[2] == OLD
    time.sleep(1.1)
    instance.flip(NEW)
    (tmp_path / "server/code/reload").touch()
    until(lambda: {instance.get("/health/")[2] for _ in range(8)} == {NEW})
    engine.docker("rm", "--force", instance.name)


def test_a_started_django_project_runs_with_init_s_files_as_they_are(
    engine: Engine, image: str, tmp_path: Path
) -> None:
    """`django-admin startproject`, `lightship init`, nothing else."""
    project = tmp_path / "mysite"
    project.mkdir()
    engine.docker(
        "run", "--rm", "--label", engine.label, f"--volume={project}:/project", "--entrypoint",
        "/opt/venv/bin/django-admin", image, "startproject", "mysite", "/project",
    )  # fmt: skip
    result = init_project(project)
    assert "requirements.txt" in result.written
    made = engine.build(project, f"{engine.name('image')}:1")
    slots = {"0": {"release": OLD, "generation": 1}}
    settings = {"app": "mysite.wsgi:application", "health": {"path": "/", "host": "localhost"}, "slots": slots}
    lay_out(tmp_path / "server", project, settings)
    instance = start(engine, made, tmp_path / "server", container_env={})
    until(lambda: is_up(instance))
    status, body, release = instance.get("/")
    assert (status, release) == (200, OLD)
    assert "The install worked successfully" in body
    engine.docker("rm", "--force", instance.name)
