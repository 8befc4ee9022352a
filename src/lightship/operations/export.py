"""A service's servers as an Ansible inventory, with the variables that the playbooks of ``lightship.deploy`` take."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightship.errors import RefusedError
from lightship_agent.records import dataclass

if TYPE_CHECKING:
    from lightship.model import Server
    from lightship.operations.context import Context

__all__ = ["Exported", "export_ansible"]

_HEAD = "# Written by `lightship export ansible`; change lightship.yml, and write it anew.\n---\n"


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    service: str
    folder: str
    files: tuple[str, ...]
    written: tuple[str, ...]
    """Those that were not there as they are now."""


def export_ansible(context: Context, folder: Path, *, force: bool = False) -> Exported:
    """Write the inventory and the group's variables. A file with other content is replaced only with ``force``."""
    texts = {folder / name: text for name, text in _files(context, folder).items()}
    changed = [path for path, text in texts.items() if _content(path) != text]
    others = [path for path in changed if path.exists()]
    if others and not force:
        raise RefusedError(
            f"{others[0]} is there with other content; nothing was written",
            hint="--force replaces it; --output names another directory",
            code="exists",
        )
    for path in changed:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(texts[path], encoding="utf-8")
        except OSError as error:
            raise RefusedError(f"{path} cannot be written: {error}", hint="--output names another directory") from error
    return Exported(context.service.name, str(folder), tuple(map(str, texts)), tuple(map(str, changed)))


def _content(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _files(context: Context, folder: Path) -> dict[str, str]:
    """The files by their names."""
    import yaml  # noqa: PLC0415 - only here is some written

    service = context.service
    group = service.name.replace("-", "_")  # what a group may be called
    hosts = {one.name: _host(one) for one in context.servers}
    config = os.path.relpath(context.config.path, folder)
    variables: dict[str, Any] = {
        "service": service.name,
        "lightship_config": f"{{{{ inventory_dir }}}}/{config}",
    }
    if service.stage is not None:
        variables["lightship_stage"] = service.stage

    def text(value: Mapping[str, Any]) -> str:
        return _HEAD + yaml.safe_dump(value, sort_keys=False, default_flow_style=False, allow_unicode=True)

    return {
        "hosts.yml": text({"all": {"children": {group: {"hosts": hosts}}}}),
        f"group_vars/{group}.yml": text(variables),
    }


def _host(server: Server) -> dict[str, Any]:
    """What Ansible has to know of a host; ~/.ssh/config says the rest to both."""
    found: dict[str, Any] = {}
    if server.local:
        found["ansible_connection"] = "local"
    elif server.host != server.name:
        found["ansible_host"] = server.host
    if server.user is not None:
        found["ansible_user"] = server.user
    if server.port is not None:
        found["ansible_port"] = server.port
    if server.key_file is not None:
        found["ansible_ssh_private_key_file"] = server.key_file
    if server.sudo is False or (server.sudo is None and server.user == "root"):
        found["lightship_become"] = False
    if server.roles is not None:
        found["lightship_roles"] = list(server.roles)
    if server.labels:
        found["lightship_labels"] = dict(server.labels)
    return found
