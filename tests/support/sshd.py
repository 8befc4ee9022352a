"""A real sshd in a container, with the users that a server may have, and the client's side: keys, known hosts, config.

Two of them listen: one for all on port 22, and one that only the container itself reaches (port 2222), which is what a
jump host is for.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from lightship.model import Server
from lightship.transport.ssh_config import CONFIG_VARIABLE
from support.engine import Engine, server_image
from support.packages import need

__all__ = ["INNER_PORT", "Client", "Sshd"]

INNER_PORT = 2222
# Upon the image of the servers, which is there: to install the same packages once more takes half a minute.
_DOCKERFILE = """
ARG SERVER_IMAGE
FROM ${SERVER_IMAGE}
ENTRYPOINT []
RUN mkdir -p /run/sshd && ssh-keygen -q -A && for user in strict asks plain noisy; do \\
        useradd --create-home --shell /bin/bash "$user" && usermod -p '*' "$user" || exit 1; done \\
    && echo 'noisy ALL=(root) NOPASSWD: ALL' >/etc/sudoers.d/test \\
    && echo 'strict ALL=(root) NOPASSWD: ALL' >>/etc/sudoers.d/test \\
    && echo 'Defaults:strict use_pty' >>/etc/sudoers.d/test \\
    && echo 'asks ALL=(root) ALL' >>/etc/sudoers.d/test \\
    && { echo 'echo "Welcome to the machine"; printf "{\\"no\\": \\"line\\"}\\nno end"; echo more >&2'; \\
         cat /home/noisy/.bashrc; } >/tmp/noise && mv /tmp/noise /home/noisy/.bashrc
COPY sshd_config /etc/ssh/sshd_config
"""
_CONFIG = """
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
MaxStartups 100
TrustedUserCAKeys /etc/ssh/user_ca.pub
AuthorizedKeysFile /etc/ssh/keys
"""


def _run(*command: str, **environment: str) -> str:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"
    return done.stdout


def make_key(path: Path, *, kind: str = "ed25519", passphrase: str = "") -> Path:
    """A new key pair in ``path`` and ``path.pub``."""
    _run("ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", path.name, "-f", str(path))
    return path


@dataclass
class Sshd:
    """The container. ``authority`` signs hosts and users."""

    engine: Engine
    name: str
    address: str
    authority: Path
    ports: list[int] = field(default_factory=list)

    @classmethod
    def start(cls, engine: Engine, folder: Path, dockerfile: str = _DOCKERFILE) -> Sshd:
        """Build the image, start the container and both servers."""
        need("the client's side of SSH", ssh="openssh-client")
        (folder / "Dockerfile").write_text(dockerfile)
        (folder / "sshd_config").write_text(_CONFIG)
        image = engine.build(folder, engine.name("sshd"), "--build-arg", f"SERVER_IMAGE={server_image()}")
        name = engine.name("sshd")
        engine.run("--init", image, "sleep", "infinity", name=name)
        address = engine.docker("inspect", "--format", "{{.NetworkSettings.IPAddress}}", name)
        authority = make_key(folder / "authority")
        made = cls(engine, name, address, authority)
        made.put("/etc/ssh/user_ca.pub", Path(f"{authority}.pub").read_text())
        made.put("/etc/ssh/keys", "")
        made.serve()
        return made

    def do(self, script: str, *, user: str = "root") -> str:
        """Run a script in the container; what it said."""
        return self.engine.docker("exec", "--user", user, self.name, "sh", "-ec", script)

    def put(self, path: str, text: str) -> None:
        """Write a file in the container."""
        command = ["docker", "exec", "-i", self.name, "sh", "-c", f"cat >{path} && chmod 644 {path}"]
        subprocess.run(command, input=text, text=True, check=True, capture_output=True)

    def serve(self) -> None:
        """Start both servers."""
        self.do("/usr/sbin/sshd -p 22 -o PidFile=/run/sshd.pid")
        self.do(f"/usr/sbin/sshd -p {INNER_PORT} -o ListenAddress=127.0.0.1 -o PidFile=/run/sshd-inner.pid")

    def stop(self) -> None:
        """Stop both; connections that are there stay."""
        self.do("kill $(cat /run/sshd.pid /run/sshd-inner.pid)")

    def cut(self) -> None:
        """End all connections, as a network does that is gone for good."""
        self.do("pkill -KILL -f '^sshd: [a-z]' || true")

    def admit(self, *keys: Path) -> None:
        """Let these keys in, for all users."""
        self.put("/etc/ssh/keys", "".join(Path(f"{key}.pub").read_text() for key in keys))

    def host_keys(self) -> str:
        """The public halves of its keys, a line each."""
        return self.do("cut -d' ' -f1,2 /etc/ssh/ssh_host_*_key.pub")

    def new_host_keys(self) -> None:
        """The host has other keys from now on."""
        self.stop()
        self.do("rm /etc/ssh/ssh_host_*; ssh-keygen -q -A")
        self.serve()

    def certify_host(self, *names: str) -> None:
        """Have the authority sign the host's key for these names, and show the certificate from now on."""
        folder = self.authority.parent
        public = folder / "ssh_host_ed25519_key.pub"
        public.write_text(self.do("cat /etc/ssh/ssh_host_ed25519_key.pub"))
        _run("ssh-keygen", "-q", "-s", str(self.authority), "-I", "host", "-h", "-n", ",".join(names), str(public))
        self.put("/etc/ssh/host-cert.pub", (folder / "ssh_host_ed25519_key-cert.pub").read_text())
        self.put("/etc/ssh/sshd_config", f"{_CONFIG}HostCertificate /etc/ssh/host-cert.pub\n")
        self.stop()
        self.serve()

    def certify_user(self, key: Path, *users: str) -> Path:
        """A certificate for a user's key."""
        public = Path(f"{key}.pub")
        _run("ssh-keygen", "-q", "-s", str(self.authority), "-I", "user", "-n", ",".join(users), str(public))
        return key.with_name(f"{key.name}-cert.pub")

    def agents(self) -> list[str]:
        """The agents that run in it."""
        found = self.do("pgrep -af '^python3 .*-c' || true")
        return [line for line in found.splitlines() if "sudo" not in line]


@dataclass
class Client:
    """The client's side: its own config and known hosts, none of the machine's."""

    folder: Path
    sshd: Sshd

    def __post_init__(self) -> None:
        self.key = make_key(self.folder / "id_ed25519")
        self.known = self.folder / "known_hosts"
        self.config = self.folder / "config"
        self.know()
        self.configure()

    @property
    def environment(self) -> dict[str, str]:
        """What lightship needs to use it."""
        return {CONFIG_VARIABLE: str(self.config)}

    def know(self, *names: str) -> None:
        """Take the server's keys for known, under these names."""
        names = names or (self.sshd.address, f"[127.0.0.1]:{INNER_PORT}")
        lines = [f"{','.join(names)} {key}\n" for key in self.sshd.host_keys().splitlines()]
        self.known.write_text("".join(lines))

    def configure(self, text: str = "", *, key: Path | None = None) -> None:
        """Write the config: ``text`` first, then what all need."""
        identity = f"IdentityFile {key or self.key}\n"
        rest = f"Host *\n  UserKnownHostsFile {self.known}\n  GlobalKnownHostsFile /dev/null\n  {identity}"
        self.config.write_text(f"{text}\n{rest}")

    def server(self, user: str = "root", host: str = "", **more: object) -> Server:
        """The server, as lightship.yml would describe it."""
        return Server("web1", host or self.sshd.address, user, **more)  # type: ignore[arg-type]
