"""Twenty agents at once over SSH, against the same work by plain AsyncSSH and by an Ansible playbook.

One machine's sshd stands for twenty servers: twenty services' directories, each with its own mirror and releases, and
twenty plain clones for each of the others. A pair is one commit, brought to all twenty by each way from a cold process:

- *lightship*: twenty agents, each with its lock and journal: fetch, compare, make the release's tree, flip ``current``.
  The transport and the agent are the real ones; only the operation that does the last two alone, without a container,
  is the benchmark's own, as nothing is reloaded in any of the ways.
- *lightship, kept*: the same over connections that are kept (``keep_connected``); the process that keeps them counts.
- *AsyncSSH*: twenty connections, each running ``git fetch && git reset --hard``.
- *Ansible*: ``ansible-playbook`` with the git and file modules, 20 forks, no facts, pipelining.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

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
from benchmarks.machines import SOCKET, agent_with, let_in, names

if TYPE_CHECKING:
    from lightship.model import Server
    from lightship.transport.conversation import Conversation
    from support.repo import Repository

SERVERS = 20
PLAIN_LIMIT, ANSIBLE_LIMIT = 2.0, 1 / 3
PAIRS, QUICK_PAIRS = 7, 2
WARM_UP = 2
KEPT_SECONDS = 3600.0
FILES = 300
OURS, KEPT, PLAIN, ANSIBLE = "lightship", "lightship, kept", "AsyncSSH", "Ansible"
KEEP, CLOSE = "keep", "close"
CPU_LIMIT = 1.3
WORKER = 7
MEMORY, AGENT_MEMORY = 150, 40

AGENT_MAIN = b"""import gc
import os

gc.disable()
from lightship_agent import candidate, protocol, release
from lightship_agent.__main__ import main
from lightship_agent.actions import Actions
from lightship_agent.requests import PrepareRequest


def checkout(self, args):
    request = PrepareRequest.parse(args)
    with self._step("tree"):
        made = candidate.make_tree(self._tools(), request)
    release.flip(self._known_paths, request.commit, self._guard)
    return {"tree": made.tree}


Actions._checkout = checkout
protocol.LOCKING_OPERATIONS += ("checkout",)
protocol.OPERATIONS += ("checkout",)
gc.freeze()
gc.enable()
os._exit(main())
"""

PLAYBOOK = """\
- hosts: all
  gather_facts: false
  tasks:
    - git: {repo: /srv/git/remote.git, dest: "/srv/ansible/{{ inventory_hostname }}", version: main, force: true}
    - file: {path: "/srv/ansible/{{ inventory_hostname }}.reload", state: touch, mode: "0644"}
