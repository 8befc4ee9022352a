"""A configuration as plain values and as YAML again, for ``config show``: defaults merged, nothing secret in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightship.config.yaml import is_plain_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from lightship.config.schema import Role, ServerEntry, Service

__all__ = ["plain", "yaml_text"]


def plain(services: Iterable[Service], stages: Mapping[str, Mapping[str, Service]] | None = None) -> dict[str, Any]:
    """The services as ``lightship.yml`` would hold them, every key set. Secrets are their sources, never values."""
    stages = stages or {}
    return {"services": {one.name: _staged(one, stages.get(one.name, {})) for one in services}}


def _staged(service: Service, stages: Mapping[str, Service]) -> dict[str, Any]:
    if not stages:
        found = _service(service)
        del found["stages"], found["default_stage"]
        return found
    each = {stage: _staged(one, {}) for stage, one in stages.items()}
    return {"default_stage": service.default_stage, "stages": each}


def _service(service: Service) -> dict[str, Any]:
    from lightship.config.schema import SecretSource  # noqa: PLC0415

    found = service.model_dump(exclude=set(service.own_keys), mode="python")
    found["repository"] = str(service.repository)
    sources: dict[str, SecretSource] = service.secrets
    found["secrets"] = {name: source.model_dump(exclude_none=True) for name, source in sources.items()}
    found["roles"] = {name: _role(role) for name, role in service.roles.items()}
    found["servers"] = [_server(entry) for entry in service.servers]
    if service.inventory is None:
        del found["inventory"], found["hosts"]
    else:
        del found["servers"]
    tidy: dict[str, Any] = _tidy(found)
    return tidy


def _role(role: Role) -> dict[str, Any]:
    """A command with all its keys, a program with those that it may have."""
    left = {"processes", "signal"} if role.program is not None else set()
    return role.model_dump(exclude_none=True, exclude={*left, *([] if role.command else ["command"])})


def _server(entry: str | ServerEntry) -> Any:
    return entry if isinstance(entry, str) else entry.model_dump(exclude_none=True, exclude_defaults=True)


def _tidy(value: Any) -> Any:
    """Lists for tuples, and 30 for 30.0, as a person writes it."""
    if isinstance(value, dict):
        return {str(key): _tidy(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_tidy(one) for one in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def yaml_text(value: Any) -> str:
    """``value`` as YAML that the strict reader reads back as the same."""
    import yaml  # noqa: PLC0415

    class Dumper(yaml.SafeDumper):
        """Quotes what the strict reader would not take for text."""

        def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
            return True

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        style = None if is_plain_text(value) else '"'
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    written: str = yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=False, width=10_000)
    return written
