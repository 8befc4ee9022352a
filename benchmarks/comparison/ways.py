"""The ways to deploy a change of code that are compared: lightship's, and what a user would pick instead.

Each has a container (or is one) of the same image with as many workers, and brings the same commits of the same
repository to it over the same sshd of this machine, or by a registry on it. All are run as they are known to be run.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.code_deploy import CLASSIC, CODE, RUN
from benchmarks.common import ROOT, BenchmarkError
from benchmarks.comparison.ground import Ground
from benchmarks.cost import cpu_of_process
from benchmarks.ssh_deploy import KEPT_SECONDS
from support.repo import ENVIRONMENT
from support.site import LIGHTSHIP

__all__ = ["RECIPE", "Phase", "Way", "all_ways", "phases_of", "recipe"]

_MASTER = "-o ControlMaster=auto -o ControlPersist=600"
_PATIENCE = 30
#: The spans of a command before it connects.
_STARTS = ("python", "modules", "configuration")
_LAZY = f"touch-reload = {RUN}/reload"
_WORKERS = "/opt/venv/bin/uwsgi"
#: A trace that began so many seconds from the command's start is not its own.
_LATE = 0.5

Phase = tuple[str, float, float]
"""A phase of a deploy: its name, and from when until when, in seconds since the command was started."""


@dataclass
class Way:
    """One way: what is typed, where the service answers, and what is counted of it."""

    ground: Ground
    name: str = ""
    port: int = 0
    container: str = ""

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}/"

    @property
    def folder(self) -> Path:
        """Its files, which the sshd's machine sees too."""
        return self.ground.others / self.slug

    @property
    def slug(self) -> str:
        """Its name for files."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.name.lower()).strip("-")

    @property
    def ports(self) -> Sequence[int]:
        """The ports whose bytes are its own: the sshd's, unless said otherwise."""
        return (self.ground.port,)

    def environment(self) -> Mapping[str, str]:
        """What its command sees."""
        return {"PATH": os.environ["PATH"], "HOME": str(self.ground.home), "LC_ALL": "C.UTF-8", **ENVIRONMENT}

    def start(self) -> None:
        """Have it run, with the repository's newest commit."""

    def command(self) -> Sequence[str]:
        """What is typed to deploy the newest commit."""
        raise NotImplementedError

    @property
    def working_directory(self) -> Path:
        """Where it is typed."""
        return self.folder

    def cpu_beside(self) -> float:
        """Seconds of processor time, on the side of the command, of what it does not wait for."""
        return 0.0

    def phases(self, day: float) -> Sequence[Phase]:  # noqa: ARG002
        """What the deploy that was started at a moment did when, where it tells. The moment is ``time.time``'s."""
        return []

    def do(self, *words: str) -> None:
        """Something that prepares it."""
        done = subprocess.run(words, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=False)
        if done.returncode:
            what = " ".join(words[:4])
            raise BenchmarkError(f"{self.name}: {what} ended with {done.returncode}: {done.stderr[-1000:]}")

    def serve(self, code: Path, inside: str = CODE, *, mount: Path | None = None, more: str = "") -> None:
        """Start the classic container: one uWSGI that watches a file, with the code in a volume."""
        self.port = self.ground.engine.free_port()
        self.container = self.ground.engine.name(self.slug[:20])
        run = self.folder / "run"
        run.mkdir(parents=True, exist_ok=True)
        (run / "reload").touch()
        text = CLASSIC.replace(f"chdir = {CODE}", f"chdir = {inside}")
        if more:
            text = text.replace(_LAZY, more)
        (run / "uwsgi.ini").write_text(text)
        self.ground.engine.run(
            *("--publish", f"127.0.0.1:{self.port}:8000", "--sysctl", "net.core.somaxconn=4096"),
            *("--volume", f"{mount or code}:{mount or inside}:ro", "--volume", f"{run}:{RUN}:ro"),
            self.ground.image,
            *(_WORKERS, "--ini", f"{RUN}/uwsgi.ini"),
            name=self.container,
        )