"""


@dataclass(frozen=True)
class Setting:
    """What a way needs to know, as it is handed to its process."""

    address: str
    config: str
    agent: str
    folder: str
    pid: int


# --- the ways, each in a process of its own -----------------------------------------


async def by_lightship(setting: Setting, commit: str) -> None:
    """Bring the commit to all by the real transport and agents."""
    from lightship.transport.conversation import Conversation  # noqa: PLC0415
    from lightship.transport.ssh import Network, SshTransport  # noqa: PLC0415

    async def nobody(_: str) -> str | None:
        return None

    network = Network(nobody)

    async def one(server: Server) -> None:
        transport = SshTransport(server, Path(setting.agent), network)
        async with await Conversation.open(transport) as conversation:
            await brought(conversation, commit)

    await asyncio.gather(*(one(server) for server in servers()))


async def by_kept(setting: Setting, commit: str) -> None:
    """The same over the connections that are kept."""
    from lightship.pool import client  # noqa: PLC0415
    from lightship.transport.conversation import Conversation  # noqa: PLC0415

    async def one(server: Server) -> None:
        channel = await client.borrow(server, Path(setting.agent), KEPT_SECONDS)
        if channel is None:
            raise BenchmarkError(f"no connection to {server.name} is kept")
        async with Conversation(server.name, channel) as conversation:
            await brought(conversation, commit)

    await asyncio.gather(*(one(server) for server in servers()))


async def brought(conversation: Conversation, commit: str) -> None:
    """What is said to one agent."""
    from lightship.transport.conversation import PROTOCOL  # noqa: PLC0415

    name = conversation.server
    hello = {"protocol": PROTOCOL, "service": name, "root": "/srv/lightship", "container": name, "lock": True}
    await conversation.call("hello", hello)
    await conversation.call("inspect", {"repository": "/srv/git/remote.git", "ref": "main", "infra": []})
    asked = {"commit": commit, "kind": "code", "app": "service.wsgi:application", "keep": 2}
    await conversation.call("checkout", asked)
    await conversation.bye()


def servers() -> list[Server]:
    """The twenty, each under the name that the SSH configuration knows."""
    from lightship.model import Server  # noqa: PLC0415

    return [Server(name, name, "root") for name in names(SERVERS)]


async def keep(setting: Setting) -> None:
    """Have the connections kept, and wait until they are; says which process keeps them."""
    from lightship.operations.connections import connections  # noqa: PLC0415
    from lightship.pool import client  # noqa: PLC0415

    client.keep(servers(), Path(setting.agent), KEPT_SECONDS)
    while len((found := connections()).connections) < SERVERS:
        if found.problems:
            raise BenchmarkError(f"a connection is not kept: {found.problems[0].message}")
        await asyncio.sleep(0.1)
    sys.stdout.write(f"{found.process}\n")


async def by_asyncssh(setting: Setting) -> None:
    """What a person would write with AsyncSSH."""
    import asyncssh  # noqa: PLC0415

    async def one(name: str) -> None:
        script = f"cd /srv/plain/{name} && git fetch --quiet && git reset --quiet --hard origin/main"
        async with asyncssh.connect(name, config=[setting.config]) as connection:
            await connection.run(script, check=True)

    await asyncio.gather(*(one(name) for name in names(SERVERS)))


def ansible_command(setting: Setting) -> tuple[list[str], dict[str, str]]:
    """The playbook's command and environment."""
    command = ["ansible-playbook", "--forks", str(SERVERS), "--inventory", "hosts.ini", "playbook.yml"]
    command[0] = str(Path(sys.executable).parent / command[0])
    return command, {
        **os.environ,
        "ANSIBLE_PIPELINING": "1",
        "ANSIBLE_SSH_ARGS": f"-F {setting.config}",
        "ANSIBLE_PYTHON_INTERPRETER": "/usr/bin/python3",
        "ANSIBLE_HOME": f"{setting.folder}/ansible",
    }


def our_command(way: str, setting: Setting, commit: str) -> tuple[list[str], dict[str, str]]:
    """The command and environment of a way that this module is, and of what is done for one."""
    from lightship.transport.ssh_config import CONFIG_VARIABLE  # noqa: PLC0415

    command = [sys.executable, "-m", "benchmarks.many_agents", way, json.dumps(asdict(setting)), commit]
    ours = {CONFIG_VARIABLE: setting.config, "XDG_RUNTIME_DIR": setting.folder}
    return command, {**os.environ, "SSH_AUTH_SOCK": "", **({} if way == PLAIN else ours)}


def timed(way: str, setting: Setting, commit: str, pool: int) -> Figures:
    """What one way takes, from a cold process to its end: seconds, processor time for each server, memory."""
    from benchmarks.cost import (  # noqa: PLC0415 - this module is also run by what is measured
        AgentsMemory,
        Command,
        cpu_of,
        cpu_of_process,
    )

    ansible = way == ANSIBLE
    command, environment = ansible_command(setting) if ansible else our_command(way, setting, commit)
    folder = Path(setting.folder) if ansible else ROOT

    def used() -> float:
        return cpu_of(setting.pid) + (cpu_of_process(pool) if way == KEPT else 0.0)

    before = used()
    job = Command(command, folder, environment, Path(setting.folder) / "log")
    with AgentsMemory(setting.pid) as agents:
        began = time.monotonic()
        ended = job.run()
        seconds = time.monotonic() - began
    if ended.status:
        raise BenchmarkError(f"{way} ended with {ended.status}: {ended.output[-2000:]}")
    return {
        "seconds": round(seconds, 4),
        "cpu": round((ended.cpu + used() - before) / SERVERS, 4),
        "memory": ended.memory,
        "agent_memory": agents.most,
    }


