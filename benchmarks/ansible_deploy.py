"""A code deploy by the collection against the plain recipe of ``examples/plain-ansible``, at one server and at twenty.

Both are a cold ``ansible-playbook`` with the same settings: pipelining, a warm SSH connection, no facts, enough forks.
Both bring the same commit.

- At *one* server each deploys a real service under load, and the time is that until every response is new: with the
  collection the new code is booted beside the old and verified, with the recipe one uWSGI reloads after a touch.
- At *twenty* the time is that of the command, and nothing is reloaded in either way, as one machine could not run so
  many services: each server is an sshd with files of its own. lightship's agents are the real ones with their lock,
  fetch, comparison and trees; that they flip and verify without a container is the benchmark's own.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.code_deploy import IMPORT, ByHand, measure
from benchmarks.common import (
    ROOT,
    BenchmarkError,
    Figures,
    Options,
    Promise,
    Report,
    machine_facts,
    median,
    of_way,
    ratios,
    say,
    scratch,
)
from benchmarks.machines import ADDRESS, SOCKET, agent_with, let_in, names, this_machine

if TYPE_CHECKING:
    from support.engine import Engine
    from support.repo import Repository

SERVERS = 20
LIMITS = {1: 0.7, SERVERS: 0.5}
PAIRS, QUICK_PAIRS = 5, 2
WARM_UP = 2
FILES = 300
OURS, PLAIN = "lightship.deploy.code", "plain recipe"
WORKER = 7
TIMEOUT = 300
IDLE = "idle"
RECIPE = ROOT / "examples" / "plain-ansible" / "deploy.yml"

AGENT_MAIN = b"""import gc
import sys

gc.disable()
from lightship_agent import candidate, facts, release
from lightship_agent.__main__ import main
from lightship_agent.actions import Actions
from lightship_agent.requests import PrepareRequest

seen = facts.gather


def gather(*args):
    container = {"name": "site-1", "running": True, "instance": 1}
    return {**seen(*args), "container": container}


def prepare(self, args):
    self.request = PrepareRequest.parse(args)
    with self._step("tree"):
        made = candidate.make_tree(self._tools(), self.request)
    return {"tree": made.tree}


def activate(self, args):
    release.flip(self._known_paths, self.request.commit, self._guard)
    return {}


def verify(self, args):
    return {"workers": [{"id": 1, "pid": 1, "release": self.request.commit, "state": "serving"}]}


facts.gather = gather
Actions._prepare, Actions._activate, Actions._verify = prepare, activate, verify
Actions._commit = lambda self, args: {}
gc.freeze()
gc.enable()
sys.exit(main())
"""

CUSTOMIZE = """\
from pathlib import Path

from lightship.transport import zipapp

