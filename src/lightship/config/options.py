"""Which parameters of ``docker run`` a service may add, each in the form ``--flag=value``.

An allow-list: what limits or names the container is on it; what would reach the server, another container or
lightship's own part of the command is not, and the refusal says which key of ``lightship.yml`` is meant instead.
"""

from __future__ import annotations

import re
from typing import Any

from lightship.config.rules import RuleError, container_path_complaint
from lightship_agent.records import dataclass

__all__ = ["ALLOWED", "OPTION", "Option", "OptionRule", "flag_of", "is_repeatable"]


@dataclass(frozen=True)
class Option:
    """One allowed flag: the pattern of its value (matched as a whole), what that is in words, whether it may repeat."""

    pattern: str
    words: str
    repeats: bool = False


_SIZE = r"[1-9][0-9]{0,14}[bkmgBKMG]?"
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?"
_TEXT = r"[A-Za-z0-9 ._:/,@%{}+=-]*"
_IP = r"(?:[0-9]{1,3}(?:\.[0-9]{1,3}){3}|[0-9A-Fa-f:]{2,45})"
_PATH = r"/(?!\.{1,2}(?:/|:|$))[A-Za-z0-9._-]+(?:/(?!\.{1,2}(?:/|:|$))[A-Za-z0-9._-]+)*"
# What Docker grants a container by itself, to be given back after --cap-drop=ALL, and two that are harmless.
_CAPABILITIES = (
    "CHOWN|DAC_OVERRIDE|FOWNER|FSETID|KILL|SETGID|SETUID|SETPCAP|NET_BIND_SERVICE|SYS_CHROOT|AUDIT_WRITE|SETFCAP|"
    "SYS_NICE|IPC_LOCK"
)

ALLOWED: dict[str, Option] = {
    "add-host": Option(rf"{_NAME}:(?:{_IP}|host-gateway)", "name:ip or name:host-gateway", repeats=True),
    "cap-add": Option(rf"(?:{_CAPABILITIES})", "one of " + _CAPABILITIES.replace("|", ", "), repeats=True),
    "cap-drop": Option(r"(?:ALL|[A-Z]+(?:_[A-Z]+)*)", "ALL or a capability", repeats=True),
    "cpu-shares": Option(r"[1-9][0-9]{0,5}", "a number"),
    "cpus": Option(r"[0-9]{1,4}(?:\.[0-9]{1,3})?", "a number, such as 1.5"),
    "cpuset-cpus": Option(r"[0-9]{1,4}(?:[,-][0-9]{1,4})*", "processors, such as 0-3 or 0,2"),
    "dns": Option(_IP, "an IP address", repeats=True),
    "dns-option": Option(r"[a-z0-9-]+(?::[0-9]+)?", "an option of resolv.conf", repeats=True),
    "dns-search": Option(_NAME, "a domain", repeats=True),
    "hostname": Option(_NAME, "a host name"),
    "init": Option("(?:true|false)", "true or false"),
    "label": Option(
        rf"(?!lightship\.)[a-z0-9][a-z0-9.-]*={_TEXT}",
        "key=value; keys that begin with lightship. are its own",
        repeats=True,
    ),
    "log-driver": Option(
        "(?:json-file|local|journald|syslog|fluentd|gelf|awslogs|gcplogs|splunk|none)", "a log driver of Docker's"
    ),
    "log-opt": Option(rf"[a-z0-9][a-z0-9.-]*={_TEXT}", "key=value", repeats=True),
    "memory": Option(_SIZE, "a size, such as 512m"),
    "memory-reservation": Option(_SIZE, "a size, such as 256m"),
    "memory-swap": Option(rf"(?:-1|{_SIZE})", "a size, such as 1g, or -1"),
    "memory-swappiness": Option(r"(?:100|[1-9]?[0-9])", "0 to 100"),
    "network": Option(
        r"(?!(?:host|none|container)$)[A-Za-z0-9][A-Za-z0-9_.-]{0,62}",
        "the name of a network that exists; not host, none or another container's",
    ),
    "network-alias": Option(_NAME, "a host name", repeats=True),
    "oom-score-adj": Option(r"(?:1000|[1-9]?[0-9]{1,2})", "0 to 1000"),
    "pids-limit": Option(r"[1-9][0-9]{0,6}", "a number"),
    "platform": Option(r"linux/[a-z0-9]+(?:/v[0-9])?", "a platform, such as linux/amd64"),
    "read-only": Option("(?:true|false)", "true or false"),
    "security-opt": Option(r"no-new-privileges(?:[:=]true)?", "no-new-privileges", repeats=True),
    "shm-size": Option(_SIZE, "a size, such as 128m"),
    "stop-timeout": Option(r"[0-9]{1,4}", "seconds"),
    "sysctl": Option(
        r"net\.(?:core\.somaxconn|ipv4\.[a-z0-9_.]+|ipv6\.[a-z0-9_.]+)=[0-9 ]{1,40}",
        "net.core.somaxconn, net.ipv4... or net.ipv6... =number",
        repeats=True,
    ),
    "tmpfs": Option(
        rf"{_PATH}(?::[a-z]+(?:=[0-9]+[kmg]?)?(?:,[a-z]+(?:=[0-9]+[kmg]?)?)*)?",
        "/path[:options], not over lightship's own mounts",
        repeats=True,
    ),
    "ulimit": Option(r"[a-z]+=(?:-1|[0-9]{1,12})(?::(?:-1|[0-9]{1,12}))?", "name=soft[:hard]", repeats=True),
}

