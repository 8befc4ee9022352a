"""The roles of a service beside ``web``: what they are, what an instance is told of them, and Supervisor's part of it.

A role is a command that lightship runs under the container's Supervisor, or a program that the image's own
``supervisord.conf`` has. What it is belongs to the container, like ports and variables; which release it runs stands in
``instances/<n>.json`` beside the slots. Pure: nothing here touches the disk.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from lightship_agent import TYPE_CHECKING
from lightship_agent.errors import ProtocolError
from lightship_agent.names import printable
from lightship_agent.paths import CONTAINER_CODE
from lightship_agent.records import dataclass, replace

if TYPE_CHECKING:
    from typing import Any

__all__ = ["NO_WEB", "SIGNALS", "RoleOrder", "render_conf", "role_orders"]

NO_WEB = "roles"
"""The reload way of a server that runs no uWSGI: its roles are all that is restarted there."""
SIGNALS = ("TERM", "INT", "QUIT")
NAME = r"(?=.{1,40}\Z)[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*"
PROGRAM = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,59}"
PYTHON = r"/[A-Za-z0-9._/+-]{1,250}"
DEFAULT_PYTHON = "/opt/venv/bin/python3"
MOST_ROLES, MOST_PROCESSES, MOST_WORDS = 50, 100, 100
LONGEST_PATIENCE, LONGEST_SETTLE = 86400.0, 300.0
# Supervisor tries so often, at growing distances, and then gives up; the keeper asks it to try again.
START_RETRIES = 5


@dataclass(frozen=True)
class RoleOrder:
    """One role: what it is, and the release that its processes are to run (None: they are to be stopped).

    ``command`` is a list of arguments, or empty when ``program`` names what the image's Supervisor runs. ``patience``
    are the seconds that a job in flight may take after the ``signal`` to stop, ``settle`` those that a process must
    stay up to count as started. The generation grows with every restart that is asked for.
    """

    command: Sequence[str]
    program: str
    processes: int
    patience: float
    settle: float
    signal: str
    release: str | None = None
    generation: int = 0

    def definition(self) -> dict[str, Any]:
        """What the role is, without what it is to run."""
        return {
            "command": list(self.command),
            "program": self.program,
            "processes": self.processes,
            "patience": self.patience,
            "settle": self.settle,
            "signal": self.signal,
        }

    def as_dict(self) -> dict[str, Any]:
        """As ``instances/<n>.json`` has it."""
        return {**self.definition(), "release": self.release, "generation": self.generation}

    def running(self, release: str, generation: int) -> RoleOrder:
        """The role, told to run a release."""
        return replace(self, release=release, generation=generation)

    def resting(self) -> RoleOrder:
        """The role, told to stop."""
        return replace(self, release=None)


def _wrong(name: str, what: str) -> ProtocolError:
    return ProtocolError("bad-value", f"roles.{name}: {what}")


def _number(name: str, key: str, value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise _wrong(name, f"{key} {printable(value)} is not a number from {low:g} to {high:g}")
    return float(value)


def _command(name: str, value: Any) -> list[str]:
    """A list of arguments, each on one line: they are written to a file, and shown."""
    words = value if isinstance(value, list) else None
    if words is None or len(words) > MOST_WORDS:
        raise _wrong(name, "command is not a list of at most 100 strings")
    for word in words:
        if not isinstance(word, str) or not word.isprintable() or len(word) > 4096:  # noqa: PLR2004
            raise _wrong(name, f"command: {printable(word)} is not one printable argument")
    if words and not words[0]:
        raise _wrong(name, "command: the program has no name")
    return words


def parse_role(name: str, found: Any) -> RoleOrder:
    """A role from JSON of outside; a wrong one is a ``ProtocolError`` that names the key."""
    if not re.fullmatch(NAME, name) or name == "web":
        raise ProtocolError("bad-value", f"roles: {printable(name)} is no role's name")
    if not isinstance(found, Mapping):
        raise _wrong(name, "is not an object")
    command, program = _command(name, found.get("command", [])), found.get("program", "")
    if not isinstance(program, str) or (program and not re.fullmatch(PROGRAM, program)):
        raise _wrong(name, f"program {printable(program)} is no program's name")
    if bool(command) == bool(program):
        raise _wrong(name, "must have a command or a program, and not both")
    processes = found.get("processes", 1)
    if isinstance(processes, bool) or not isinstance(processes, int) or not 1 <= processes <= MOST_PROCESSES:
        raise _wrong(name, f"processes {printable(processes)} is not a whole number from 1 to {MOST_PROCESSES}")
    signal = found.get("signal", "TERM")
    if signal not in SIGNALS:
        raise _wrong(name, f"signal {printable(signal)} is none of {', '.join(SIGNALS)}")
    return RoleOrder(
        command=command,
        program=program,
        processes=processes,
        patience=_number(name, "patience", found.get("patience", 60.0), 0.0, LONGEST_PATIENCE),
        settle=_number(name, "settle", found.get("settle", 3.0), 0.0, LONGEST_SETTLE),
        signal=signal,
    )


def role_orders(found: Mapping[str, Any]) -> dict[str, RoleOrder]:
    """The roles of JSON of outside, or of what this agent once wrote of it."""
    if len(found) > MOST_ROLES:
        raise ProtocolError("bad-value", f"roles: there are more than {MOST_ROLES}")
    return {name: parse_role(name, role) for name, role in found.items()}


def read_back(found: Mapping[str, Any]) -> dict[str, RoleOrder]:
    """The roles of an ``instances/<n>.json``."""
    return {
        name: replace(parse_role(name, role), release=role.get("release"), generation=int(role.get("generation", 0)))
        for name, role in found.items()
    }


_HEAD = """\
; Written by lightship for instance {instance}. The image's supervisord.conf includes it.
"""
_KEEPER = """
; Restarts the roles' processes as instances/{instance}.json says.
[program:lightship-roles]
command={python} -I -S {code}/boot/roles.py
autostart=true
autorestart=true
startsecs=0
stopsignal=TERM
stdout_logfile=/dev/stdout
stdout_logfile_maxbytes=0
redirect_stderr=true
"""
_ROLE = """
[program:role-{name}]
command={python} -I -S {code}/boot/launcher.py role {name} %(process_num)d
process_name=%(program_name)s_%(process_num)d
numprocs={processes}
autostart=false
autorestart=true
startsecs={startsecs}
startretries={retries}
stopsignal={signal}
stopasgroup=false
killasgroup=true
stopwaitsecs={patience}
stdout_logfile=/dev/stdout
stdout_logfile_maxbytes=0
redirect_stderr=true
"""


def render_conf(instance: int, roles: Mapping[str, RoleOrder], python: str) -> str:
    """What Supervisor is to run for these roles. ``python`` is what the image says; nothing else of outside is in it.

    A role's command is not here: the launcher reads it from JSON, so nothing has to be quoted.
    """
    python = python if re.fullmatch(PYTHON, python) else DEFAULT_PYTHON
    text = _HEAD.format(instance=instance)
    if roles:
        text += _KEEPER.format(instance=instance, python=python, code=CONTAINER_CODE)
    for name, role in sorted(roles.items()):
        if role.command:
            text += _ROLE.format(
                name=name,
                python=python,
                code=CONTAINER_CODE,
                processes=role.processes,
                startsecs=max(1, math.ceil(role.settle)),
                retries=START_RETRIES,
                signal=role.signal,
                patience=max(1, math.ceil(role.patience)),
            )
    return text
