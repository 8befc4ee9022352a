"""What the compared ways stand on: one repository, one image, this machine's sshd, a registry when it is asked for."""

from __future__ import annotations

import contextlib
import functools
import secrets
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.common import BenchmarkError, scratch
from benchmarks.cost import container_pid
from benchmarks.machines import ADDRESS
from benchmarks.ssh_deploy import this_machine_by_ssh
from support.engine import Engine, ensure
from support.packages import find, need
from support.site import Site

__all__ = ["Ground", "ground"]

WORKER = 6
_REGISTRY = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: "{folder}"}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


@dataclass
class Ground:
    """The common part. ``site`` is lightship's own service, whose repository all ways deploy from."""

    engine: Engine
    site: Site
    image: str
    lightship_file: Path
    lightship_environment: Mapping[str, str]
    port: int
    ssh_config: Path
    key: Path
    known_hosts: Path
    home: Path
    sshd: str
    address: str = ADDRESS
    at_end: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    """What is to be ended with the comparison."""
    _master: bool = False

    @property
    def sshd_pid(self) -> int:
        """The sshd's first process."""
        return container_pid(self.engine, self.sshd)

    @property
    def others(self) -> Path:
        """Where the other ways keep their files; the sshd's machine sees it too."""
        return self.site.folder / "others"

    @property
    def remote(self) -> Path:
        """The repository that everything comes from."""
        return self.site.repository.remote

    @property
    def host(self) -> str:
        """The server for the ssh command."""
        return f"root@{self.address}"

    @property
    def control(self) -> Path:
        """The socket of the connection that is kept open."""
        return self.home / "control"

    @property
    def ssh_options(self) -> Sequence[str]:
        """Options of the ssh command."""
        return ("-F", str(self.ssh_config), "-p", str(self.port))

    def open_master(self, environment: Mapping[str, str]) -> None:
        """Open the connection that warm SSH means, unless it is."""
        if not self._master:
            words, socket = ["ssh", *self.ssh_options], ["-S", str(self.control)]
            calling = functools.partial(subprocess.run, env=dict(environment), capture_output=True, timeout=30)
            calling([*words, "-f", "-N", "-M", *socket, self.host], check=True)
            self.at_end.callback(calling, [*words, *socket, "-O", "exit", self.host], check=False)
            self._master = True

    def start_registry(self) -> int:
        """A registry on the loopback; its port."""
        need("an image registry", **{"docker-registry": "docker-registry"})
        folder, port = self.others / "registry", self.engine.free_port()
        folder.mkdir(parents=True)
        (folder / "config.yml").write_text(_REGISTRY.format(folder=folder / "data", port=port))
        program = find("docker-registry")
        if program is None:
            raise BenchmarkError("docker-registry cannot be found")
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [program, "serve", str(folder / "config.yml")], stdout=log, stderr=log, start_new_session=True
            )
        self.at_end.callback(process.wait, 20)
        self.at_end.callback(process.terminate)
        time.sleep(1)
        return port


@contextlib.contextmanager
def ground(import_seconds: float) -> Iterator[Ground]:
    """Everything that the ways need; all of it is gone afterwards."""
    need("what is compared", cap="capistrano", iptables="iptables")
    engine = Engine(prefix=f"t{secrets.token_hex(3)}h", worker=WORKER, base_image=ensure())
    with scratch("compare") as folder:
        try:
            site = Site(engine, folder / "site", settings={"keep": 2})
            site.change("first", import_seconds=import_seconds)
            (folder / "home").mkdir()
            site.run("deploy", expect=0)
            over_ssh = this_machine_by_ssh(engine, site, folder)
            config = folder / "config"
            made = Ground(
                engine=engine,
                site=site,
                image=engine.docker("inspect", "--format", "{{.Image}}", site.container()),
                lightship_file=over_ssh.file,
                lightship_environment=over_ssh.environment,
                port=over_ssh.port,
                ssh_config=config,
                key=folder / "id_ed25519",
                known_hosts=folder / "known_hosts",
                home=folder / "home",
                sshd=over_ssh.sshd,
            )
            with made.at_end:
                yield made
        finally:
            engine.clean()
