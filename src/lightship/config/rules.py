"""What a value may look like. Each rule is an allow-list over ASCII, matched as a whole, with its words for people.

A rule is a function: it returns the text it was given, or raises :class:`RuleError`. Pydantic calls it to validate, and
takes the JSON Schema from it. This module imports neither Pydantic nor YAML, so that the command line can use a
rule (``REF``, ``COMMIT``) for the price of a regular expression.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeAlias

from lightship_agent.records import dataclass

__all__ = [
    "APP",
    "ARGUMENT",
    "BATCH",
    "BODY",
    "BRANCH",
    "COMMIT",
    "CONTAINER_ROOT",
    "CONTEXT",
    "ENV_NAME",
    "ENV_VALUE",
    "FAILURES",
    "GLOB",
    "HEALTH_HOST",
    "HEALTH_PATH",
    "HOST",
    "HOSTS",
    "IMAGE",
    "INVENTORY",
    "INVENTORY_NAME",
    "LABEL",
    "LABEL_VALUE",
    "LOCAL_FILE",
    "PORT",
    "PROGRAM",
    "PROXY_HOST",
    "REF",
    "REGISTRY",
    "RELATIVE_PATH",
    "ROLE",
    "ROOT",
    "SERVER",
    "SERVER_ADDRESS",
    "SERVER_FILE",
    "SERVER_NAME",
    "SERVICE",
    "STATUS",
    "USER",
    "VOLUME",
    "BatchSize",
    "ConflictError",
    "Failures",
    "Rule",
    "RuleError",
    "SecretRule",
    "Status",
    "container_path_complaint",
    "split_server",
    "within",
]

CONTAINER_ROOT = "/srv/lightship"
"""Where lightship's own mounts lie inside every container."""


class RuleError(ValueError):
    """A value breaks a rule. Holds the rule in words and never the value, which may be a secret."""

    def __init__(self, rule: str, hint: str = "") -> None:
        super().__init__(rule)
        self.rule = rule
        self.hint = hint


class ConflictError(RuleError):
    """Keys that do not fit together: for each problem the key it is about, and the rule."""

    def __init__(self, found: Sequence[tuple[str, str]]) -> None:
        super().__init__("; ".join(rule for _, rule in found))
        self.found = tuple(found)


@dataclass(frozen=True)
class Rule:
    """One rule: ``words`` complete "must be ..."; ``pattern`` is matched as a whole, ASCII only.

    ``complaint`` looks closer where a pattern cannot; it returns what is wrong, or the empty string.
    """

    words: str
    pattern: str
    longest: int = 255
    complaint: Callable[[str], str] | None = None

    def __call__(self, text: str) -> str:
        """``text``, if it keeps the rule."""
        if not isinstance(text, str):
            raise RuleError(f"must be {self.words}")
        if len(text) > self.longest:
            raise RuleError(f"must be {self.words}; it may have at most {self.longest} characters")
        if re.fullmatch(self.pattern, text, re.ASCII) is None:
            raise RuleError(f"must be {self.words}")
        wrong = self.complaint(text) if self.complaint is not None else ""
        if wrong:
            raise RuleError(f"must be {self.words}; {wrong}")
        return text

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """Pydantic: first the type, then this rule."""
        from pydantic_core import core_schema  # noqa: PLC0415

        return core_schema.no_info_after_validator_function(self, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        """JSON Schema: the pattern for editors, the words for the reference page."""
        found: dict[str, Any] = handler(schema)
        return {**found, "pattern": f"^(?:{self.pattern})$", "maxLength": self.longest, "x-rule": self.words}


class SecretRule(Rule):
    """A rule whose value is never shown, not even when it is wrong."""


def within(path: str, parent: str) -> bool:
    """Whether ``path`` is ``parent`` or lies below it. Both are normal absolute paths."""
    return path == parent or path.startswith(parent.rstrip("/") + "/")


# --- names -----------------------------------------------------------------------------------------------------------

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST = rf"{_LABEL}(?:\.{_LABEL})*"
# A Host of ~/.ssh/config may have underscores, which a name of DNS has not.
_SSH_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_SSH_HOST = rf"{_SSH_LABEL}(?:\.{_SSH_LABEL})*"
_USER = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}"
_IDENTIFIER = r"[A-Za-z_][A-Za-z0-9_]*"
_DOTTED = rf"{_IDENTIFIER}(?:\.{_IDENTIFIER})*"