@contextlib.contextmanager
def pool_of(setting: Setting) -> Iterator[int]:
    """The process that keeps the connections to all, until the block ends."""
    command, environment = our_command(KEEP, setting, "-")
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode:
        raise BenchmarkError(f"the connections are not kept: {done.stderr[-1000:]}")
    try:
        yield int(done.stdout)
    finally:
        command, environment = our_command(CLOSE, setting, "-")
        subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=60)


# --- the machine ----------------------------------------------------------------


@dataclass(frozen=True)
class Ground:
    """The repository, and how a script is run on the machine."""

    repository: Repository
    do: Callable[[str], str]


@contextlib.contextmanager
def machine() -> Iterator[tuple[Setting, Ground]]:
    """The sshd with all the directories; it is gone afterwards."""
    from benchmarks.cost import container_pid  # noqa: PLC0415
    from support.engine import Engine, ensure, server_image  # noqa: PLC0415
    from support.repo import Repository  # noqa: PLC0415
    from support.sshd import make_key  # noqa: PLC0415

    engine = Engine(prefix=f"t{secrets.token_hex(3)}h", worker=WORKER, base_image=ensure())
    with scratch("agents") as folder:
        try:
            repository = Repository(folder)
            repository.commit("first", {f"service/file{number}.py": f"N = {number}\n" * 20 for number in range(FILES)})
            name, key = engine.name("sshd"), make_key(folder / "id_ed25519")
            # An engine answers there as on any server: where none does, each agent would start `docker` to be sure.
            volumes = (f"--volume={folder}:/srv/git:ro", f"--volume={SOCKET}:{SOCKET}")
            engine.run(*volumes, server_image(), name=name)
            address = engine.docker("inspect", "--format", "{{.NetworkSettings.IPAddress}}", name)
            ground = Ground(repository, lambda script: engine.docker("exec", name, "sh", "-ec", script, timeout=120))
            pid = container_pid(engine, name)
            yield prepare(folder, address, key, let_in(engine, name, key), ground, pid), ground
        finally:
            engine.clean()


def prepare(folder: Path, address: str, key: Path, keys: Sequence[str], ground: Ground, pid: int) -> Setting:
    """Clone for the ways that work in clones, and write what each needs."""
    for kind in ("plain", "ansible"):
        ground.do(
            f"mkdir -p /srv/{kind}; for n in {' '.join(names(SERVERS))}; do "
            f"git clone --quiet /srv/git/remote.git /srv/{kind}/$n; done"
        )
    known, config = folder / "known_hosts", folder / "config"
    known.write_text("".join(f"{address} {line}\n" for line in keys))
    lines = (f"UserKnownHostsFile {known}", "GlobalKnownHostsFile /dev/null", f"IdentityFile {key}", "User root")
    found = f"Host server*\n  HostName {address}\n"
    config.write_text(f"{found}Host *\n" + "".join(f"  {line}\n" for line in lines))
    (folder / "agent.pyz").write_bytes(agent_with(AGENT_MAIN))
    (folder / "playbook.yml").write_text(PLAYBOOK)
    (folder / "hosts.ini").write_text("".join(f"{name} ansible_host={address}\n" for name in names(SERVERS)))
    return Setting(address, str(config), str(folder / "agent.pyz"), str(folder), pid)


def everywhere(ground: Ground, way: str, version: str) -> None:
    """It has come to all servers, or there is no figure."""
    ours = "lightship/{}/code/current"
    path = {OURS: ours, KEPT: ours, PLAIN: "plain/{}", ANSIBLE: "ansible/{}"}[way]
    files = [f"/srv/{path.format(name)}/service/version.py" for name in names(SERVERS)]
    found = ground.do(f"cat {' '.join(files)}").splitlines()
    if found != [version] * len(files):
        raise BenchmarkError(f"{way}: {found.count(version)} of {len(files)} places have version {version}")


