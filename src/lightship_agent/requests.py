"""The arguments of the operations, read by allow-list: a wrong one is a ``ProtocolError`` before anything happens."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from lightship_agent import TYPE_CHECKING
from lightship_agent.assets import Assets
from lightship_agent.container import ContainerSettings
from lightship_agent.errors import ProtocolError
from lightship_agent.health import HealthCheck
from lightship_agent.names import printable, valid_commit
from lightship_agent.protocol import MAX_PIECE
from lightship_agent.proxy_config import DEFAULT_IMAGE, Claim
from lightship_agent.records import dataclass
from lightship_agent.release import shared_paths
from lightship_agent.roles import NO_WEB, role_orders

if TYPE_CHECKING:
    from typing import Any, TypeVar

    T = TypeVar("T")

__all__ = ["Check", "Migration", "PrepareRequest", "Reader", "ReceiveRequest"]

KINDS = ("code", "container", "full")
PARTS = ("ask", "begin", "data", "end")
LARGEST_PACK = 1 << 40
RELOADS = ("swap", "touch", "chain", NO_WEB)
APP = r"(?=.{1,255}\Z)[A-Za-z_][A-Za-z0-9_.]*(:[A-Za-z_][A-Za-z0-9_]*)?"
IMAGE = r"[a-zA-Z0-9][a-zA-Z0-9._/:@-]{0,300}"
IDENTIFIER = r"[A-Za-z_][A-Za-z0-9_]{0,100}"
DIFF_ID = r"sha256:[0-9a-f]{64}"
INSIDE = r"[A-Za-z0-9._/ -]{1,300}"
LONGEST_HEALTH = 3600.0
LONGEST_ASSETS = 366 * 86400.0
STATUS = r"[1-5][0-9]{2}(-[1-5][0-9]{2})?"


def _wrong(field: str, value: Any, rule: str) -> ProtocolError:
    return ProtocolError("bad-value", f"{field}: {printable(value)} {rule}")


def _is_text(value: Any) -> bool:
    """A string that can be an argument of a program: JSON can also write NUL, and halves of characters."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


class Reader:
    """Typed access to a JSON object; every error names the field."""

    def __init__(self, found: Mapping[str, Any], where: str = "") -> None:
        self._found = found
        self._where = where

    def _given(self, name: str, default: Any) -> Any:
        value = self._found.get(name)
        return default if value is None else value

    def text(self, name: str, default: str | None = None, pattern: str | None = None) -> str:
        """A string; a missing one is an error unless there is a default."""
        value = self._found.get(name, default)
        if not _is_text(value):
            raise _wrong(self._where + name, value, "is not a string")
        if pattern is not None and value != default and not re.fullmatch(pattern, value):
            raise _wrong(self._where + name, value, f"does not match {pattern}")
        return str(value)

    def seconds(self, name: str, default: float, high: float = 86400.0) -> float:
        """A number of seconds from 0 to ``high``."""
        value = self._found.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= high:
            raise _wrong(self._where + name, value, f"is not a number of seconds from 0 to {high:g}")
        return float(value)

    def whole(self, name: str, default: int, low: int, high: int) -> int:
        """A whole number within bounds."""
        value = self._found.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise _wrong(self._where + name, value, f"is not a whole number from {low} to {high}")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        value = self._found.get(name, default)
        if not isinstance(value, bool):
            raise _wrong(self._where + name, value, "is neither true nor false")
        return value

    def choice(self, name: str, choices: Sequence[str], default: str | None = None) -> str:
        """One of the choices."""
        value = self._found.get(name, default)
        if value not in choices:
            raise _wrong(self._where + name, value, f"is none of {', '.join(choices)}")
        return str(value)

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings; missing is an empty one."""
        value = self._given(name, [])
        if not isinstance(value, list) or not all(map(_is_text, value)):
            raise _wrong(self._where + name, value, "is not a list of strings")
        return tuple(value)

    def matching(self, name: str, pattern: str) -> tuple[str, ...]:
        """A list of strings that all match; missing is an empty one."""
        values = self.texts(name)
        for value in values:
            if not re.fullmatch(pattern, value):
                raise _wrong(self._where + name, value, f"does not match {pattern}")
        return values

    def table(self, name: str) -> dict[str, str]:
        """An object of strings; missing is an empty one."""
        value = self._given(name, {})
        if not isinstance(value, dict) or not all(map(_is_text, (*value.keys(), *value.values()))):
            raise _wrong(self._where + name, value, "is not an object of strings")
        return dict(value)

    def inner(self, name: str) -> Mapping[str, Any] | None:
        """An object inside, or None."""
        value = self._found.get(name)
        if value is not None and not isinstance(value, dict):
            raise _wrong(self._where + name, value, "is not an object")
        return value

    def items(self, name: str, parse: Callable[[Reader], T]) -> list[T]:
        """A list of objects."""
        value = self._given(name, [])
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            raise _wrong(self._where + name, value, "is not a list of objects")
        return [parse(Reader(each, f"{self._where}{name}[{index}].")) for index, each in enumerate(value)]

    def environment(self, name: str) -> dict[str, str]:
        """Variables as ``--env-file`` can carry them: one line each."""
        found = self.table(name)
        for key, value in found.items():
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
                raise _wrong(f"{self._where}{name}", key, "is not a variable's name")
            if "\n" in value or "\r" in value:
                raise ProtocolError("bad-value", f"{self._where}{name}.{key}: the value has more than one line")
        return found


@dataclass(frozen=True)
class Check:
    """A command that the new release must pass (``required``) or that only warns."""

    name: str
    command: Sequence[str]
    timeout: float
    required: bool

    @classmethod
    def parse(cls, read: Reader) -> Check:
        """From the protocol's JSON."""
        command = read.texts("command")
        if not command:
            raise ProtocolError("bad-value", "checks: a check has no command")
        return cls(read.text("name"), command, read.seconds("timeout", 60.0), read.flag("required", True))


