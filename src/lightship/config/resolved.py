"""A configuration as plain values and as YAML again, for ``config show``: defaults merged, nothing secret in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightship.config.yaml import is_plain_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lightship.config.schema import Service

__all__ = ["plain", "yaml_text"]


def plain(services: Iterable[Service]) -> dict[str, Any]:
    """The services as ``lightship.yml`` would hold them, every key set. Secrets are their sources, never values."""
    return {"services": {service.name: _service(service) for service in services}}


def _service(service: Service) -> dict[str, Any]:
    from lightship.config.schema import SecretSource  # noqa: PLC0415

    found = service.model_dump(exclude=set(service.own_keys), mode="python")
    found["repository"] = str(service.repository)
    sources: dict[str, SecretSource] = service.secrets
    found["secrets"] = {name: source.model_dump(exclude_none=True) for name, source in sources.items()}
    tidy: dict[str, Any] = _tidy(found)
    return tidy


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