@dataclass
class Lightship(Way):
    """A cold ``lightship deploy`` over SSH."""

    name: str = "lightship"

    def start(self) -> None:
        """The service runs already."""
        self.port = self.ground.site.port

    def command(self) -> Sequence[str]:
        """The command, its output into a file as in a script."""
        self.container = self.ground.site.container()
        return [str(LIGHTSHIP), "deploy", "--config", str(self.ground.lightship_file)]

    def environment(self) -> Mapping[str, str]:
        """With the ssh configuration of the others."""
        return {**super().environment(), **self.ground.lightship_environment}

    @property
    def working_directory(self) -> Path:
        """Beside its configuration."""
        return self.ground.site.folder

    def ask(self, *words: str) -> Any:
        """Another command: the result of its JSON."""
        done = subprocess.run(
            [str(LIGHTSHIP), *words, "--json"],
            cwd=self.working_directory,
            env=dict(self.environment()),
            capture_output=True,
            check=False,
        )
        if done.returncode:
            raise BenchmarkError(f"lightship {words[0]} ended with {done.returncode}: {done.stderr.decode()[-1000:]}")
        return json.loads(done.stdout)["result"]

    def phases(self, day: float) -> Sequence[Phase]:
        """The phases of its trace."""
        return phases_of(self.ask("trace", "--config", str(self.command()[-1]))["trace"], day)


def phases_of(trace: Mapping[str, Any], day: float) -> Sequence[Phase]:
    """The spans right below the command's, with those before it connects as one.

    A trace counts from when the kernel says that its process was started, which is some milliseconds beside the moment
    that requests are counted from. The time of day, which both know, brings them together.
    """
    late = float(trace["began"]) - day
    if abs(late) > _LATE:
        raise BenchmarkError(f"the newest trace began {late:.3f} s after the deploy that was measured")
    spans = [
        (str(one["name"]), round(one["start"] + late, 4), round(one["end"] + late, 4))
        for one in trace["root"]["children"]
    ]
    begins = [end for name, _, end in spans if name in _STARTS]
    start = [("start", 0.0, max(begins))] if begins else []
    return start + sorted((one for one in spans if one[0] not in _STARTS), key=lambda one: one[1])


@dataclass
class Kept(Lightship):
    """The same over a connection that is kept from one deploy to the next, as that of the commands by hand is."""

    name: str = "lightship, connection kept"
    file: Path = field(default_factory=Path)
    service: str = ""
    pool: int = 0

    def start(self) -> None:
        """A service of its own, of the same repository; its first deploy has the connection kept."""
        site, self.port = self.ground.site, self.ground.engine.free_port()
        ((_, settings),) = json.loads(self.ground.lightship_file.read_text())["services"].items()
        self.service, self.file = f"{site.name}-kept", site.folder / "kept.yml"
        settings |= {"ports": [f"127.0.0.1:{self.port}:8000"], "keep_connected": KEPT_SECONDS}
        self.file.write_text(json.dumps({"services": {self.service: settings}}))
        self.ground.at_end.callback(self.ask, "connections", "--close")
        self.ask("deploy", "--config", str(self.file))
        deadline = time.monotonic() + _PATIENCE
        while not (found := self.ask("connections"))["connections"]:
            if time.monotonic() > deadline:
                raise BenchmarkError(f"the connection is not kept: {found['problems']}")
            time.sleep(0.1)
        self.pool = found["process"]

    def command(self) -> Sequence[str]:
        """The command, with its own configuration."""
        state = json.loads((self.ground.site.root / self.service / "state" / "state.json").read_text())
        self.container = f"{self.service}-{state['instance']}"
        return [str(LIGHTSHIP), "deploy", "--config", str(self.file)]

    def environment(self) -> Mapping[str, str]:
        """With a place for the pool's socket."""
        return {**super().environment(), "XDG_RUNTIME_DIR": str(self.ground.home)}

    def cpu_beside(self) -> float:
        """The pool's. It is an error when that has ended: then no connection was kept."""
        try:
            return cpu_of_process(self.pool)
        except OSError:
            raise BenchmarkError(f"{self.name}: the pool of connections has ended") from None


@dataclass
class ByHand(Way):
    """``git fetch && git reset --hard && touch`` over a connection that is open already."""

    name: str = "by hand, warm SSH"
    watched: str = ""

    def start(self) -> None:
        """Clone, start, and open the connection."""
        self.code = self.folder / "code"
        self.do("git", "clone", "--quiet", str(self.ground.remote), str(self.code))
        self.serve(self.code, more=self.watched)
        self.ground.open_master(self.environment())

    def command(self) -> Sequence[str]:
        """What a person types."""
        steps = ("git fetch --quiet", "git reset --quiet --hard origin/main", f"touch {self.folder}/run/reload")
        script = " && ".join([f"cd {self.code}", *steps])
        return ["ssh", *self.ground.ssh_options, *_MASTER.split(), "-o", f"ControlPath={self.ground.control}",
                self.ground.host, script]  # fmt: skip


