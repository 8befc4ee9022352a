"""Several real servers: containers with an sshd and a Docker engine of their own, a git server, a private network.

The network leads nowhere else: what the servers need they have, or get from the controller (the machine that the tests
run on) or from the git server by SSH. The service's image is built once and loaded into each engine.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lightship.transport.ssh_config import CONFIG_VARIABLE
from support.engine import Engine, server_image
from support.load import Load, LoadReport
from support.packages import need
from support.promises import until
from support.repo import git
from support.site import Said, Site
from support.sshd import make_key

IMAGE = "127.0.0.1:5000/fleet/site:1"
"""A registry that is not there: the engines have the image, and asking for it fails at once."""

ROOT = "/srv/lightship"
TESTING = {"LIGHTSHIP_TESTING": "1"}
"""What lets fail points of the controller act, which ``LIGHTSHIP_FAILPOINTS`` names."""

# More than any test needs: a load ends by itself only if its test hangs.
LOAD_SECONDS = 400.0
COUNT = int(os.environ.get("LIGHTSHIP_TEST_SERVERS", "4"))
# How the command of an agent begins.
_AGENT = "^python3 -I -S -c import os,sys"
_numbers = itertools.count(1)
_CAPABILITIES = (
    *("SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE", "SYS_MODULE", "DAC_READ_SEARCH", "SYS_NICE", "SYS_TIME", "IPC_LOCK"),
    *("LINUX_IMMUTABLE", "SYS_RAWIO", "SYSLOG", "MAC_ADMIN", "MAC_OVERRIDE"),
)
# What `--privileged` would do, where the machine lacks some of it.
_SERVER_OPTIONS = (
    *(f"--cap-add={name}" for name in _CAPABILITIES),
    *(f"--security-opt={name}=unconfined" for name in ("seccomp", "apparmor", "systempaths")),
    "--device-cgroup-rule=a *:* rwm",
)
# Where the others find what the engine of the first server has.
_SEED = "/seed"


@dataclass
class Machine:
    """One of the containers. ``name`` is how the controller's ssh configuration calls it."""

    engine: Engine
    name: str
    container: str
    address: str

    def do(self, script: str, *, check: bool = True, timeout: float = 120) -> str:
        """Run a script in it as root; what it said."""
        return self.engine.docker("exec", self.container, "sh", "-ec", script, check=check, timeout=timeout)

    def put(self, path: str, text: str, mode: str = "644") -> None:
        """Write a file in it."""
        command = ["docker", "exec", "-i", self.container, "sh", "-ec", f"cat >{path} && chmod {mode} {path}"]
        subprocess.run(command, input=text, text=True, check=True, capture_output=True)

    def host_keys(self) -> str:
        """The public halves of its keys, a line each."""
        return self.do("cut -d' ' -f1,2 /etc/ssh/ssh_host_*_key.pub")

    def engine_answers(self) -> bool:
        """Whether its Docker engine does."""
        return bool(self.do("docker version --format '{{.Server.Version}}' 2>/dev/null || true"))

    def start_engine(self) -> None:
        """Start its Docker engine, and wait until it answers."""
        self.do("engine-start")
        until(self.engine_answers, 60, f"the Docker engine of {self.name}")

    def stop_engine(self) -> None:
        """End its Docker engine, with all that it runs."""
        self.do("kill $(cat /var/run/docker.pid); while pgrep -x dockerd >/dev/null; do sleep 0.1; done", timeout=60)

    def cut(self) -> None:
        """From now on nothing of SSH comes or goes, and neither side is told; requests to services do."""
        self.do("iptables -I INPUT -p tcp --dport 22 -j DROP; iptables -I OUTPUT -p tcp --sport 22 -j DROP")

    def mend(self) -> None:
        """Undo all that was done to its network."""
        self.do("iptables -F INPUT; iptables -F OUTPUT")

    def limit(self, percent: int | None) -> None:
        """Give it this much of one processor, or all there is."""
        quota = -1 if percent is None else percent * 1000
        self.engine.docker("update", f"--cpu-period={100_000}", f"--cpu-quota={quota}", self.container)

    def agents(self) -> int:
        """So many agents run on it."""
        return int(self.do(f"pgrep -fc -- '{_AGENT}' || true"))

    def signal_agents(self, name: str) -> None:
        """Send a signal to all that do."""
        self.do(f"pkill -{name} -f -- '{_AGENT}' || true")

    def throttled(self) -> int:
        """So many times it had to wait since it may not have more of the processor."""
        return int(
            self.do(
                "cat /sys/fs/cgroup/cpu/cpu.stat /sys/fs/cgroup/cpu.stat 2>/dev/null | "
                "awk '$1 == \"nr_throttled\" { print $2; exit }'"
            )
        )