def run(options: Options) -> Report:
    """Warm all up, then measure them in turn."""
    samples: list[Figures] = []
    say(f"many agents: {SERVERS} of each")
    with machine() as (setting, ground), pool_of(setting) as pool:
        for number in range(-WARM_UP, options.pairs(PAIRS, QUICK_PAIRS)):
            for way in (OURS, KEPT, PLAIN, ANSIBLE):
                # Both of lightship's bring it to the same releases: a commit for each.
                if way != PLAIN:
                    version = f"# version {number} {way}"
                    commit = ground.repository.commit(version, {"service/version.py": f"{version}\n"})
                found = timed(way, setting, commit, pool)
                say(f"  {number:3} {way:15} {found['seconds']:.2f} s, CPU {found['cpu']:.3f} s a server")
                if number >= 0:
                    samples.append({"pair": number, "way": way, **found})
                everywhere(ground, way, version)
    return report_of(samples, options.quick)


def report_of(samples: Sequence[Figures], quick: bool) -> Report:
    """What twenty agents cost against the others."""
    ours, kept = of_way(samples, OURS, "seconds"), of_way(samples, KEPT, "seconds")
    processor = ratios(of_way(samples, KEPT, "cpu"), of_way(samples, PLAIN, "cpu"))
    plain = ratios(ours, of_way(samples, PLAIN, "seconds"))
    ansible = ratios(ours, of_way(samples, ANSIBLE, "seconds"))
    return Report(
        name="many_agents",
        title=f"{SERVERS} servers at once over SSH",
        promises=[
            Promise(
                f"{SERVERS} agents over SSH against plain AsyncSSH", median(plain), PLAIN_LIMIT, "times", len(plain)
            ),
            Promise(
                f"{SERVERS} agents over kept connections against plain AsyncSSH",
                median(ratios(kept, of_way(samples, PLAIN, "seconds"))),
                PLAIN_LIMIT,
                "times",
                len(kept),
            ),
            Promise(
                f"{SERVERS} agents over kept connections, processor time against plain AsyncSSH",
                median(processor),
                CPU_LIMIT,
                "times",
                len(processor),
            ),
            Promise(
                f"{SERVERS} agents over SSH against an Ansible playbook",
                median(ansible),
                ANSIBLE_LIMIT,
                "times",
                len(ansible),
            ),
            Promise(
                f"memory of the controller of {SERVERS} servers",
                _mebibytes(samples, "memory"),
                MEMORY,
                "MiB",
                len(ours),
            ),
            Promise("memory of an agent, at most", _mebibytes(samples, "agent_memory"), AGENT_MEMORY, "MiB", len(ours)),
        ],
        figures=[
            {
                "way": way,
                "seconds": median(of_way(samples, way, "seconds")),
                "CPU a server": median(of_way(samples, way, "cpu")),
                "MiB, controller": round(max(of_way(samples, way, "memory")) / 2**20, 1),
            }
            for way in (OURS, KEPT, PLAIN, ANSIBLE)
        ],
        samples=samples,
        machine=machine_facts(),
        quick=quick,
    )


def _mebibytes(samples: Sequence[Figures], name: str) -> float:
    """The most that any of our runs has taken."""
    return round(max(of_way(samples, OURS, name)) / 2**20, 1)


def main() -> None:
    """One way, once."""
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=(OURS, KEPT, PLAIN, KEEP, CLOSE))
    parser.add_argument("setting", type=lambda text: Setting(**json.loads(text)))
    parser.add_argument("commit")
    wanted = parser.parse_args()
    setting = wanted.setting
    if wanted.way == CLOSE:
        from lightship.operations.connections import close  # noqa: PLC0415

        close()
        return
    ways: dict[str, Callable[[], Coroutine[None, None, None]]] = {
        OURS: lambda: by_lightship(setting, wanted.commit),
        KEPT: lambda: by_kept(setting, wanted.commit),
        PLAIN: lambda: by_asyncssh(setting),
        KEEP: lambda: keep(setting),
    }
    asyncio.run(ways[wanted.way]())


if __name__ == "__main__":
    main()