@dataclass(frozen=True)
class Migration:
    """The command that brings the schema forward, its limit in seconds, and the one that says where the schema is."""

    command: Sequence[str]
    timeout: float
    state: Sequence[str]

    @classmethod
    def parse(cls, found: Mapping[str, Any] | None) -> Migration | None:
        """From the protocol's JSON; None when nothing is to be migrated."""
        if found is None:
            return None
        read = Reader(found, "migrate.")
        command = read.texts("command")
        if not command:
            raise ProtocolError("bad-value", "migrate: there is no command")
        return cls(command, read.seconds("timeout", 300.0), read.texts("state"))


@dataclass(frozen=True)
class PrepareRequest:
    """All that ``prepare`` is asked to do."""

    commit: str
    kind: str
    app: str
    health: HealthCheck | None
    health_raw: Mapping[str, Any] | None
    patience: float
    boot_timeout: float
    soak: float
    reload: str
    shared: Sequence[str]
    keep: int
    checks: Sequence[Check]
    migrate: Migration | None
    retry: bool
    why: str
    container: ContainerSettings | None
    stored: bool
    env: Mapping[str, str] | None
    secrets: Sequence[str]
    proxy: Claim | None = None
    assets: Assets | None = None
    keep_warm: int = 0

    @classmethod
    def parse(cls, args: Mapping[str, Any]) -> PrepareRequest:
        """From the protocol's JSON."""
        read = Reader(args)
        health = read.inner("health")
        inner = read.inner("container")
        stored = inner is not None and Reader(inner, "container.").flag("stored")
        return cls(
            commit=valid_commit(args.get("commit")),
            kind=read.choice("kind", KINDS),
            app=read.text("app", None, APP),
            health=_health(health),
            health_raw=health,
            patience=read.seconds("patience", 30.0),
            boot_timeout=read.seconds("boot_timeout", 120.0),
            soak=read.seconds("soak", 0.0),
            reload=read.choice("reload", RELOADS, "swap"),
            shared=shared_paths(read.texts("shared")),
            keep=read.whole("keep", 5, 1, 1000),
            checks=read.items("checks", Check.parse),
            migrate=Migration.parse(read.inner("migrate")),
            retry=read.flag("retry"),
            why=read.text("why", ""),
            container=_container(Reader(inner, "container."), read.choice("reload", RELOADS, "swap"))
            if inner and not stored
            else None,
            stored=stored,
            env=Reader(inner, "container.").environment("env") if inner and "env" in inner else None,
            secrets=Reader(inner, "container.").texts("secrets") if inner else (),
            proxy=proxy_claim(read.inner("proxy")),
            assets=_assets(read.inner("assets")),
            keep_warm=read.whole("keep_warm", 0, 0, 1),
        )