@dataclass
class Servers:
    """The servers, their git server and their network."""

    engine: Engine
    folder: Path
    network: str
    git: Machine
    machines: list[Machine]
    key: Path
    known: Path
    config: Path

    @property
    def names(self) -> list[str]:
        """What the servers are called."""
        return [one.name for one in self.machines]

    @property
    def environment(self) -> dict[str, str]:
        """What `lightship` and git need on the controller."""
        ssh = f"ssh -F {self.config} -oBatchMode=yes"
        return {CONFIG_VARIABLE: str(self.config), "GIT_SSH_COMMAND": ssh, "SSH_AUTH_SOCK": ""}

    @classmethod
    @contextlib.contextmanager
    def running(cls, engine: Engine, folder: Path, count: int) -> Iterator[Servers]:
        """Start them, and remove them afterwards whatever happened."""
        need("the client's side of SSH", ssh="openssh-client")
        image, network, seed = server_image(), engine.name("net"), engine.name("seed")
        engine.docker("network", "create", "--internal", "--label", engine.label, network)
        engine.docker("volume", "create", "--label", engine.label, seed)
        started: list[str] = []

        def start(name: str) -> Machine:
            options = []
            if name != "git.fleet":
                volumes = [f"{seed}:/var/lib/docker"] if name == "web1" else ["/var/lib/docker", f"{seed}:{_SEED}:ro"]
                options = [*_SERVER_OPTIONS, *(f"--volume={volume}" for volume in volumes)]
            return _start(engine, image, network, name, started, options)

        try:
            with ThreadPoolExecutor() as pool:
                made = list(pool.map(start, ["git.fleet", *(f"web{number}" for number in range(1, count + 1))]))
            servers = cls._connected(engine, folder, network, made)
            yield servers
        finally:
            if started:
                engine.docker("rm", "--force", "--volumes", *started, check=False)
            engine.docker("network", "rm", network, check=False)
            engine.docker("volume", "rm", seed, check=False)

    @classmethod
    def _connected(cls, engine: Engine, folder: Path, network: str, made: Sequence[Machine]) -> Servers:
        """Let the controller into all of them, and the servers to the git server."""
        key, known, config = make_key(folder / "id_ed25519"), folder / "known_hosts", folder / "config"
        servers = cls(engine, folder, network, made[0], list(made[1:]), key, known, config)
        allowed = Path(f"{key}.pub").read_text()
        for one in servers.machines:
            one.put("/etc/ssh/keys", allowed)
            one.do("mkdir -p -m 700 /root/.ssh && ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519")
            lines = "".join(f"git.fleet {line}\n" for line in servers.git.host_keys().splitlines())
            one.put("/root/.ssh/known_hosts", lines)
            allowed_to_git = one.do("cat /root/.ssh/id_ed25519.pub")
            servers.git.do(f"echo '{allowed_to_git}' >>/etc/ssh/keys; chmod 644 /etc/ssh/keys")
        servers.git.do(f"echo '{Path(f'{key}.pub').read_text().strip()}' >>/etc/ssh/keys; chmod 644 /etc/ssh/keys")
        servers.know()
        servers.configure()
        return servers

    def know(self) -> None:
        """Take the keys that all of them have now for known."""
        lines = [
            f"{one.name} {key}\n{one.address} {key}\n"
            for one in (self.git, *self.machines)
            for key in one.host_keys().splitlines()
        ]
        self.known.write_text("".join(lines))

    def configure(self, text: str = "") -> None:
        """Write the controller's ssh configuration, with ``text`` first."""
        hosts = [
            f"Host {one.name}\n  HostName {one.address}\n  HostKeyAlias {one.name}\n"
            for one in (self.git, *self.machines)
        ]
        common = (
            f"Host *\n  UserKnownHostsFile {self.known}\n  GlobalKnownHostsFile /dev/null\n  IdentityFile {self.key}\n"
        )
        self.config.write_text(f"{text}\n{''.join(hosts)}{common}  User root\n  ConnectTimeout 5\n")

    def load_image(self, tag: str) -> None:
        """Start the engines, with an image of this machine's engine in each, as ``IMAGE``.

        It is loaded once; the others copy the files that this has made, which takes a tenth of the time.
        """
        first, others = self.machines[0], self.machines[1:]
        first.start_engine()
        self.engine.docker("tag", tag, IMAGE)
        try:
            _pipe(["docker", "save", IMAGE], ["docker", "exec", "-i", first.container, "docker", "load", "--quiet"])
        finally:
            self.engine.docker("image", "rm", IMAGE, check=False)
        first.stop_engine()
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda one: one.do(f"cp -a {_SEED}/. /var/lib/docker/"), others))
            list(pool.map(Machine.start_engine, self.machines))