@dataclass
class Chain(ByHand):
    """The same with uWSGI's chain reload, which does not hold requests up."""

    name: str = "by hand, chain reload"
    watched: str = f"lazy-apps = true\ntouch-chain-reload = {RUN}/reload"


RECIPE = ROOT / "examples" / "plain-ansible" / "deploy.yml"
_NO_FACTS = "  gather_facts: false\n"


@dataclass
class Playbook(ByHand):
    """The plain recipe of the examples: git, see that the container runs, touch. With Ansible's defaults."""

    name: str = "Ansible recipe, defaults"
    tuned: bool = False

    def start(self) -> None:
        """As by hand; and write the playbook, its inventory and its variables."""
        super().start()
        (self.folder / "playbook.yml").write_text(recipe(tuned=self.tuned))
        variables = {
            "app_name": self.container,
            "app_repository": str(self.ground.remote),
            "app_version": "main",
            "app_directory": str(self.folder),
            "app_become": False,
            "app_image": self.ground.image,
            "app_mount": CODE,
            "app_options": [],
            "app_command": [],
        }
        (self.folder / "group_vars").mkdir()
        (self.folder / "group_vars" / "all.json").write_text(json.dumps(variables))
        address, port = self.ground.address, self.ground.port
        (self.folder / "hosts.ini").write_text(f"{address} ansible_port={port} ansible_user=root\n")

    def command(self) -> Sequence[str]:
        """What a person types."""
        return [str(LIGHTSHIP.parent / "ansible-playbook"), "--inventory", "hosts.ini", "playbook.yml"]

    def environment(self) -> Mapping[str, str]:
        """Its settings; the connection is kept for a minute by default."""
        settings = {
            "ANSIBLE_HOME": str(self.folder / "ansible"),
            "ANSIBLE_PYTHON_INTERPRETER": "/usr/bin/python3",
            "ANSIBLE_SSH_COMMON_ARGS": f"-F {self.ground.ssh_config}",
        }
        if self.tuned:
            settings["ANSIBLE_PIPELINING"] = "1"
        return {**super().environment(), **settings}


def recipe(*, tuned: bool) -> str:
    """The example's playbook. A playbook gathers facts unless it says that it does not."""
    text = RECIPE.read_text(encoding="utf-8")
    if _NO_FACTS not in text:
        raise BenchmarkError(f"{RECIPE} does not say whether it gathers facts")
    return text if tuned else text.replace(_NO_FACTS, "")


@dataclass
class Tuned(Playbook):
    """The same without facts and with pipelining."""

    name: str = "Ansible recipe, tuned"
    tuned: bool = True


@dataclass
class Image(Way):
    """The image way: the code is in the image, which is built, pushed, pulled and run anew."""

    name: str = "image: build, push, pull, run"
    registry: int = field(default=0)

    @property
    def ports(self) -> Sequence[int]:
        """The registry's."""
        return (self.registry,)

    def start(self) -> None:
        """Start the registry and the first container."""
        self.registry = self.ground.start_registry()
        self.folder.mkdir(parents=True)
        self.port = self.ground.engine.free_port()
        self.container = self.ground.engine.name("image")
        self.code = self.folder / "code"
        self.do("git", "clone", "--quiet", str(self.ground.remote), str(self.code))
        (self.folder / "uwsgi.ini").write_text(CLASSIC.replace(f"touch-reload = {RUN}/reload\n", ""))
        (self.folder / "Dockerfile").write_text(f"FROM {self.ground.image}\nCOPY uwsgi.ini /srv/\nCOPY code {CODE}\n")
        (self.folder / ".dockerignore").write_text("code/.git\nlog*\n")
        # It is stopped by the first deploy, and does not hear SIGTERM.
        first = self._run_words(self.ground.image, "sleep", "3600")
        self.do(*first[:3], "--stop-timeout=0", *first[3:])

    def _run_words(self, image: str, *command: str) -> list[str]:
        return [
            *("docker", "run", "--detach", "--name", self.container, "--label", self.ground.engine.label),
            *("--publish", f"127.0.0.1:{self.port}:8000", "--sysctl", "net.core.somaxconn=4096", image),
            *(command or (_WORKERS, "--ini", "/srv/uwsgi.ini")),
        ]

    def command(self) -> Sequence[str]:
        """What a person's script does."""
        tag = f"127.0.0.1:{self.registry}/{self.ground.engine.prefix}-app:latest"
        script = "; ".join(
            (
                "set -e; tag=$1 name=$2; shift 2",
                "git -C code fetch --quiet; git -C code reset --quiet --hard origin/main",
                'docker build --quiet --label "$LABEL" --tag "$tag" .',
                'docker push --quiet "$tag"; docker pull --quiet "$tag"',
                'docker stop "$name"; docker rm "$name"; exec "$@"',
            )
        )
        return ["sh", "-c", script, "sh", tag, self.container, *self._run_words(tag)]

    def environment(self) -> Mapping[str, str]:
        """What is made is labelled, so that it can be removed."""
        return {**super().environment(), "LABEL": self.ground.engine.label}


