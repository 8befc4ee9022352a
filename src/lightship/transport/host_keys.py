"""Is a host the one that it was? Its key is looked up in the user's and the system's ``known_hosts``, always.

No setting turns this off: ``StrictHostKeyChecking no`` and ``UserKnownHostsFile none`` leave a key that is not known
refused. Only a person records a key (``lightship setup``).
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import os
import secrets
from pathlib import Path

import asyncssh

from lightship.errors import TransportError
from lightship.transport.ssh_config import Settings
from lightship_agent.records import dataclass

__all__ = ["KnownHosts", "Trusted", "fingerprint", "record", "refused"]


def fingerprint(key: asyncssh.SSHKey) -> str:
    """The key's fingerprint as OpenSSH writes it: ``SHA256:...``."""
    return key.get_fingerprint("sha256")


def _place_in_openssh(name: bytes) -> int:
    """OpenSSH asks for these first, so that it sees the key that is recorded here."""
    return next((place for place, start in enumerate((b"ssh-ed25519", b"ecdsa-")) if name.startswith(start)), 2)


@dataclass(frozen=True, slots=True)
class Trusted:
    """The keys that ``known_hosts`` has for a host."""

    keys: tuple[asyncssh.SSHKey, ...] = ()
    authorities: tuple[asyncssh.SSHKey, ...] = ()
    revoked: tuple[asyncssh.SSHKey, ...] = ()
    known: bool = False
    """Whether there is a key under just this name and port: another one is then a change."""

    def algorithms(self) -> list[str]:
        """Signature algorithms in the order of preference: those of keys that are known come first."""
        from asyncssh import public_key  # noqa: PLC0415

        known = [name for key in self.keys for name in key.sig_algorithms]
        certified = public_key.get_default_certificate_algs() if self.authorities else []
        others = sorted(public_key.get_default_public_key_algs(), key=_place_in_openssh)
        ordered = dict.fromkeys([*certified, *known, *others])
        return [name.decode("ascii") for name in ordered]


class KnownHosts:
    """The files of known hosts, each read once."""

    def __init__(self) -> None:
        self._files: dict[Path, asyncssh.SSHKnownHosts] = {}

    def _file(self, path: Path) -> asyncssh.SSHKnownHosts:
        if path not in self._files:
            self._files[path] = _parsed(path)
        return self._files[path]

    def trusted(self, settings: Settings) -> Trusted:
        """The keys for a host. One recorded without a port counts for any port, as it does for OpenSSH."""
        name, _, port = settings.known_as.rpartition("]:")
        exact = self._match(settings, settings.known_as)
        if exact.keys or exact.authorities or not port:
            return exact
        bare = self._match(settings, name[1:])
        return Trusted(bare.keys, bare.authorities, (*exact.revoked, *bare.revoked))

    def _match(self, settings: Settings, name: str) -> Trusted:
        keys: list[asyncssh.SSHKey] = []
        authorities: list[asyncssh.SSHKey] = []
        revoked: list[asyncssh.SSHKey] = []
        for path in (*settings.user_known_hosts, *settings.global_known_hosts):
            found = self._file(path).match(name, "", None)
            keys += found[0]
            authorities += found[1]
            revoked += found[2]
        return Trusted(tuple(keys), tuple(authorities), tuple(revoked), known=bool(keys))


def _parsed(path: Path) -> asyncssh.SSHKnownHosts:
    """A file's entries; a line that is none is passed over, as OpenSSH does."""
    known = asyncssh.SSHKnownHosts()
    try:
        text = path.read_text("utf-8", "replace")
    except (OSError, ValueError):
        return known
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            known.load(line)
    return known


def refused(
    server: str, settings: Settings, trusted: Trusted, key: asyncssh.SSHKey | None, said: str
) -> TransportError:
    """The error for a key that is not trusted: unknown, changed or revoked, each its own."""
    where = server if server in (settings.alias, settings.host) else f"{server} ({settings.host})"
    file = settings.user_known_hosts[0] if settings.user_known_hosts else Path.home() / ".ssh" / "known_hosts"
    if key is None and "revoked" in said:
        return TransportError(
            f"{where}: ITS HOST KEY IS REVOKED: whoever answers there is not to be trusted",
            hint="known_hosts marks its key @revoked; ask who runs the server",
            code="host-key-revoked",
        )
    if key is None:
        return TransportError(
            f"{where}: the host's certificate is not accepted: {said}",
            hint="see the lines with @cert-authority in known_hosts, and the certificate's names and dates",
            code="host-key-certificate",
        )
    kind, shown = _kind(key), fingerprint(key)
    detail = {
        "server": server,
        "host": settings.host,
        "port": settings.port,
        "name": settings.known_as,
        "algorithm": key.get_algorithm(),
        "fingerprint": shown,
        "key": key.export_public_key("openssh").decode("ascii").strip(),
        "file": str(file),
        "hash": settings.hash_known_hosts,
    }
    if trusted.known:
        known = ", ".join(f"{_kind(one)} {fingerprint(one)}" for one in trusted.keys)
        return TransportError(
            f"{where}: ITS HOST KEY HAS CHANGED: {kind} {shown} answers, and {known} is known. Somebody may stand "
            "between you and the server, or it was installed anew. Nothing was sent to it",
            hint=f"only if you know why: ssh-keygen -f {file} -R '{settings.known_as}'; then: lightship setup",
            code="host-key-changed",
            detail=detail,
        )
    return TransportError(
        f"{where}: its host key is not known: {kind} {shown}",
        hint="compare it with what `ssh-keygen -lf` says on the server of its key in /etc/ssh, then record it: "
        f"lightship setup --server {server}",
        code="host-key-unknown",
        detail=detail,
    )


def _kind(key: asyncssh.SSHKey) -> str:
    return key.get_algorithm().removeprefix("ssh-").partition("-")[0].upper()


def record(file: Path, name: str, key: str, *, hashed: bool = False) -> None:
    """Write a key down as known. ``key`` is as ``detail["key"]`` of the error has it, ``name`` as its ``name``."""
    algorithm, data = key.split()[:2]
    line = f"{_hashed(name) if hashed else name} {algorithm} {data}\n"
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "r+b") as stream:
        size = stream.seek(0, os.SEEK_END)
        if size:
            stream.seek(size - 1)
            line = line if stream.read(1) == b"\n" else f"\n{line}"
        stream.write(line.encode("ascii"))


def _hashed(name: str) -> str:
    salt = secrets.token_bytes(20)
    digest = hmac.new(salt, name.encode(), hashlib.sha1).digest()
    return "|1|" + "|".join(base64.b64encode(part).decode("ascii") for part in (salt, digest))