zipapp.agent_file = lambda: Path({agent!r})
"""


@dataclass
class Ground:
    """Servers, and a playbook's surroundings."""

    folder: Path
    count: int
    change: Callable[[str], str]
    configuration: Path
    recipe: dict[str, object]
    environment: dict[str, str]
    seen: Callable[[str], None] = lambda _: None
    urls: dict[str, str] = field(default_factory=dict)
    """Where the service answers that a way deploys, if it does."""

    def command(self, way: str) -> list[str]:
        """What is measured."""
        variables: dict[str, object] = {"app_become": False, "lightship_become": False}
        if way == OURS:
            variables |= {"lightship_config": str(self.configuration), "lightship_serial": "100%"}
        else:
            variables |= self.recipe
        playbook = OURS if way == OURS else str(RECIPE)
        program = str(Path(sys.executable).parent / "ansible-playbook")
        inventory = str(self.folder / "hosts.ini")
        return [program, "--forks", str(SERVERS), "--inventory", inventory, "-e", json.dumps(variables), playbook]

    def figures(self, way: str, version: str) -> Figures:
        """What one deploy takes: the command, and what counts."""
        if way in self.urls:
            found = measure(_Way(self.urls[way], lambda: self.run(way)), version)
            return {name: found[name] for name in ("command", "all_new", "worst", "failed")} | {
                "seconds": found["all_new"]
            }
        began = time.monotonic()
        self.run(way)
        seconds = round(time.monotonic() - began, 4)
        return {"command": seconds, "seconds": seconds}

    def run(self, way: str) -> None:
        """Run the playbook from a cold process to its end."""
        done = subprocess.run(
            self.command(way),
            cwd=self.folder,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        if done.returncode:
            raise BenchmarkError(f"{way} ended with {done.returncode}: {done.stdout[-3000:]}{done.stderr[-2000:]}")


@dataclass(frozen=True)
class _Way:
    """A way to deploy a service that is under load."""

    url: str
    deploy: Callable[[], None]


def surroundings(folder: Path, hosts: Sequence[tuple[str, str]], key: Path, known: Sequence[str]) -> dict[str, str]:
    """Write the inventory and what SSH needs; the environment for both ways."""
    (folder / "known_hosts").write_text("".join(f"{line}\n" for line in known))
    lines = (
        *(f"UserKnownHostsFile {folder / 'known_hosts'}", "GlobalKnownHostsFile /dev/null", f"IdentityFile {key}"),
        *("User root", "ControlMaster auto", "ControlPersist 600", f"ControlPath {folder}/%C"),
    )
    (folder / "ssh").write_text("Host *\n" + "".join(f"  {line}\n" for line in lines))
    (folder / "hosts.ini").write_text("".join(f"{name} {variables}\n" for name, variables in hosts))
    place = folder / "collections" / "ansible_collections" / "lightship"
    place.mkdir(parents=True)
    (place / "deploy").symlink_to(ROOT / "ansible")
    return {
        "ANSIBLE_COLLECTIONS_PATH": str(folder / "collections"),
        "ANSIBLE_PIPELINING": "1",
        "ANSIBLE_SSH_ARGS": f"-F {folder / 'ssh'}",
        "ANSIBLE_PYTHON_INTERPRETER": "/usr/bin/python3",
        "ANSIBLE_HOME": str(folder / "ansible"),
        "SSH_AUTH_SOCK": "",
    }


def idle_container(engine: Engine) -> str:
    """The container that the recipe sees to: it runs."""
    from support.engine import server_image  # noqa: PLC0415

    name = engine.name(IDLE)
    engine.run("--entrypoint", "sleep", server_image(), "infinity", name=name)
    return name


# --- one server ---------------------------------------------------------------------


@contextlib.contextmanager
def one_server() -> Iterator[Ground]:
    """A real service on this machine, which is reached through an sshd that sees all of it."""
    from support.engine import Engine, ensure  # noqa: PLC0415
    from support.site import Site  # noqa: PLC0415
    from support.sshd import make_key  # noqa: PLC0415

    engine = Engine(prefix=f"t{secrets.token_hex(3)}h", worker=WORKER, base_image=ensure())
    with scratch("ansible") as folder:
        try:
            site = Site(engine, folder / "site", settings={"keep": 2})
            site.run("deploy", expect=0)
            key = make_key(folder / "id_ed25519")
            _, port, keys = this_machine(engine, folder, key)
            known = [f"[{ADDRESS}]:{port} {line}" for line in keys]
            environment = surroundings(folder, [("web1", f"ansible_host={ADDRESS} ansible_port={port}")], key, known)
            image = engine.docker("inspect", "--format", "{{.Image}}", site.container())
            by_hand = ByHand(engine, site.repository, folder / "plain", image)
            by_hand.start()
            recipe: dict[str, object] = {
                "app_name": engine.docker("ps", "--filter", "name=by-hand", "--format", "{{.Names}}"),
                "app_repository": str(site.repository.remote),
                "app_directory": str(by_hand.folder),
                "app_version": "main",
            }
            change = lambda version: site.change(version, import_seconds=IMPORT)  # noqa: E731
            urls = {OURS: site.url, PLAIN: by_hand.url}
            yield Ground(folder, 1, change, site.folder / "lightship.yml", recipe, environment, urls=urls)
        finally:
            engine.clean()


# --- twenty -------------------------------------------------------------------------


@contextlib.contextmanager
def twenty_servers() -> Iterator[Ground]:
    """As many sshds, each with files of its own."""
    from support.engine import Engine, ensure, server_image  # noqa: PLC0415
    from support.repo import Repository  # noqa: PLC0415
    from support.sshd import make_key  # noqa: PLC0415

    engine = Engine(prefix=f"t{secrets.token_hex(3)}h", worker=WORKER, base_image=ensure())
    with scratch("ansible") as folder:
        try:
            repository = Repository(folder)
            repository.commit("first", {f"service/file{number}.py": f"N = {number}\n" * 20 for number in range(FILES)})
            key, hosts, known = make_key(folder / "id_ed25519"), [], []
            # The servers, and this machine, find the repository in the same place.
            volumes = (f"--volume={repository.remote}:{repository.remote}:ro", f"--volume={SOCKET}:{SOCKET}")
            containers = {one: engine.name(one) for one in names(SERVERS)}
            for one, name in containers.items():
                engine.run(*volumes, server_image(), name=name)
                address = engine.docker("inspect", "--format", "{{.NetworkSettings.IPAddress}}", name)
                known += [f"{address} {line}" for line in let_in(engine, name, key)]
                engine.docker("exec", name, "mkdir", "-p", "/srv/plain/run")
                hosts.append((one, f"ansible_host={address}"))
            environment = surroundings(folder, hosts, key, known)
            environment["PYTHONPATH"] = str(own_agent(folder))
            recipe: dict[str, object] = {
                "app_name": idle_container(engine),
                "app_repository": str(repository.remote),
                "app_directory": "/srv/plain",
                "app_version": "main",
            }
            yield Ground(
                folder,
                SERVERS,
                lambda version: repository.commit(version, {"service/version.py": f"# {version}\n"}),
                configuration(folder, repository),
                recipe,
                environment,
                lambda version: everywhere(engine, containers, f"# {version}"),
            )
        finally:
            engine.clean()


def configuration(folder: Path, repository: Repository) -> Path:
    """The lightship.yml of the service."""
    repository_path = str(repository.remote)
    service = {"repository": repository_path, "image": "site:1", "app": "service.wsgi:application", "keep": 2}
    path = folder / "lightship.yml"
    path.write_text(json.dumps({"services": {"site": service}}))
    return path


def own_agent(folder: Path) -> Path:
    """Where Python finds that the agent is the benchmark's."""
    (folder / "agent.pyz").write_bytes(agent_with(AGENT_MAIN))
    place = folder / "python"
    place.mkdir()
    (place / "sitecustomize.py").write_text(CUSTOMIZE.format(agent=str(folder / "agent.pyz")))
    return place


def everywhere(engine: Engine, containers: Mapping[str, str], version: str) -> None:
    """Both ways have brought it to all servers, or there is no figure."""
    script = "cat /srv/lightship/site/code/current/service/version.py /srv/plain/code/service/version.py"
    for one, name in containers.items():
        found = engine.docker("exec", name, "sh", "-ec", script).splitlines()
        if found != [version] * 2:
            raise BenchmarkError(f"{one} has {found} and not {version}")


# --- measuring ----------------------------------------------------------------------


def run(options: Options) -> Report:
    """Warm both up, then measure them in turn; first at one server, then at twenty."""
    samples: list[Figures] = []
    for made in (one_server, twenty_servers):
        with made() as ground:
            say(f"ansible deploy: {ground.count} server{'s' if ground.count > 1 else ''}")
            for number in range(-WARM_UP, options.pairs(PAIRS, QUICK_PAIRS)):
                version = f"v{number + WARM_UP}"
                ground.change(version)
                for way in (OURS, PLAIN):
                    found = ground.figures(way, version)
                    say(f"  {version:6} {way:22} {found['seconds']:.2f} s, command {found['command']:.2f} s")
                    if number >= 0:
                        samples.append({"servers": ground.count, "pair": number, "way": way, **found})
                ground.seen(version)
    return report_of(samples, options.quick)


def report_of(samples: Sequence[Figures], quick: bool) -> Report:
    """What the collection costs against the recipe."""
    promises, figures = [], []
    for servers, limit in LIMITS.items():
        mine = [one for one in samples if one["servers"] == servers]
        found = ratios(of_way(mine, OURS, "seconds"), of_way(mine, PLAIN, "seconds"))
        many = f"{servers} servers" if servers > 1 else "1 server"
        promises.append(
            Promise(f"code deploy by the collection against the plain recipe, {many}", median(found), limit, "times",
                    len(found))
        )  # fmt: skip
        figures += [
            {
                "servers": servers,
                "way": way,
                **{name: median(of_way(mine, way, name)) for name in ("seconds", "command")},
            }
            for way in (OURS, PLAIN)
        ]
    return Report(
        name="ansible_deploy",
        title="A code deploy by Ansible",
        promises=promises,
        figures=figures,
        samples=samples,
        machine=machine_facts(),
        quick=quick,
    )