def _pipe(giver: Sequence[str], taker: Sequence[str]) -> None:
    """Both commands, the one's output into the other."""
    with subprocess.Popen(giver, stdout=subprocess.PIPE) as giving:
        done = subprocess.run(taker, stdin=giving.stdout, capture_output=True, text=True, timeout=300, check=False)
        if giving.stdout is not None:
            giving.stdout.close()
    assert done.returncode == 0, done.stderr
    assert giving.returncode == 0, giver


def _start(engine: Engine, image: str, network: str, name: str, started: list[str], options: Sequence[str]) -> Machine:
    container = engine.name(name.replace(".", "-"))
    started.append(container)
    where = ["--network", network, "--network-alias", name, "--hostname", name.replace(".", "-")]
    engine.run("--init", *where, *options, image, name=container)
    address = engine.docker(
        "inspect", "--format", f'{{{{(index .NetworkSettings.Networks "{network}").IPAddress}}}}', container
    )
    made = Machine(engine, name, container, address)
    until(lambda: made.do("test -s /run/sshd.pid && echo up || true"), 120, f"the sshd of {name}")
    return made


@dataclass
class Fleet(Site):
    """A service on several servers. What looks at one machine's files in ``Site`` is asked of a server here."""

    servers: Servers = field(kw_only=True)

    def __post_init__(self) -> None:
        servers = self.servers
        self.environment = {**servers.environment, **self.environment}
        given = self.settings
        self.settings = {
            "repository": "ssh://git@git.fleet/home/git/{name}.git",
            "root": ROOT,
            "servers": servers.names,
            "image": IMAGE,
            "ports": ["8000:8000"],
            **given,
        }
        self.name = self.name or self.engine.name("site")
        self.settings["repository"] = str(self.settings["repository"]).format(name=self.name)
        super().__post_init__()
        path = f"/home/git/{self.name}.git"
        self.servers.git.do(f"runuser -u git -- git init --quiet --bare --initial-branch=main {path}", timeout=30)
        git(self.repository.tree, "remote", "set-url", "origin", f"ssh://git@git.fleet{path}")
        git(self.repository.tree, "config", "core.sshCommand", servers.environment["GIT_SSH_COMMAND"])
        self.repository.push()

    @property
    def home(self) -> Path:
        """The service's directory on each server."""
        return Path(str(self.settings["root"])) / self.name

    def current_on(self, machine: Machine) -> str | None:
        """The commit that `current` names on a server."""
        return machine.do(f"basename $(readlink {self.home}/code/current) 2>/dev/null || true") or None

    @property
    def currents(self) -> dict[str, str | None]:
        """The same on each server."""
        return {one.name: self.current_on(one) for one in self.servers.machines}

    @property
    def release(self) -> str:
        """The one that all servers have."""
        (found,) = set(self.currents.values())
        assert found is not None
        return found

    def fingerprints(self) -> dict[str, str]:
        """Of each server what a command that changes nothing must leave as it is: containers, link, processes."""
        script = (
            f"cd {self.home}; docker ps --all --no-trunc --format '{{{{.ID}}}} {{{{.Names}}}}'; "
            "readlink code/current; pgrep uwsgi || true"
        )
        return {one.name: one.do(script) for one in self.servers.machines}

    def url_of(self, machine: Machine) -> str:
        """Where the service answers on a server."""
        return f"http://{machine.address}:{self.settings['ports'][0].partition(':')[0]}"

    @contextlib.contextmanager
    def loads(self, machines: Sequence[Machine] | None = None) -> Iterator[dict[str, Load]]:
        """A load on each of these servers (all, if not said), a heavy one on the first; see ``no_failures``."""
        with contextlib.ExitStack() as stack:
            loads: dict[str, Load] = {}
            for one in self.servers.machines if machines is None else machines:
                load = Load(self.url_of(one) + "/", rate=20 if loads else 100, seconds=LOAD_SECONDS)
                loads[one.name] = stack.enter_context(load)
            for load in loads.values():
                assert load.wait_count(10)
            yield loads
            assert all(load.running for load in loads.values()), "a load ended before what it was to watch"

    def new(self, **what: Any) -> str:
        """Another version, pushed; its commit."""
        return self.change(f"v{next(_numbers)}", **what)

    def goes_on(self) -> str:
        """The next deploy needs no help, and brings every server to one release; its commit."""
        commit = self.new()
        self.deploy()
        all_run(self, commit)
        return commit

    def facts(self) -> dict[str, Mapping[str, Any]]:
        """What `lightship status` tells of each server."""
        return {one["server"]: one for one in self.run("status", "--json").result["servers"]}

    def close(self) -> None:
        """Remove its containers and files from the servers too."""
        for one in self.servers.machines:
            with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
                one.do(
                    f"docker ps --all --quiet --filter name={self.name}- | xargs -r docker rm --force --volumes; "
                    f"rm -rf {self.home}"
                )
        super().close()


