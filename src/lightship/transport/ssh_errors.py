"""What went wrong between here and the agent on a server, in words that say what to do."""

from __future__ import annotations

import errno
import socket
from typing import Any

import asyncssh

from lightship.errors import TransportError
from lightship.transport import bootstrap
from lightship.transport.ssh_auth import Keys
from lightship.transport.ssh_config import Settings

__all__ = ["NO_SUDO", "bootstrap_failed", "connecting", "not_let_in", "not_started", "timed_out"]

NO_SUDO = ("sudo-password", "sudo-missing", "sudo-refused")
_NOT_FOUND, _MOST = 127, 300


def _place(settings: Settings) -> str:
    port = "" if settings.port == 22 else f" port {settings.port}"  # noqa: PLR2004
    return f"{settings.host}{port}"


def timed_out(server: str, settings: Settings, seconds: float) -> TransportError:
    """No connection within the time."""
    return TransportError(
        f"{server}: no SSH connection with {_place(settings)} within {seconds:g} s",
        hint="is it up, and may this machine reach it? A firewall that drops packets looks like this",
        code="ssh-timeout",
    )


def connecting(server: str, settings: Settings, error: Exception) -> TransportError:
    """A connection that was not made."""
    place = _place(settings)
    match error:
        case asyncssh.Error():
            return _by_ssh(server, place, error)
        case OSError():
            return _by_network(server, settings, error)
    return TransportError(f"{server}: SSH with {place} failed: {str(error)[:_MOST]}", code="ssh-failed")


def _turned_away(server: str, place: str) -> TransportError:
    return TransportError(
        f"{server}: {place} ended the connection before the login",
        hint="see sshd's log there: too many connections at once (MaxStartups), or an address that is banned?",
        code="ssh-turned-away",
    )


def _by_network(server: str, settings: Settings, error: OSError) -> TransportError:
    place = _place(settings)
    match error:
        case socket.gaierror():
            return TransportError(
                f"{server}: the name {settings.host} is not known: {error.strerror}",
                hint="write an address that DNS or /etc/hosts knows, or a Host of ~/.ssh/config",
                code="ssh-unknown-name",
            )
        case ConnectionRefusedError():
            return TransportError(
                f"{server}: {place} refuses the connection: nothing listens there",
                hint="is sshd running there, and is this its port?",
                code="ssh-refused",
            )
        case TimeoutError():
            return TransportError(f"{server}: {place} does not answer", hint="is it up?", code="ssh-timeout")
        case ConnectionResetError() | BrokenPipeError():
            return _turned_away(server, place)
        case OSError() if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
            return TransportError(
                f"{server}: there is no way to {place}: {error.strerror}",
                hint="is the network (a VPN?) up?",
                code="ssh-unreachable",
            )
    return TransportError(f"{server}: {place}: {error.strerror or error}", code="ssh-failed")


def _by_ssh(server: str, place: str, error: asyncssh.Error) -> TransportError:
    match error:
        case asyncssh.KeyExchangeFailed():
            return TransportError(
                f"{server}: {place} and lightship have no algorithm in common: {error.reason}",
                hint="a newer OpenSSH on the server has some",
                code="ssh-algorithms",
            )
        case asyncssh.ChannelOpenError():
            return _behind_a_jump(server, place, error)
        case asyncssh.ConnectionLost():
            return _turned_away(server, place)
    return TransportError(f"{server}: SSH with {place} failed: {error.reason[:_MOST]}", code="ssh-failed")


def _behind_a_jump(server: str, place: str, error: asyncssh.ChannelOpenError) -> TransportError:
    if error.code == asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED:
        return TransportError(
            f"{server}: the jump host does not pass connections on to {place}: {error.reason}",
            hint="its sshd needs AllowTcpForwarding",
            code="ssh-forwarding",
        )
    return TransportError(
        f"{server}: the jump host cannot reach {place}: {error.reason}",
        hint="is the server up, and may the jump host reach it?",
        code="ssh-refused",
    )