@dataclass
class Push(Way):
    """``git push`` to the server, whose hook checks the code out and touches the file, as small platforms do it."""

    name: str = "git push with a hook"

    def start(self) -> None:
        """A bare repository with a hook, its work tree, and the container."""
        self.bare, self.code = self.folder / "app.git", self.folder / "code"
        self.code.mkdir(parents=True)
        self.do("git", "clone", "--quiet", "--bare", str(self.ground.remote), str(self.bare))
        self.do("git", f"--git-dir={self.bare}", f"--work-tree={self.code}", "checkout", "--force", "main")
        hook = self.bare / "hooks" / "post-receive"
        checkout = f"GIT_WORK_TREE={self.code} git checkout --quiet --force main"
        hook.write_text(f"#!/bin/sh\n{checkout} && touch {self.folder}/run/reload\n")
        hook.chmod(0o755)
        self.serve(self.code)

    def command(self) -> Sequence[str]:
        """What a person types."""
        where = f"ssh://root@{self.ground.address}:{self.ground.port}{self.bare}"
        return ["git", "push", "--quiet", where, "HEAD:main"]

    def environment(self) -> Mapping[str, str]:
        """Over the same sshd."""
        return {**super().environment(), "GIT_SSH_COMMAND": f"ssh -F {self.ground.ssh_config}"}

    @property
    def working_directory(self) -> Path:
        """In the work tree."""
        return self.ground.site.repository.tree


_CAPFILE = """\
require "capistrano/setup"
require "capistrano/deploy"
require "capistrano/scm/git"
install_plugin Capistrano::SCM::Git
"""
_DEPLOY_RB = """\
set :application, "shop"
set :repo_url, "{remote}"
set :branch, "main"
set :deploy_to, "{home}"
set :keep_releases, 2
namespace :deploy do
  after :publishing, :reload do
    on roles(:app) do
      execute :touch, "{run}/reload"
    end
  end
end
"""
_STAGE_RB = """\
server "{address}", user: "root", port: {port}, roles: %w[app],
  ssh_options: {{ keys: ["{key}"], keys_only: true, config: false, user_known_hosts_file: ["{known}"] }}
"""


@dataclass
class Capistrano(Way):
    """``cap production deploy`` with Debian's Capistrano."""

    name: str = "Capistrano"

    def start(self) -> None:
        """Write its files, deploy once so that `current` is there, and start the container."""
        home, ground = self.folder / "home", self.ground
        (self.folder / "config" / "deploy").mkdir(parents=True)
        (self.folder / "run").mkdir()
        (self.folder / "Capfile").write_text(_CAPFILE)
        text = _DEPLOY_RB.format(remote=ground.remote, home=home, run=self.folder / "run")
        (self.folder / "config" / "deploy.rb").write_text(text)
        stage = _STAGE_RB.format(address=ground.address, port=ground.port, key=ground.key, known=ground.known_hosts)
        (self.folder / "config" / "deploy" / "production.rb").write_text(stage)
        words, environment = list(self.command()), dict(self.environment())
        done = subprocess.run(words, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchmarkError(f"cap ended with {done.returncode}: {done.stdout[-1500:]}{done.stderr[-1500:]}")
        # Its link is an absolute one: the container sees the folder under its own name.
        self.serve(home, f"{home}/current", mount=home)

    def command(self) -> Sequence[str]:
        """What a person types."""
        return ["cap", "production", "deploy"]


def all_ways(ground: Ground) -> list[Way]:
    """All of them, not started."""
    return [
        Lightship(ground),
        Kept(ground),
        ByHand(ground),
        Chain(ground),
        Push(ground),
        Capistrano(ground),
        Tuned(ground),
        Playbook(ground),
        Image(ground),
    ]


def broken_words(status: int, failed: int, up: bool) -> str:
    """What a commit that cannot be imported did."""
    site = "old version serves" if up else "site down"
    return f"exit {status}, {site}" + (f", {failed} failed" if failed else "")


def as_json(ways: Sequence[Way]) -> str:
    """The names, for whoever reads a results file."""
    return json.dumps([way.name for way in ways])