@dataclass(frozen=True)
class ReceiveRequest:
    """One part of ``receive``."""

    part: str
    commit: str
    size: int
    data: bytes

    @classmethod
    def parse(cls, args: Mapping[str, Any]) -> ReceiveRequest:
        """From the protocol's JSON."""
        read = Reader(args)
        return cls(
            part=read.choice("part", PARTS),
            commit=valid_commit(args.get("commit")),
            size=read.whole("size", 0, 0, LARGEST_PACK),
            data=_decoded(read.text("data", "")),
        )


def _decoded(text: str) -> bytes:
    import base64  # noqa: PLC0415 - only a server to which code is sent needs it

    try:
        found = base64.b64decode(text.encode("ascii"), validate=True)
    except (ValueError, UnicodeEncodeError):
        raise _wrong("data", text, "is not base64") from None
    if len(found) > MAX_PIECE:
        raise ProtocolError("bad-value", f"data: a piece has at most {MAX_PIECE} bytes")
    return found


def _assets(found: Mapping[str, Any] | None) -> Assets | None:
    if found is None:
        return None
    read = Reader(found, "assets.")
    (directory,) = shared_paths([read.text("directory")])
    return Assets(directory, read.seconds("seconds", 0.0, LONGEST_ASSETS))


HOST_NAME = r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*"
SERVER_PATH = r"(?=.{1,500}\Z)(/(?!\.{1,2}(/|\Z))[A-Za-z0-9._@+~=-]+)+"
ADDRESS = r"[0-9]{1,3}(\.[0-9]{1,3}){3}|[0-9a-fA-F:]{2,45}"


def proxy_claim(found: Mapping[str, Any] | None) -> Claim | None:
    """What a service wants of the proxy; None for nothing. All of it gets into the proxy's configuration."""
    if found is None:
        return None
    read = Reader(found, "proxy.")
    hosts, certificates = read.texts("hosts"), read.texts("certificates")
    for host in hosts:
        if not re.fullmatch(HOST_NAME, host):
            raise _wrong("proxy.hosts", host, "is not a host name in lower case")
    for path in certificates:
        if not re.fullmatch(SERVER_PATH, path):
            raise _wrong("proxy.certificates", path, "is not a plain absolute path")
    claim = Claim(
        hosts=tuple(dict.fromkeys(hosts)),
        address=read.text("address", "", ADDRESS),
        http=read.whole("http", 80, 0, 65535),
        https=read.whole("https", 0, 0, 65535),
        certificates=certificates,
        redirect=read.flag("redirect"),
        timeout=read.seconds("timeout", 120.0),
        port=read.whole("port", 8000, 1, 65535),
        image=read.text("image", DEFAULT_IMAGE, IMAGE),
        acme_port=read.whole("acme_port", 0, 0, 65535),
    )
    if bool(claim.https) != bool(certificates) or not claim.ports or claim.http == claim.https:
        raise ProtocolError("bad-value", "proxy: https needs certificates, and there must be a port, each once")
    return claim


def _is_status(value: Any) -> bool:
    return isinstance(value, (int, str)) and re.fullmatch(STATUS, str(value)) is not None


def _health(found: Mapping[str, Any] | None) -> HealthCheck | None:
    if found is None:
        return None
    read = Reader(found, "health.")
    read.text("path")
    read.text("host", "localhost")
    if found.get("body") is not None:
        read.text("body")
    if read.seconds("timeout", 5.0, LONGEST_HEALTH) <= 0:
        raise _wrong("health.timeout", found.get("timeout"), "is not long enough for an answer")
    statuses = [] if found.get("status") is None else found["status"]
    if not isinstance(statuses, list) or not all(map(_is_status, statuses)):
        raise _wrong("health.status", statuses, "is not a list of statuses and of ranges of them")
    check = HealthCheck.parse(found)
    if not re.fullmatch(r"/[!-~]*", check.path) or not re.fullmatch(r"[A-Za-z0-9._:\[\]-]+", check.host):
        raise ProtocolError("bad-value", "health: the path or the host holds characters that have no place there")
    return check


def _container(read: Reader, reload: str) -> ContainerSettings:
    return ContainerSettings(
        image=read.text("image", None, IMAGE),
        options=read.texts("options"),
        ports=read.texts("ports"),
        volumes=read.texts("volumes"),
        fingerprint=read.text("fingerprint", ""),
        settings=read.text("settings_digest", ""),
        reload=reload,
        labels=read.table("labels"),
        roles={name: role.definition() for name, role in role_orders(read.inner("roles") or {}).items()},
        image_id=read.text("image_id", "", IMAGE),
    )