SERVICE = Rule(
    "a service name: lower-case letters, digits and single hyphens, a letter first, at most 40 characters",
    r"[a-z][a-z0-9]*(?:-[a-z0-9]+)*",
    longest=40,
)
LABEL = Rule(
    "a short name: letters, digits, '.', '_' and '-', a letter or digit first",
    r"[A-Za-z0-9][A-Za-z0-9._-]*",
    longest=60,
)
ROLE = Rule(
    "a role's name: lower-case letters, digits and single '-' or '_', a letter first; web is built in",
    r"(?!web$)[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*",
    longest=40,
)
PROGRAM = Rule(
    "the name of a program or group of Supervisor's: letters, digits, '.', '_' and '-', a letter or digit first",
    r"[A-Za-z0-9][A-Za-z0-9_.-]*",
    longest=60,
)
APP = Rule("a WSGI callable as 'module.path:name'", rf"{_DOTTED}:{_DOTTED}")


def _env_name_complaint(name: str) -> str:
    return "names that begin with LIGHTSHIP_ are lightship's own" if name.upper().startswith("LIGHTSHIP_") else ""


ENV_NAME = Rule(
    "a variable name: letters, digits and '_', no digit first, not LIGHTSHIP_...",
    _IDENTIFIER,
    complaint=_env_name_complaint,
)
# Everything but the control characters: what Docker's environment file can carry on one line.
ENV_VALUE = Rule(
    "text on one line, without control characters", r"[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]*", longest=32_768
)
ARGUMENT = Rule(
    "one argument of a command: text without control characters",
    r"[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]*",
    longest=4096,
)
BODY = Rule(
    "text on one line that the answer must contain", r"[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+", longest=1000
)


# --- git -------------------------------------------------------------------------------------------------------------


def _branch_complaint(name: str) -> str:
    for part in name.split("/"):
        if part.endswith(".lock"):
            return "no part of it may end in '.lock'"
        if part.endswith("."):
            return "no part of it may end in '.'"
        if ".." in part:
            return "it may not contain '..'"
    return "HEAD is not a branch" if name == "HEAD" else ""


_BRANCH_PART = r"[A-Za-z0-9_][A-Za-z0-9._+@=#-]*"
BRANCH = Rule(
    "a branch: letters, digits, '.', '_', '+', '@', '=', '#', '-' and single '/', "
    "a letter, digit or '_' first in each part",
    rf"{_BRANCH_PART}(?:/{_BRANCH_PART})*",
    longest=200,
    complaint=_branch_complaint,
)
COMMIT = Rule("a commit: 7 to 40 hexadecimal digits in lower case", r"[0-9a-f]{7,40}", longest=40)
REF = Rule(
    "a branch, a tag or a commit: letters, digits, '.', '_', '+', '@', '=', '#', '-' and single '/', "
    "a letter, digit or '_' first in each part",
    rf"{_BRANCH_PART}(?:/{_BRANCH_PART})*",
    longest=200,
    complaint=_branch_complaint,
)


# --- addresses -------------------------------------------------------------------------------------------------------


def _port_complaint(number: str) -> str:
    return "" if 1 <= int(number) <= 65535 else f"a port is 1 to 65535, not {number}"  # noqa: PLR2004


def _ip_complaint(text: str) -> str:
    import ipaddress  # noqa: PLC0415

    try:
        ipaddress.ip_address(text)
    except ValueError:
        return "the part in front is not an IP address"
    return ""


def _server_complaint(text: str) -> str:
    _, _, address = text.rpartition("@")
    if address.startswith("["):
        host, _, rest = address[1:].partition("]")
        return _ip_complaint(host) or (_port_complaint(rest[1:]) if rest else "")
    _, _, port = address.partition(":")
    return _port_complaint(port) if port else ""


SERVER = Rule(
    "'local' (this machine) or '[user@]host[:port]'",
    rf"(?:{_USER}@)?(?:{_SSH_HOST}|\[[0-9A-Fa-f:.]{{2,45}}\])(?::[0-9]{{1,5}})?",
    complaint=_server_complaint,
)


def _host_complaint(text: str) -> str:
    return _ip_complaint(text) if ":" in text else ""


HOST = Rule(
    "a name (of DNS or of ~/.ssh/config) or an IP address",
    rf"{_SSH_HOST}|[0-9A-Fa-f:.]{{2,45}}",
    complaint=_host_complaint,
)
USER = Rule("a user's name: letters, digits, '.', '_' and '-'", _USER)
SERVER_NAME = Rule(
    "a server's name: letters, digits, '.', '_', ':' and '-', a letter or digit first",
    r"[A-Za-z0-9][A-Za-z0-9._:-]*",
    longest=100,
)
INVENTORY_NAME = Rule(
    "an inventory's host: letters, digits and any of . _ : @ [ ] ( ) + / - and space, a letter or digit first",
    r"[A-Za-z0-9](?:[A-Za-z0-9._:@\[\]()+/ -]*[A-Za-z0-9._:@\[\]()+/-])?",
)
LABEL_VALUE = Rule(
    "letters, digits and any of . _ : @ / + -, a letter or digit first", r"[A-Za-z0-9][A-Za-z0-9._:@/+-]*", longest=100
)


