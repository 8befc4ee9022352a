"""A code deploy over SSH, against the same deploy of the same service from the machine itself.

The server is this machine, reached through a real sshd: it runs in a container that sees this machine's processes, the
engine's socket and the service's directory, so that the agent finds behind SSH just what it finds without. They
take turns, a commit each, under a load of 100 requests a second. What SSH adds is the handshake, a second Python and
each answer's way; over a connection that is kept (``keep_connected``) only the last of these.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.code_deploy import IMPORT, measure
from benchmarks.common import (
    BenchmarkError,
    Figures,
    Options,
    Promise,
    Report,
    machine_facts,
    median,
    of_way,
    say,
    scratch,
)
from benchmarks.machines import ADDRESS, this_machine
from lightship.transport.ssh_config import CONFIG_VARIABLE
from support.engine import Engine, ensure
from support.site import LIGHTSHIP, Site
from support.sshd import make_key

LIMIT, KEPT_LIMIT = 0.3, 0.1
PAIRS, QUICK_PAIRS = 9, 3
WARM_UP = 3
WORKER = 7
LOCAL, SSH, KEPT = "local", "over SSH", "over SSH, kept"
KEPT_SECONDS = 3600


@dataclass
class Deploy:
    """A cold ``lightship deploy`` with one of the configurations."""

    site: Site
    file: Path
    environment: dict[str, str]
    sshd: str = ""
    """The container of the sshd that it goes through, and its port."""
    port: int = 0

    @property
    def url(self) -> str:
        """Where the service answers."""
        return self.site.url

    def deploy(self) -> None:
        """The command, its output into a pipe as in a script."""
        command = [str(LIGHTSHIP), "deploy", "--config", str(self.file)]
        environment = {**os.environ, **self.environment}
        done = subprocess.run(command, cwd=self.site.folder, env=environment, capture_output=True, check=False)
        if done.returncode:
            raise BenchmarkError(f"lightship deploy ended with {done.returncode}: {done.stderr.decode()[-1000:]}")


def kept(way: Deploy, folder: Path) -> Deploy:
    """The same way, over a connection that is kept from one deploy to the next."""
    configured = json.loads(way.file.read_text())
    configured["services"][way.site.name]["keep_connected"] = KEPT_SECONDS
    file = way.file.with_name("kept.yml")
    file.write_text(json.dumps(configured))
    environment = {**way.environment, "XDG_RUNTIME_DIR": str(folder), "CI": ""}
    return Deploy(way.site, file, environment, way.sshd, way.port)


def hang_up(way: Deploy) -> None:
    """End what a kept way keeps."""
    command, environment = [str(LIGHTSHIP), "connections", "--close"], {**os.environ, **way.environment}
    subprocess.run(command, env=environment, capture_output=True, check=True, timeout=60)


def this_machine_by_ssh(engine: Engine, site: Site, folder: Path) -> Deploy:
    """Start the sshd, let this user in, and write the configuration that goes through it."""
    key = make_key(folder / "id_ed25519")
    name, port, keys = this_machine(engine, site.folder, key)
    known, config = folder / "known_hosts", folder / "config"
    known.write_text("".join(f"[{ADDRESS}]:{port} {line}\n" for line in keys))
    config.write_text(
        f"Host *\n  UserKnownHostsFile {known}\n  GlobalKnownHostsFile /dev/null\n  IdentityFile {key}\n  User root\n"
    )
    configured = json.loads((site.folder / "lightship.yml").read_text())
    configured["services"][site.name]["servers"] = [f"{ADDRESS}:{port}"]
    file = site.folder / "ssh.yml"
    file.write_text(json.dumps(configured))
    return Deploy(site, file, {CONFIG_VARIABLE: str(config), "SSH_AUTH_SOCK": ""}, name, port)


@contextlib.contextmanager
def both_ways() -> Iterator[tuple[Site, list[tuple[str, Deploy]]]]:
    """The service and both ways to it; all of it is gone afterwards."""
    engine = Engine(prefix=f"t{secrets.token_hex(3)}h", worker=WORKER, base_image=ensure())
    with scratch("ssh") as folder:
        try:
            site = Site(engine, folder / "site", settings={"keep": 2})
            say("ssh deploy: building the image and starting the service")
            site.run("deploy", expect=0)
            over_ssh = this_machine_by_ssh(engine, site, folder)
            over_kept = kept(over_ssh, folder)
            try:
                local = Deploy(site, site.folder / "lightship.yml", {})
                yield site, [(LOCAL, local), (SSH, over_ssh), (KEPT, over_kept)]
            finally:
                hang_up(over_kept)
        finally:
            engine.clean()


def run(options: Options) -> Report:
    """Warm both up, then measure them in turn."""
    samples: list[Figures] = []
    pairs = options.pairs(PAIRS, QUICK_PAIRS)
    with both_ways() as (site, ways):
        for number in range(-WARM_UP, pairs):
            for name, way in ways:
                version = f"{name.split()[-1]}{number}".replace("-", "w")
                site.change(version, import_seconds=IMPORT)
                found = measure(way, version)
                say(f"  {version:10} all new {found['all_new']:.2f} s, command {found['command']:.2f} s")
                if number >= 0:
                    samples.append({"pair": number, "way": name, **found})
    return report_of(samples, options.quick)


def more(samples: Sequence[Figures], way: str, figure: str) -> list[float]:
    """By pair, how much more it is over SSH."""
    pairs = zip(of_way(samples, way, figure), of_way(samples, LOCAL, figure), strict=True)
    return [ssh - local for ssh, local in pairs]


def report_of(samples: Sequence[Figures], quick: bool) -> Report:
    """What SSH adds to a deploy."""
    added, added_kept = more(samples, SSH, "all_new"), more(samples, KEPT, "all_new")
    return Report(
        name="ssh_deploy",
        title="A code deploy over SSH",
        promises=[
            Promise(
                "code deploy over SSH until every response is new, more than locally",
                median(added),
                LIMIT,
                "s",
                len(added),
            ),
            Promise(
                "the same over a connection that is kept",
                median(added_kept),
                KEPT_LIMIT,
                "s",
                len(added_kept),
            ),
            Promise(
                "failed requests in all deploys over SSH",
                sum(of_way(samples, SSH, "failed")) + sum(of_way(samples, KEPT, "failed")),
                0,
                "requests",
                len(added),
                "exactly",
            ),
        ],
        figures=[
            {
                "way": way,
                **{
                    name.replace("_", " "): median(of_way(samples, way, name))
                    for name in ("command", "all_new", "worst")
                },
                "failed": int(sum(of_way(samples, way, "failed"))),
            }
            for way in (LOCAL, SSH, KEPT)
        ],
        samples=samples,
        machine=machine_facts(),
        quick=quick,
    )