def not_let_in(server: str, settings: Settings, keys: Keys, error: asyncssh.PermissionDenied) -> TransportError:
    """The server takes none of the keys."""
    if keys.locked:
        names = " ".join(str(path) for path in keys.locked)
        return TransportError(
            f"{server}: {settings.user}@{_place(settings)} does not let in, and the key {names} has a passphrase",
            hint=f"unlock it for the agent: ssh-add {names}",
            code="ssh-passphrase",
        )
    tried = ", ".join(str(path) for path in settings.identities if path.is_file()) or "no key file"
    agent = "and the keys of the SSH agent" if settings.agent else "and there is no SSH agent"
    return TransportError(
        f"{server}: {settings.user}@{_place(settings)} does not let in (tried: {tried}, {agent}): {error.reason}",
        hint=f"does `ssh {settings.user}@{settings.alias}` work without a password? "
        f"ssh-copy-id {settings.user}@{settings.alias} brings your key there",
        code="ssh-auth",
    )


def not_root(server: str, user: str) -> TransportError:
    """Logged in, but not as root, and without sudo. A user of the group docker is no way out: see docs/how-to."""
    return TransportError(
        f"{server}: the agent needs root, and {user} is not (a user of the group docker is not enough)",
        hint=_user_hint(user),
        code="not-root",
    )


def _user_hint(user: str) -> str:
    return (
        f"log in as root, or as root there: echo '{user} ALL=(root) NOPASSWD: ALL' >/etc/sudoers.d/lightship "
        "(and no `sudo: false` for this server)"
    )


def bootstrap_failed(server: str, answer: dict[str, Any]) -> TransportError:
    """The bootstrap on the server says what is wrong."""
    code, text = str(answer.get("code"))[:40], str(answer.get("text"))[:_MOST]
    oldest = ".".join(map(str, bootstrap.OLDEST_PYTHON))
    if code == "python-old":
        return TransportError(
            f"{server}: its python3 is {text}, and the agent needs {oldest} or later",
            hint="install a newer one as python3 on the PATH of the login: Debian 11 and Ubuntu 22.04 have one",
            code=code,
        )
    hints = {
        "agent-cache": f"put it right there: chown and chmod 700 {answer['path']}" if "path" in answer else "",
    }
    return TransportError(f"{server}: {text}", hint=hints.get(code, ""), code=code)


def not_started(server: str, user: str, status: int | None, said: tuple[bytes, str], *, sudo: bool) -> TransportError:
    """No agent answered: from what the shell, sudo or Python said, why."""
    noise, errors = said
    last = errors.splitlines()[-1][:_MOST] if errors else ""
    if sudo and "sudo" in errors and ("password is required" in errors or "a terminal is required" in errors):
        return TransportError(f"{server}: sudo asks for a password there", hint=_user_hint(user), code="sudo-password")
    if sudo and ("may not run sudo" in errors or "not in the sudoers" in errors or "not allowed to" in errors):
        return TransportError(
            f"{server}: the user may not run sudo: {last}", hint=_user_hint(user), code="sudo-refused"
        )
    if sudo and "tty" in errors and "sudo" in errors:
        return TransportError(
            f"{server}: sudo wants a terminal: {last}",
            hint="take `requiretty` out of /etc/sudoers",
            code="sudo-refused",
        )
    if "python3" in errors and (status == _NOT_FOUND or "not found" in errors):
        return TransportError(
            f"{server}: there is no python3", hint="install it: apt-get install python3", code="python-missing"
        )
    if sudo and "sudo" in errors and (status == _NOT_FOUND or "not found" in errors):
        return TransportError(f"{server}: there is no sudo", hint=_user_hint(user), code="sudo-missing")
    words = last or noise.decode("utf-8", "replace").strip()[-_MOST:]
    return TransportError(
        f"{server}: logged in, but no agent answered (exit status {status}): {words or 'nothing was said'}",
        hint="does a plain command run there? See: ssh SERVER python3 --version",
        code="agent-start",
        detail={"stderr": errors[-2000:], "stdout": noise[-2000:].decode("utf-8", "replace")},
    )
