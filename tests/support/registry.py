"""A real image registry: Debian's docker-registry with TLS, a CA of its own and a password, at an address of ours.

Engines trust it by the CA's certificate under /etc/docker/certs.d, which is made here and removed again.
"""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import json
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from support.engine import Engine
from support.packages import find, need
from support.promises import until

__all__ = ["CERTIFICATES", "PASSWORD", "USER", "Registry", "gateway"]

CERTIFICATES = Path("/etc/docker/certs.d")
USER, PASSWORD = "ada", "s3cret-of-the-registry"
_CONFIG = """
version: 0.1
log: {{level: warn}}
storage:
  filesystem: {{rootdirectory: {folder}/data}}
  delete: {{enabled: true}}
http:
  addr: "0.0.0.0:{port}"
  secret: of-this-test
  tls: {{certificate: {folder}/server.crt, key: {folder}/server.key}}
auth:
  htpasswd: {{realm: test, path: {folder}/htpasswd}}
"""


def _run(*command: str, text: str = "") -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"
    return done.stdout


def gateway(engine: Engine, network: str) -> str:
    """This machine's address in a network of its engine."""
    subnet = engine.docker("network", "inspect", network, "--format", "{{(index .IPAM.Config 0).Subnet}}")
    return str(next(ipaddress.ip_network(subnet).hosts()))


@dataclass
class Registry:
    """The registry at one of this machine's addresses."""

    folder: Path
    address: str
    port: int
    process: subprocess.Popen[bytes] | None = None
    _trusted: list[Path] = field(default_factory=list)

    @property
    def host(self) -> str:
        """As it stands in an image's name."""
        return f"{self.address}:{self.port}"

    @property
    def ca(self) -> Path:
        """The certificate of its CA."""
        return self.folder / "ca.crt"

    @classmethod
    @contextlib.contextmanager
    def running(cls, engine: Engine, folder: Path, address: str) -> Iterator[Registry]:
        """Start one, trusted by the engine of this machine, and remove all traces of it afterwards."""
        wanted = {"docker-registry": "docker-registry", "htpasswd": "apache2-utils", "openssl": "openssl"}
        need("an image registry and its passwords", **wanted)
        folder.mkdir(parents=True, exist_ok=True)
        made = cls(folder, address, engine.free_port())
        made.prepare()
        try:
            made.trust()
            made.start()
            yield made
        finally:
            made.stop()
            made.distrust()

    def prepare(self) -> None:
        """Keys, certificates and passwords."""
        folder = self.folder
        key = ("-newkey", "rsa:2048", "-nodes", "-keyout")
        _run(
            "openssl", "req", "-x509", *key, f"{folder}/ca.key", "-out", str(self.ca), "-days", "30", "-subj", "/CN=CA"
        )
        _run("openssl", "req", *key, f"{folder}/server.key", "-out", f"{folder}/csr", "-subj", "/CN=registry")
        (folder / "names").write_text(f"subjectAltName=IP:{self.address}")
        signed = ("-CA", str(self.ca), "-CAkey", f"{folder}/ca.key", "-CAcreateserial", "-days", "30")
        out = ("-out", f"{folder}/server.crt", "-extfile", f"{folder}/names")
        _run("openssl", "x509", "-req", "-in", f"{folder}/csr", *signed, *out)
        (folder / "htpasswd").write_text(_run("htpasswd", "-Bbn", USER, PASSWORD))
        (folder / "config.yml").write_text(_CONFIG.format(folder=folder, port=self.port))

    def start(self) -> None:
        """Start it, and wait until it answers."""
        program = find("docker-registry")
        assert program is not None
        with (self.folder / "log").open("ab") as log:
            command = [program, "serve", str(self.folder / "config.yml")]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        until(self.answers, 20, f"the registry ({(self.folder / 'log').read_text()[-500:]})")

    def stop(self) -> None:
        """End it."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None

    @contextlib.contextmanager
    def down(self) -> Iterator[None]:
        """It does not answer in this block."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    def answers(self) -> bool:
        """Whether it does."""
        try:
            return isinstance(self.ask("/v2/"), bytes)
        except OSError:
            return False

    def ask(self, path: str, method: str = "GET") -> bytes:
        """Ask its API with the right password."""
        import ssl

        word = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        headers = {
            "Authorization": f"Basic {word}",
            "Accept": "application/vnd.docker.distribution.manifest.v2+json",
        }
        request = urllib.request.Request(f"https://{self.host}{path}", headers=headers, method=method)
        context = ssl.create_default_context(cafile=str(self.ca))
        with urllib.request.urlopen(request, timeout=10, context=context) as answer:
            found: bytes = answer.read()
            return found

    # --- who may, and who trusts it

    def trust(self) -> None:
        """Have the engine of this machine trust it."""
        folder = CERTIFICATES / self.host
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.ca, folder / "ca.crt")
        self._trusted.append(folder)

    def distrust(self) -> None:
        """Take that back."""
        for folder in self._trusted:
            shutil.rmtree(folder, ignore_errors=True)
        self._trusted.clear()

    def login(self, folder: Path, password: str = PASSWORD) -> dict[str, str]:
        """A configuration of docker with this login; the environment that has docker use it."""
        folder.mkdir(parents=True, exist_ok=True)
        word = base64.b64encode(f"{USER}:{password}".encode()).decode()
        (folder / "config.json").write_text(json.dumps({"auths": {self.host: {"auth": word}}}))
        (folder / "config.json").chmod(0o600)
        return {"DOCKER_CONFIG": str(folder)}

    # --- what is in it

    def tags(self, name: str) -> list[str]:
        """The tags of an image."""
        found: list[str] = json.loads(self.ask(f"/v2/{name}/tags/list"))["tags"]
        return sorted(found or ())

    def layers(self, name: str, reference: str) -> Sequence[str]:
        """The digests of an image's layers, the lowest first."""
        return [layer["digest"] for layer in json.loads(self.ask(f"/v2/{name}/manifests/{reference}"))["layers"]]

    def forget(self, name: str, digest: str) -> None:
        """Delete an image, as an administrator or a cleaning job does."""
        self.ask(f"/v2/{name}/manifests/{digest.rpartition('@')[2]}", "DELETE")

    def damage(self, layer: str) -> None:
        """Change some bytes of a layer on the registry's disk."""
        digest = layer.removeprefix("sha256:")
        path = self.folder / "data/docker/registry/v2/blobs/sha256" / digest[:2] / digest / "data"
        with path.open("r+b") as file:
            file.seek(20)
            file.write(b"damaged!")
