"""Servers from an Ansible inventory, as ``ansible-inventory`` itself reads it: every format, plugin and script.

What Ansible knows of a host that SSH needs is taken over (address, port, user, key, local); ``lightship_roles`` and
``lightship_labels`` say the rest. Whatever else stands there is Ansible's own affair.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightship.config.problems import shown
from lightship.config.rules import HOST, INVENTORY_NAME, LABEL, LABEL_VALUE, USER, Rule, RuleError
from lightship.errors import ConfigurationError
from lightship.model import Server

__all__ = ["read", "servers_of"]

_PROGRAM = "ansible-inventory"
_SECONDS = 120.0
_LARGEST = 256 * 1024 * 1024
_LARGEST_PORT = 65535
_SSH = ("ssh", "smart", "ansible.builtin.ssh", "ansible.netcommon.libssh", "paramiko", "ansible.builtin.paramiko_ssh")
_LOCAL = ("local", "ansible.builtin.local")


def read(inventory: str, hosts: str, directory: Path) -> tuple[Server, ...]:
    """The servers of an inventory that a pattern chooses. Relative paths start from ``directory``."""
    path = Path(os.path.normpath(directory / Path(inventory).expanduser()))
    if not path.exists():
        raise ConfigurationError(f"the inventory {path} is not there", code="inventory")
    return servers_of(_asked(path, hosts, directory), str(path), hosts)


def _program() -> str:
    """Where it is: on PATH, or beside the Python that runs lightship."""
    found = shutil.which(_PROGRAM) or shutil.which(_PROGRAM, path=str(Path(sys.executable).parent))
    if found is None:
        raise ConfigurationError(
            f"{_PROGRAM} is missing, which reads the inventory",
            hint="install it: pip install 'lightship[ansible]'",
            code="ansible-missing",
        )
    return found


def _asked(path: Path, hosts: str, directory: Path) -> Any:
    """What ``ansible-inventory --list`` says of the hosts that the pattern chooses."""
    command = [_program(), "-i", str(path), "--list", f"--limit={hosts}"]
    environment = {
        **os.environ,
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_FORCE_COLOR": "0",
        "ANSIBLE_DEPRECATION_WARNINGS": "0",
    }
    # A source that cannot be read is an error: half a fleet must not pass for the whole one.
    environment |= {"ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "1", "ANSIBLE_INVENTORY_UNPARSED_FAILED": "1"}
    done = _run(command, directory, environment, path)
    said = done.stderr.decode("utf-8", "replace").strip()
    if done.returncode:
        raise ConfigurationError(
            f"{_PROGRAM} cannot read {path}: {_cause(said) or f'exit status {done.returncode}'}",
            hint=f"see: {_PROGRAM} -i {path} --list",
            code="inventory",
            detail={"stderr": said[-4000:]},
        )
    if len(done.stdout) > _LARGEST:
        raise ConfigurationError(f"{path} comes to more than {_LARGEST // 1024**2} MiB", code="inventory")
    try:
        return json.loads(done.stdout)
    except (ValueError, RecursionError):
        raise ConfigurationError(f"{_PROGRAM} printed no JSON for {path}", code="inventory") from None


def _run(
    command: list[str], directory: Path, environment: Mapping[str, str], path: Path
) -> subprocess.CompletedProcess[bytes]:
    """Run it to its end or to the end of its time; then whatever it has started ends with it."""
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            start_new_session=True,
        )
    except OSError as error:
        raise ConfigurationError(f"{_PROGRAM} cannot be run: {error}", code="ansible-missing") from None
    with process:
        try:
            out, errors = process.communicate(timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            raise ConfigurationError(
                f"{_PROGRAM} did not end within {_SECONDS:g} s: {path}", code="inventory"
            ) from None
        finally:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(command, process.returncode, out, errors)


def _cause(said: str) -> str:
    lines = [line for line in said.splitlines() if line.strip()]
    found = next((line for line in lines if line.startswith(("ERROR", "[ERROR]"))), lines[-1] if lines else "")
    return found[:500]


def servers_of(listed: Any, file: str, hosts: str) -> tuple[Server, ...]:
    """The servers in what ``ansible-inventory --list`` printed."""
    if not isinstance(listed, Mapping):
        raise ConfigurationError(f"{_PROGRAM} printed no inventory for {file}", code="inventory")
    meta = listed.get("_meta")
    variables = meta.get("hostvars") if isinstance(meta, Mapping) else None
    variables = variables if isinstance(variables, Mapping) else {}
    names = list(dict.fromkeys([*_hosts(listed), *variables]))
    if not names:
        raise ConfigurationError(
            f"{file} has no host for the pattern {shown(hosts)}",
            hint=f"see: {_PROGRAM} -i {file} --graph",
            code="hosts",
        )
    return tuple(_Host(file, str(name), variables.get(name)).server() for name in names)


def _hosts(listed: Mapping[str, Any]) -> Iterator[str]:
    """The hosts of all groups, the groups from the top on and each once."""
    waiting, seen = ["all"], set()
    while waiting:
        name = waiting.pop(0)
        group = listed.get(name)
        if name in seen or not isinstance(group, Mapping):
            continue
        seen.add(name)
        yield from (str(host) for host in group.get("hosts", ()))
        waiting += [str(child) for child in group.get("children", ())]


class _Host:
    """One host of an inventory, with what is said of it. What is wrong with it is told with its name."""

    def __init__(self, file: str, name: str, variables: Any) -> None:
        self._file = file
        self._name = name
        self._variables = variables if isinstance(variables, Mapping) else {}

    def server(self) -> Server:
        self._checked(INVENTORY_NAME, self._name, "its name")
        connection = self._text("ansible_connection") or "ssh"
        if connection not in (*_SSH, *_LOCAL):
            raise self._wrong("ansible_connection", f"must be ssh or local, not {shown(connection)}")
        host = self._text("ansible_host", "ansible_ssh_host") or self._name
        user = self._text("ansible_user", "ansible_ssh_user")
        key = self._text("ansible_ssh_private_key_file", "ansible_private_key_file")
        return Server(
            name=self._name,
            host=self._checked(HOST, host, "ansible_host"),
            user=self._checked(USER, user, "ansible_user") if user else None,
            port=self._port(),
            roles=self._roles(),
            labels=self._labels(),
            key_file=str(Path(key).expanduser()) if key else None,
            local=connection in _LOCAL,
        )

    def _wrong(self, what: str, rule: str) -> ConfigurationError:
        return ConfigurationError(f"{self._file}: host {shown(self._name)}: {what}: {rule}", code="inventory")

    def _checked(self, rule: Rule, value: str, what: str) -> str:
        try:
            return rule(value)
        except RuleError as error:
            raise self._wrong(what, f"{shown(value)} {error.rule}") from None

    def _text(self, *names: str) -> str:
        """The first variable of these that is there, as text."""
        for name in names:
            value = self._variables.get(name)
            if value is None:
                continue
            if not isinstance(value, str) or not value.isprintable():
                raise self._wrong(name, f"must be plain text, not {shown(value)}")
            if "{{" in value:
                raise self._wrong(name, "must be a value: templates are filled in by playbooks only")
            return value
        return ""

    def _port(self) -> int | None:
        for name in ("ansible_port", "ansible_ssh_port"):
            value = self._variables.get(name)
            if value is None:
                continue
            number = int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value
            if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= _LARGEST_PORT:
                raise self._wrong(name, f"must be a port (1 to {_LARGEST_PORT}), not {shown(value)}")
            return number
        return None

    def _roles(self) -> tuple[str, ...] | None:
        value = self._variables.get("lightship_roles")
        if value is None:
            return None
        roles = [value] if isinstance(value, str) else value
        if not isinstance(roles, Sequence) or not roles or not all(isinstance(role, str) for role in roles):
            raise self._wrong("lightship_roles", "must be a list of roles")
        return tuple(dict.fromkeys(self._checked(LABEL, role, "lightship_roles") for role in roles))

    def _labels(self) -> dict[str, str]:
        value = self._variables.get("lightship_labels")
        if value is None:
            return {}
        if not isinstance(value, Mapping) or not all(isinstance(text, str) for pair in value.items() for text in pair):
            raise self._wrong("lightship_labels", "must be a map of texts")
        return {
            self._checked(LABEL, key, "lightship_labels"): self._checked(LABEL_VALUE, text, "lightship_labels")
            for key, text in value.items()
        }