def split_server(text: str) -> tuple[str | None, str, int | None]:
    """User, host and port of what keeps the rule ``SERVER``."""
    user, _, address = text.rpartition("@")
    if address.startswith("["):
        host, _, rest = address[1:].partition("]")
        port = rest[1:]
    else:
        host, _, port = address.partition(":")
    return user or None, host, int(port) if port else None


def _mapping_complaint(text: str) -> str:
    rest, _, container = text.rpartition(":")
    address, _, host = rest.rpartition(":")
    complaint = _port_complaint(host) or _port_complaint(container)
    return complaint or (_ip_complaint(address.strip("[]")) if address else "")


PORT = Rule(
    "'host:container' or 'ip:host:container' with ports 1 to 65535",
    r"(?:(?:[0-9]{1,3}(?:\.[0-9]{1,3}){3}|\[[0-9A-Fa-f:.]{2,45}\]):)?[1-9][0-9]{0,4}:[1-9][0-9]{0,4}",
    longest=64,
    complaint=_mapping_complaint,
)
PROXY_HOST = Rule(
    "a host name in lower case, without a port",
    r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)*",
    longest=253,
)
SERVER_ADDRESS = Rule(
    "an IP address of the server", r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}|[0-9A-Fa-f:]{2,45}", complaint=_ip_complaint
)
HEALTH_PATH = Rule(
    "the path of a URL: a '/' first, then printable ASCII without spaces", r"/[\x21\x23-\x5b\x5d-\x7e]*", longest=1000
)
HEALTH_HOST = Rule("a host name, with ':port' if need be", rf"{_HOST}(?::[0-9]{{1,5}})?", complaint=_server_complaint)


def _status_complaint(text: str) -> str:
    first, _, last = text.partition("-")
    return "the range is empty" if last and int(last) < int(first) else ""


class _StatusRule(Rule):
    """A rule for a number or a text; for the number its digits are matched."""

    def check(self, value: Any) -> Any:
        """``value``, if it keeps the rule."""
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            raise RuleError(f"must be {self.words}")
        self(str(value))
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema  # noqa: PLC0415

        return core_schema.no_info_plain_validator_function(self.check)

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        number = {"type": "integer", "minimum": 100, "maximum": 599}
        return {"anyOf": [number, {"type": "string", "pattern": f"^(?:{self.pattern})$"}], "x-rule": self.words}


STATUS = _StatusRule(
    "an HTTP status (200) or a range of them ('200-399'), from 100 to 599",
    r"[1-5][0-9]{2}(?:-[1-5][0-9]{2})?",
    complaint=_status_complaint,
)
Status: TypeAlias = Annotated[int | str, STATUS]


# --- rollouts --------------------------------------------------------------------------------------------------------


class _AmountRule(Rule):
    """A number of servers or a percentage; a number comes as a number."""

    def __call__(self, text: Any) -> Any:
        if isinstance(text, bool) or not isinstance(text, (int, str)):
            raise RuleError(f"must be {self.words}")
        super().__call__(str(text))
        return text

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        forms = [{"type": "integer", "minimum": 0 if self.pattern.startswith("(?:0|") else 1, "maximum": 99_999}]
        text = {"type": "string", "pattern": f"^(?:{self.pattern})$", "maxLength": self.longest}
        return {"anyOf": [*forms, text], "x-rule": self.words}


BATCH = _AmountRule("a number of servers, at least 1, or a percentage ('25%')", r"[1-9][0-9]{0,4}|(?:[1-9][0-9]?|100)%")
FAILURES = _AmountRule("a number of servers, or a percentage ('10%')", r"(?:0|[1-9][0-9]{0,4})|(?:0|[1-9][0-9]?|100)%")
BatchSize: TypeAlias = Annotated[int | str, BATCH]
Failures: TypeAlias = Annotated[int | str, FAILURES]


# --- images ----------------------------------------------------------------------------------------------------------

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
IMAGE = Rule(
    "an image as '[registry/]name:tag' or '[registry/]name@sha256:...'",
    rf"(?:{_HOST}(?::[0-9]{{1,5}})?/)?{_COMPONENT}(?:/{_COMPONENT})*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}|(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?@sha256:[0-9a-f]{64})",
)