_INSTEAD = {
    "build-arg": "use the key `image.args`",
    "detach": "lightship starts the container by itself in the background",
    "d": "lightship starts the container by itself in the background",
    "e": "use the key `env`, or `secrets` for what nobody may see",
    "env": "use the key `env`, or `secrets` for what nobody may see",
    "env-file": "use the keys `env` and `secrets`",
    "entrypoint": "the image starts Supervisor by itself",
    "expose": "use the key `ports`",
    "h": "write --hostname=...",
    "health-cmd": "use the key `health`",
    "l": "write --label=...",
    "m": "write --memory=...",
    "mount": "use the key `volumes`",
    "name": "the container has the service's name, the key under `services`",
    "net": "write --network=...",
    "p": "use the key `ports`",
    "publish": "use the key `ports`",
    "publish-all": "use the key `ports`",
    "privileged": "it would hand the server to the container; `--cap-add=` adds single capabilities",
    "restart": "lightship decides when the container starts again",
    "rm": "lightship removes containers by itself",
    "u": "the image says which user the workers are",
    "user": "the image says which user the workers are",
    "v": "use the key `volumes`",
    "volume": "use the key `volumes`",
    "volumes-from": "use the key `volumes`",
    "w": "the working directory is the release's",
    "workdir": "the working directory is the release's",
}


def flag_of(text: str) -> str:
    """The flag of an option without its dashes: ``memory`` of ``--memory=512m``, ``v`` of ``-v/:/host``."""
    if text.startswith("--"):
        return re.split(r"[=\s]", text[2:], maxsplit=1)[0]
    return text[1:2] if text.startswith("-") else ""


def is_repeatable(flag: str) -> bool:
    """Whether ``flag`` may stand more than once."""
    return flag in ALLOWED and ALLOWED[flag].repeats


class OptionRule:
    """One parameter of ``docker run``, from the allow-list :data:`ALLOWED`."""

    words = "an allowed parameter of docker run as '--flag=value'"

    def __call__(self, text: str) -> str:
        """``text``, if its flag is allowed and its value fits."""
        flag = flag_of(text)
        option = ALLOWED.get(flag)
        if option is None or not text.startswith("--"):
            raise RuleError(f"must be {self.words}", hint=_INSTEAD.get(flag) or _nearest(flag))
        separator, value = text[2 + len(flag) : 3 + len(flag)], text[3 + len(flag) :]
        if separator != "=" or len(value) > 1000 or re.fullmatch(option.pattern, value, re.ASCII) is None:  # noqa: PLR2004
            raise RuleError(f"must be '--{flag}=' and {option.words}")
        if flag == "tmpfs" and (complaint := container_path_complaint(value.partition(":")[0])):
            raise RuleError(f"must be '--{flag}=' and {option.words}; {complaint}")
        return text

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """Pydantic: first the type, then this rule."""
        from pydantic_core import core_schema  # noqa: PLC0415

        return core_schema.no_info_after_validator_function(self, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        """JSON Schema: one pattern of all allowed flags."""
        found: dict[str, Any] = handler(schema)
        flags = "|".join(f"{flag}={option.pattern}" for flag, option in ALLOWED.items())
        return {**found, "pattern": f"^--(?:{flags})$", "x-rule": self.words}


def _nearest(flag: str) -> str:
    import difflib  # noqa: PLC0415

    close = difflib.get_close_matches(flag, ALLOWED, n=1)
    return f"did you mean --{close[0]}=...?" if close else "the reference page lists the allowed ones"


OPTION = OptionRule()
