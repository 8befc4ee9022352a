"""What the proxy needs of this server: its container, ports that nobody has, certificates in the shape it reads."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
from pathlib import Path

from lightship_agent.errors import Refused
from lightship_agent.proxy_config import CONF, RUN

__all__ = ["LABEL_VERSION", "container_name", "create_proxy_command", "has_ipv6", "is_free", "read_certificate"]

LABEL_PROXY = "lightship.proxy"
LABEL_VERSION = "lightship.proxy-version"
DEFAULT_ROOT = "/srv/lightship"
_MAX = 1024 * 1024
_CAPABILITIES = ("NET_BIND_SERVICE", "SETUID", "SETGID", "KILL")


def container_name(root: Path) -> str:
    """The name of the proxy's container; another root than the usual one has a proxy of its own."""
    if str(root) == DEFAULT_ROOT:
        return "lightship-proxy"
    return f"lightship-proxy-{hashlib.sha256(str(root).encode()).hexdigest()[:8]}"


def create_proxy_command(root: Path, image: str) -> list[str]:
    """``docker create`` of the proxy. It reads its configuration, and has a directory for its sockets."""
    home = root / ".proxy"
    command = ["docker", "create", "--name", container_name(root), "--network", "host", "--restart", "always"]
    command += ["--user", "0:0", "--read-only", "--security-opt", "no-new-privileges", "--cap-drop", "ALL"]
    for capability in _CAPABILITIES:
        command += ["--cap-add", capability]
    command += ["--log-opt", "max-size=10m", "--log-opt", "max-file=3"]
    command += ["--volume", f"{home / 'conf'}:{CONF}:ro", "--volume", f"{home / 'run'}:{RUN}"]
    command += ["--label", f"{LABEL_PROXY}={root}", "--entrypoint", "haproxy"]
    version = hashlib.sha256("\0".join([*command, image]).encode()).hexdigest()[:16]
    command += ["--label", f"{LABEL_VERSION}={version}"]
    return [*command, "--", image, "-W", "-db", "-S", f"{RUN}/master.sock,mode,600", "-f", f"{CONF}/haproxy.cfg"]


def is_free(address: str, port: int) -> bool:
    """Whether nobody listens on a port of this machine."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # What a connection that ended leaves for a minute is in nobody's way, least of all in HAProxy's.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
            probe.listen(1)
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            if error.errno == errno.EADDRNOTAVAIL:
                raise Refused("proxy-address", f"this server has no address {address}", hint="see `ip addr`") from None
            raise
    return True


def has_ipv6() -> bool:
    """Whether this machine has IPv6."""
    try:
        with open("/proc/net/if_inet6", encoding="ascii") as file:
            return bool(file.read(1))
    except OSError:
        return False


def read_certificate(path: str) -> bytes:
    """A certificate with its chain and key as HAProxy wants them, in one piece.

    ``path`` is such a file, or a directory as certbot keeps one: ``fullchain.pem`` and ``privkey.pem``.
    """
    files = [os.path.join(path, name) for name in ("fullchain.pem", "privkey.pem")] if os.path.isdir(path) else [path]
    data = b""
    for name in files:
        try:
            with open(name, "rb") as file:
                data += file.read(_MAX).rstrip(b"\n") + b"\n"
        except OSError as error:
            raise Refused(
                "proxy-certificate",
                f"the certificate cannot be read on this server: {name}: {error.strerror}",
                hint="proxy.certificates names a file with certificate, chain and key, or a directory with "
                "fullchain.pem and privkey.pem",
            ) from None
    if b"BEGIN CERTIFICATE" not in data or b"PRIVATE KEY" not in data:
        raise Refused(
            "proxy-certificate",
            f"{path} does not hold both a certificate and its key",
            hint="put them into one file (cat fullchain.pem privkey.pem), or name a directory that has both",
        )
    return data