REGISTRY = Rule(
    "a registry as 'host[:port]', and what is to stand before the service's name: 'host[:port]/team'",
    rf"(?:{_HOST}\.{_LABEL}(?::[0-9]{{1,5}})?|{_LABEL}:[0-9]{{1,5}}|localhost)(?:/{_COMPONENT})*",
    longest=200,
)


# --- paths -----------------------------------------------------------------------------------------------------------

# No part is '.' or '..', none begins with '-', none is empty: the path is normal as it stands.
_PART = r"(?!\.{1,2}(?:/|:|$))[A-Za-z0-9._@+~][A-Za-z0-9._@+~=-]*"
_ABSOLUTE = rf"(?:/{_PART})+"
_GLOB_PART = r"(?!\.{1,2}(?:/|$))[A-Za-z0-9._@+*?][A-Za-z0-9._@+*?-]*"

CONTEXT = Rule("'.' or a relative path without '..'", rf"\.|{_PART}(?:/{_PART})*")
RELATIVE_PATH = Rule("a relative path without '..'", rf"{_PART}(?:/{_PART})*")
LOCAL_FILE = Rule(
    "a path of a file, absolute, from '~/' or relative to lightship.yml",
    rf"(?:~/|/|(?:\.\./)*)?{_PART}(?:/{_PART})*",
    longest=1000,
)
INVENTORY = Rule(
    "a path, absolute, from '~/' or relative to lightship.yml",
    rf"(?:~/|/|(?:\.\./)*)?{_PART}(?:/{_PART})*",
    longest=1000,
)
HOSTS = Rule(
    "a group, host or pattern of the inventory, such as 'web:!staging'",
    r"[A-Za-z0-9_*~][A-Za-z0-9_.*?:,&!~|()\[\]^$+-]*",
)
GLOB = Rule(
    "a relative path of the repository, where '*' and '?' match within one part and '**' any parts",
    rf"{_GLOB_PART}(?:/{_GLOB_PART})*",
)

# Directories that make up a system: none of them, and nothing above them, is a service's to mount.
_SYSTEM = ("/bin", "/boot", "/dev", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/sbin", "/sys", "/usr")
_TOP = ("/etc", "/home", "/media", "/mnt", "/opt", "/root", "/srv", "/tmp", "/var", "/var/lib", "/var/log")  # noqa: S108
_ENGINES = ("/var/lib/docker", "/var/lib/containerd", "/var/lib/containers", "/etc/docker", "/root")
# Sockets live under /run, and the one of the container engine is as good as root: only known ones may be mounted.
_RUN_ALLOWED = ("mysqld", "memcached", "postgresql", "redis")


def _host_path_complaint(path: str) -> str:
    tidy = "/run" + path[len("/var/run") :] if within(path, "/var/run") else path
    if within(tidy, "/run"):
        if any(within(tidy, f"/run/{name}") for name in _RUN_ALLOWED):
            return ""
        return f"of /run only {', '.join(_RUN_ALLOWED)} may be mounted: the engine's socket lies there"
    if any(within(tidy, system) for system in (*_SYSTEM, *_ENGINES)) or tidy in _TOP:
        return f"{path} belongs to the server's system"
    if tidy.rpartition("/")[2] in ("docker.sock", "containerd.sock", "podman.sock"):
        return "the container engine's socket is as good as root on the server"
    return ""


def container_path_complaint(path: str) -> str:
    """What is wrong with mounting something at ``path`` of the container, or the empty string."""
    if within(path, CONTAINER_ROOT) or within(CONTAINER_ROOT, path):
        return f"{path} would hide {CONTAINER_ROOT}, lightship's own mounts"
    if any(within(path, system) for system in _SYSTEM) or path in ("/", "/etc", "/run", "/var", "/var/run"):
        return f"{path} would hide the container's system"
    return ""


def _volume_complaint(text: str) -> str:
    host, container, *_ = text.split(":")
    return _host_path_complaint(host) or container_path_complaint(container)


SERVER_FILE = Rule("an absolute path on the server, without '..'", _ABSOLUTE, longest=500)
VOLUME = Rule(
    "'/host/path:/container/path', with ':ro' if need be; not a system directory, the engine's socket or "
    "lightship's own",
    rf"{_ABSOLUTE}:{_ABSOLUTE}(?::r[ow])?",
    longest=1000,
    complaint=_volume_complaint,
)


def _root_complaint(path: str) -> str:
    if any(within(path, system) for system in (*_SYSTEM, *_ENGINES, "/run", "/var/run")) or path in _TOP:
        return f"{path} belongs to the server's system"
    return ""


ROOT = Rule(
    "an absolute path of a directory of its own on the server, without '..'", _ABSOLUTE, complaint=_root_complaint
)