def no_failures(loads: Mapping[str, Load]) -> dict[str, LoadReport]:
    """No request failed on any of them; the reports."""
    reports = {name: load.report for name, load in loads.items()}
    failed = {name: (dict(one.errors), one.count) for name, one in reports.items() if one.failed}
    assert not failed, json.dumps(failed)
    return reports


def outcomes(said: Said) -> dict[str, str]:
    """What became of each server."""
    return {one["server"]: one["outcome"] for one in said.result["servers"]}


def one_release_each(fleet: Fleet) -> dict[str, str]:
    """Each server serves the release that it has on disk, and `status` tells the truth of whether they differ."""
    return _told(fleet)[1]


def all_run(fleet: Fleet, commit: str) -> None:
    """Every server has it on disk and in every worker, and `status` finds nothing that differs."""
    said, found = _told(fleet)
    assert found == dict.fromkeys(fleet.servers.names, commit)
    assert said.result["drift"] == []


def _told(fleet: Fleet) -> tuple[Said, dict[str, str]]:
    """What `status` says, and each server's release."""
    said, found = fleet.run("status", "--json"), {}
    for one in said.result["servers"]:
        loaded = {worker["release"] for worker in _workers(one) if worker["state"] == "serving"}
        assert loaded == {one["on_disk"]}, (one["server"], loaded, one["on_disk"])
        found[one["server"]] = str(one["on_disk"])
    assert found == fleet.currents
    assert said.status == (5 if len(set(found.values())) > 1 else 0), said.shown
    if not _only_serving(said):
        # Those that serve no more are stopped by their keeper, in its own time.
        until(lambda: _only_serving(fleet.run("status", "--json")), 60, "the end of the workers that do not serve")
    return said, found


def _only_serving(said: Said) -> bool:
    return all(worker["state"] == "serving" for one in said.result["servers"] for worker in _workers(one))


def _workers(told: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All workers of a server in `status`."""
    return [worker for slot in told["facts"]["slots"].values() for worker in slot["workers"]]


@pytest.fixture(scope="session")
def servers(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Real servers with the image of a service in each."""
    site = Site(engine, tmp_path_factory.mktemp("image"))
    with ThreadPoolExecutor() as pool:
        built = pool.submit(engine.build, site.repository.tree, engine.name("image"))
        with Servers.running(engine, tmp_path_factory.mktemp("servers"), COUNT) as made:
            made.load_image(built.result())
            yield made


@pytest.fixture(scope="session")
def live(engine: Engine, servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A service that runs on all of them and stays there, for tests that leave it so: one release on each."""
    folder = tmp_path_factory.mktemp("live") / "site"
    made = Fleet(engine, folder, settings={"ports": ["8100:8000"]}, servers=servers)
    try:
        said = made.deploy()
        assert outcomes(said) == dict.fromkeys(servers.names, "done")
        all_run(made, made.repository.head)
        yield made
    finally:
        made.close()


@pytest.fixture
def fleet(engine: Engine, servers: Servers, tmp_path: Path) -> Iterator[Fleet]:
    """A service of its own on them, not yet deployed."""
    made = Fleet(engine, tmp_path / "site", servers=servers)
    try:
        yield made
    finally:
        made.close()
