"""A proxy for the tests: its image, made of Debian's HAProxy once a machine, and services behind it."""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from lightship_agent.proxy_server import container_name
from support.engine import Engine
from support.site import Site

DOCKERFILE = """\
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
RUN apt-get update -q && apt-get install -y -q --no-install-recommends curl haproxy && rm -rf /var/lib/apt/lists/*
"""


def build_proxy_image(base: str) -> str:
    """The proxy's image (and curl, which speaks HTTP/2 with it), built unless it is there; its name."""
    name = f"lightship-base-proxy:{hashlib.sha256((base + DOCKERFILE).encode()).hexdigest()[:12]}"
    if subprocess.run(["docker", "image", "inspect", name], capture_output=True, check=False).returncode:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "Dockerfile").write_text(DOCKERFILE)
            command = ["docker", "build", "--build-arg", f"BASE_IMAGE={base}", "--label", "lightship.base=proxy"]
            done = subprocess.run(
                [*command, "--tag", name, folder], capture_output=True, text=True, timeout=600, check=False
            )
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return name


@pytest.fixture(scope="session")
def proxy_image(engine: Engine) -> str:
    """The name of the proxy's image."""
    return build_proxy_image(engine.base_image)


def proxied(site: Site, image: str, **keys: Any) -> dict[str, Any]:
    """The settings of a service that is reached by a proxy on the port that the site had published itself."""
    return {"ports": [], "proxy": {"http": site.port, "image": image, **keys}}


def behind(site: Site, image: str, **keys: Any) -> Site:
    """The same service, reached by a proxy."""
    site.configure(**proxied(site, image, **keys))
    return site


def proxy_of(site: Site) -> str:
    """The name of the proxy's container."""
    return container_name(site.root.resolve())


def remove(site: Site) -> None:
    """Remove a service with its proxy."""
    site.engine.docker("rm", "--force", "--volumes", proxy_of(site), check=False)
    site.close()


def curl(image: str, *arguments: str, folder: Path = Path("/var/empty")) -> str:
    """What curl says, from a container of the host's network, which has the folder as ``/tls``."""
    command = ["docker", "run", "--rm", "--network", "host", "--volume", f"{folder}:/tls:ro", "--entrypoint", "curl"]
    command += [image, "--silent", "--max-time", "10"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60, check=False)
    return done.stdout


def certificate(folder: Path, name: str, days: int = 90) -> Path:
    """A certificate authority (``ca.pem``) and a certificate for a host name, as certbot keeps one; its directory."""
    now = datetime.now(UTC)

    def signed(subject: str, key: Any, issuer: str, signer: Any, *, authority: bool) -> x509.Certificate:
        names = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, one)]) for one in (subject, issuer)]
        builder = x509.CertificateBuilder().subject_name(names[0]).issuer_name(names[1]).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(hours=1))
        builder = builder.not_valid_after(now + timedelta(days=days, hours=1))
        builder = builder.add_extension(x509.BasicConstraints(authority, None), critical=True)
        if not authority:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(subject)]), critical=False)
        return builder.sign(signer, hashes.SHA256())

    folder.mkdir(parents=True, exist_ok=True)
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    pem = serialization.Encoding.PEM
    ca = signed("Test CA", ca_key, "Test CA", ca_key, authority=True)
    leaf = signed(name, key, "Test CA", ca_key, authority=False)
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "ca.pem").write_bytes(ca.public_bytes(pem))
    (folder / "fullchain.pem").write_bytes(leaf.public_bytes(pem) + ca.public_bytes(pem))
    (folder / "privkey.pem").write_bytes(secret)
    return folder
