"""How OpenSSH would reach a host: asked of OpenSSH itself, by ``ssh -G``.

So ``~/.ssh/config`` means here what it means to ``ssh``: Include, Match, canonical names, the system's file and all.
The connection itself is AsyncSSH's, which gets every setting from here and reads no file of its own accord.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import hashlib
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

from lightship.errors import TransportError
from lightship_agent.records import dataclass

__all__ = ["CONFIG_VARIABLE", "Hop", "Settings", "jumps", "settings_for"]

CONFIG_VARIABLE = "LIGHTSHIP_SSH_CONFIG"
"""Names another file than ``~/.ssh/config``, as ``ssh -F`` does."""

_SECONDS = 20.0
_USER_FILE_DEFAULT_PORT = 22
_HOP = re.compile(
    r"(?:ssh://)?(?:(?P<user>[^@]+)@)?(?P<host>\[[0-9A-Fa-f:.]+\]|[^:\[\]/]+)(?::(?P<port>[0-9]{1,5}))?/?"
)
_TOKEN = re.compile(r"%(.)")
_VARIABLE = re.compile(r"\$\{([^}]+)\}")


@dataclass(frozen=True, slots=True)
class Hop:
    """A host as it is asked for: a server, or a jump host on the way to one."""

    host: str
    user: str | None = None
    port: int | None = None
    key_file: str | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """What OpenSSH would do for a host. Paths are absolute."""

    alias: str
    host: str
    port: int
    user: str
    known_as: str
    """The name that the host's key is looked up by."""
    identities: tuple[Path, ...] = ()
    certificates: tuple[Path, ...] = ()
    identities_only: bool = False
    agent: str = ""
    user_known_hosts: tuple[Path, ...] = ()
    global_known_hosts: tuple[Path, ...] = ()
    hash_known_hosts: bool = False
    proxy_jump: str = ""
    proxy_command: str = ""
    connect_timeout: float | None = None
    alive_interval: float | None = None
    alive_count: int | None = None
    family: int = socket.AF_UNSPEC
    bind_address: str = ""


async def settings_for(hop: Hop, server: str) -> Settings:
    """Ask ``ssh -G``; ``server`` is named in errors.

    Raises ``TransportError`` when the configuration is wrong or ssh is missing."""
    words = ["ssh", "-G", "-T"]
    if file := os.environ.get(CONFIG_VARIABLE):
        words += ["-F", file]
    words += [*(("-l", hop.user) if hop.user else ()), *(("-p", str(hop.port)) if hop.port else ())]
    if hop.key_file:
        words += ["-i", hop.key_file]
    return _settings(hop, _read(await _output([*words, "--", hop.host], server)))


async def _output(words: list[str], server: str) -> str:
    try:
        process = await asyncio.create_subprocess_exec(
            *words, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
    except FileNotFoundError:
        raise TransportError(
            f"{server}: the program ssh is missing on this machine; lightship has it read your SSH configuration",
            hint="install it: apt-get install openssh-client",
            code="ssh-missing",
        ) from None
    try:
        async with asyncio.timeout(_SECONDS):
            out, error = await process.communicate()
    except TimeoutError:
        raise TransportError(f"{server}: `ssh -G` did not end within {_SECONDS:g} s", code="ssh-config") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode:
        said = error.decode("utf-8", "replace").strip().splitlines()
        raise TransportError(
            f"{server}: ssh cannot read its configuration: {said[-1] if said else process.returncode}",
            hint=f"see: {' '.join(words)}",
            code="ssh-config",
        )
    return out.decode("utf-8", "surrogateescape")


def _read(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        found.setdefault(key.lower(), []).append(value.strip())
    return found


def _settings(hop: Hop, found: dict[str, list[str]]) -> Settings:
    def one(key: str) -> str:
        value = found.get(key, [""])[0]
        return "" if value.lower() == "none" else value

    def number(key: str) -> int | None:
        value = one(key)
        return int(value) if value.isascii() and value.isdigit() else None

    host, user = one("hostname") or hop.host, one("user") or getpass.getuser()
    port = number("port") or _USER_FILE_DEFAULT_PORT
    alias = one("hostkeyalias")
    expand = _expander(hop.host, host, port, user, alias, one("proxyjump"))
    families = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}
    interval = number("serveraliveinterval")
    return Settings(
        alias=hop.host,
        host=host,
        port=port,
        user=user,
        known_as=alias or (host.lower() if port == _USER_FILE_DEFAULT_PORT else f"[{host.lower()}]:{port}"),
        identities=_paths(found.get("identityfile", []), expand),
        certificates=_paths(found.get("certificatefile", []), expand),
        identities_only=one("identitiesonly") == "yes",
        agent=_agent(one("identityagent"), "identityagent" in found, expand),
        user_known_hosts=_paths(one("userknownhostsfile").split(), expand),
        global_known_hosts=_paths(one("globalknownhostsfile").split(), expand),
        hash_known_hosts=one("hashknownhosts") == "yes",
        proxy_jump=one("proxyjump"),
        proxy_command=expand(one("proxycommand")),
        connect_timeout=number("connecttimeout"),
        alive_interval=interval or None,
        alive_count=number("serveralivecountmax") if interval else None,
        family=families.get(one("addressfamily"), socket.AF_UNSPEC),
        bind_address=one("bindaddress"),
    )


def _expander(original: str, host: str, port: int, user: str, alias: str, jump: str) -> Callable[[str], str]:
    """The tokens of ssh_config(5), which ``ssh -G`` leaves in most values, and ``${VARIABLES}``."""
    name = socket.gethostname()
    tokens = {
        "%": "%",
        "d": str(Path.home()),
        "h": host,
        "i": str(os.getuid()),
        "j": jump,
        "k": alias or original,
        "L": name.partition(".")[0],
        "l": name,
        "n": original,
        "p": str(port),
        "r": user,
        "u": getpass.getuser(),
    }
    joined = f"{tokens['l']}{host}{port}{user}{jump}"
    tokens["C"] = hashlib.sha1(joined.encode(), usedforsecurity=False).hexdigest()

    def expand(text: str) -> str:
        text = _TOKEN.sub(lambda match: tokens.get(match[1], match[0]), text)
        return _VARIABLE.sub(lambda match: os.environ.get(match[1], match[0]), text)

    return expand


def _paths(values: list[str], expand: Callable[[str], str]) -> tuple[Path, ...]:
    wanted = [value.strip('"') for value in values if value.lower() != "none"]
    return tuple(dict.fromkeys(Path(expand(value)).expanduser() for value in wanted if value))


def _agent(value: str, said: bool, expand: Callable[[str], str]) -> str:
    """The agent's socket; ``IdentityAgent none`` means none."""
    default = os.environ.get("SSH_AUTH_SOCK", "")
    if not said or value == "SSH_AUTH_SOCK":
        return default
    if value.startswith("$") and not value.startswith("${"):
        return os.environ.get(value[1:], "")
    return str(Path(expand(value)).expanduser()) if value else ""


def jumps(text: str) -> tuple[Hop, ...]:
    """The hosts of a ``ProxyJump``, in the order in which they are passed."""
    found = []
    for part in text.split(","):
        match = _HOP.fullmatch(part.strip())
        if match is None or match["host"].startswith("-"):
            raise TransportError(f"ProxyJump {text[:200]!r} is not understood", code="ssh-config")
        port = int(match["port"]) if match["port"] else None
        found.append(Hop(match["host"].strip("[]"), match["user"], port))
    return tuple(found)
