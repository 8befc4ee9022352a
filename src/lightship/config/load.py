"""From ``lightship.yml`` to services: find the file, read it, merge the defaults, validate, report every problem.

How ``defaults`` are merged: a map is merged key by key (the service's value wins), a list or a single value of the
service replaces the default as a whole. Each secret is one value: its source is never mixed from both.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightship.config import yaml
from lightship.config.options import flag_of
from lightship.config.problems import Problem, configuration_error, path_text, shown
from lightship.config.rules import SERVICE, ConflictError, RuleError
from lightship.errors import ConfigurationError, UsageError

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic_core import ErrorDetails

    from lightship.config.schema import Service

__all__ = ["FILE_NAME", "Config", "find", "load", "parse"]

FILE_NAME = "lightship.yml"

_TOP = ("defaults", "services")


@dataclass(frozen=True)
class Config:
    """A valid configuration: its services by name, and the file it came from."""

    services: Mapping[str, Service]
    path: Path

    @property
    def directory(self) -> Path:
        """The directory that relative paths in the file start from."""
        return self.path.parent

    def service(self, name: str | None = None) -> Service:
        """The service called ``name``; without a name the only one there is."""
        if name is None and len(self.services) == 1:
            return next(iter(self.services.values()))
        choices = ", ".join(sorted(self.services))
        if name is None:
            raise UsageError(
                f"{self.path.name} has {len(self.services)} services: say which",
                hint=f"one of: {choices}",
                code="service",
            )
        if name not in self.services:
            raise UsageError(
                f"{self.path.name} has no service {shown(name)}",
                hint=_nearest(name, self.services) or f"one of: {choices}",
                code="service",
            )
        return self.services[name]


def find(start: Path | None = None) -> Path:
    """The ``lightship.yml`` of ``start`` or the nearest directory above it, up to the top of the git work tree.

    One further up is used only if it belongs to the caller or to root: a file that somebody else left in a directory
    above would have its commands run.
    """
    first = (start or Path.cwd()).absolute()
    for directory in (first, *first.parents):
        path = directory / FILE_NAME
        if path.is_file():
            if directory != first and path.stat().st_uid not in (os.geteuid(), 0):
                raise ConfigurationError(f"{path} belongs to another user", hint=f"name it with --config {path}")
            return path
        if (directory / ".git").exists():
            break
    raise ConfigurationError(
        f"there is no {FILE_NAME} in {first} or above it",
        hint="`lightship init` writes one; --config names another file",
    )


def load(path: Path | None = None) -> Config:
    """The configuration in ``path``, or in the nearest ``lightship.yml``."""
    found = (path or find()).absolute()
    return _validated(yaml.read(found), found)


def parse(text: str, path: Path = Path(FILE_NAME)) -> Config:
    """The configuration in ``text``, as if it stood in ``path``."""
    return _validated(yaml.parse(text.encode("utf-8", "surrogatepass"), path.name), path)


def _validated(document: yaml.Document, path: Path) -> Config:
    found = _Validation(document)
    services = found.run()
    if found.problems:
        order = sorted(found.problems, key=lambda problem: (problem.line, problem.column, problem.path))
        raise configuration_error(document.file, order)
    return Config(services, path)


class _Validation:
    """One pass over a document. Collects problems, each once: a mistake in ``defaults`` shows in every service."""

    def __init__(self, document: yaml.Document) -> None:
        self.document = document
        self.problems = list(document.problems)
        self.seen = {problem.path for problem in self.problems}

    def run(self) -> dict[str, Service]:
        top = self.document.value
        if not isinstance(top, dict):
            self.add((), "must be a map with the key services", top)
            return {}
        for key in top:
            if key not in _TOP:
                self.add((key,), "is not a known key", hint=_nearest(key, _TOP) or "known: defaults, services")
        defaults = top.get("defaults", {})
        if not isinstance(defaults, dict):
            self.add(("defaults",), "must be a map of a service's keys", defaults)
            defaults = {}
        services = top.get("services")
        if not isinstance(services, dict) or not services:
            self.add(("services",), "must be a map of at least one service by its name", services)
            return {}
        return {
            name: service
            for name, own in services.items()
            if (service := self.service(name, own, defaults)) is not None
        }

    def service(self, name: str, own: Any, defaults: dict[str, Any]) -> Service | None:
        from pydantic import ValidationError  # noqa: PLC0415

        model = _service_model()
        place = ("services", name)
        try:
            SERVICE(name)
        except RuleError as error:
            self.add(place, error.rule, name)
            return None
        if not isinstance(own, dict):
            self.add(place, "must be a map", own)
            return None
        for where, keys in ((place, own), (("defaults",), defaults)):
            if "name" in keys:
                self.add((*where, "name"), "is not a key: a service's name is its key under services")
        merged = {**_merge(defaults, own), "name": name}
        try:
            return model.model_validate(merged)
        except ValidationError as error:
            found = error.errors(include_url=False)
            for details in found:
                # A list whose every item is wrong counts as too short; its items say it better.
                short = details["type"] == "too_short" and bool(details["input"])
                if not short:
                    self.detail(place, own, details)
        return None

    def detail(self, place: yaml.KeyPath, own: dict[str, Any], details: ErrorDetails) -> None:
        """One of Pydantic's errors, at the place in the file where the value came from."""
        from lightship.config.schema import TAGS  # noqa: PLC0415

        # A wrong key of a map ends in a marker; the forms of `image` are marked too. Neither is in the file.
        location = tuple(part for part in details["loc"] if part not in (*TAGS, "[key]"))
        error = (details.get("ctx") or {}).get("error")
        if isinstance(error, ConflictError):
            for key, rule in error.found:
                self.add((*(place if key in own else ("defaults",)), key), rule)
            return
        missing = details["type"] == "missing"
        within = place if missing or _has(own, location) or not location else ("defaults",)
        rule, hint = _words(details)
        value = details["input"]
        if missing or "secrets" in location[:1] or details["type"] == "extra_forbidden" or not location:
            self.add((*within, *location), rule, hint=hint)
        else:
            self.add(
                (*within, *location), rule, _without_value(value) if location[0] == "options" else value, hint=hint
            )

    def add(self, path: yaml.KeyPath, rule: str, *value: object, hint: str = "") -> None:
        text = path_text(path)
        if text in self.seen:
            return
        self.seen.add(text)
        line, column = self.document.mark(path, key=not value)
        self.problems.append(
            Problem(self.document.file, line, column, text, rule, shown(value[0]) if value else "", hint)
        )


def _service_model() -> type[Service]:
    """The schema of a service, made without Pydantic's plugins: to look for some takes longer than to read the file."""
    name = "PYDANTIC_DISABLE_PLUGINS"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        from lightship.config.schema import Service  # noqa: PLC0415
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
    return Service


def _without_value(option: Any) -> Any:
    """An option without what it sets a variable to: that may be a password in the wrong place."""
    if isinstance(option, str) and flag_of(option) in ("e", "env", "build-arg"):
        return f"--{flag_of(option)}=***" if option.startswith("--") else "-e***"
    return option


def _merge(below: dict[str, Any], above: dict[str, Any], path: yaml.KeyPath = ()) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        both = isinstance(old, dict) and isinstance(value, dict) and path[:1] != ("secrets",)
        merged[key] = _merge(old, value, (*path, key)) if both and isinstance(old, dict) else value
    return merged


def _has(value: Any, path: yaml.KeyPath) -> bool:
    """Whether ``path`` leads somewhere in the service's own keys."""
    for part in path:
        inside = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        if part not in inside:
            return False
        value = value[part]
    return True


def _nearest(word: str, choices: Any) -> str:
    import difflib  # noqa: PLC0415

    close = difflib.get_close_matches(word.lower()[:80], list(choices), n=1)
    return f"did you mean {close[0]}?" if close else ""


def _keys_around(location: yaml.KeyPath) -> list[str]:
    """The known keys of the map that ``location``, an unknown key, stands in."""
    from lightship.config.schema import Check, Health, ImageBuild, SecretSource, Service  # noqa: PLC0415

    models: dict[str, type[BaseModel]] = {
        "image": ImageBuild,
        "health": Health,
        "checks": Check,
        "secrets": SecretSource,
    }
    model: type[BaseModel] = models.get(str(location[0]), Service) if len(location) > 1 else Service
    return [name for name in model.model_fields if not (model is Service and name in Service.own_keys)]


_TYPES = {
    "string_type": "must be text",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "dict_type": "must be a map",
    "model_type": "must be a map",
    "model_attributes_type": "must be a map",
    "tuple_type": "must be a list",
    "missing": "is missing",
    "union_tag_not_found": "must be an image's name or a map (dockerfile, context, args)",
    "union_tag_invalid": "must be an image's name or a map (dockerfile, context, args)",
}


def _words(details: ErrorDetails) -> tuple[str, str]:
    """The rule that was broken, and a hint."""
    kind, context = details["type"], details.get("ctx") or {}
    error = context.get("error")
    if isinstance(error, RuleError):
        return error.rule, error.hint
    if kind == "extra_forbidden":
        location = tuple(part for part in details["loc"] if part != "<build>")
        known = _keys_around(location)
        return "is not a known key", _nearest(str(location[-1]), known) or f"known: {', '.join(known)}"
    if kind == "literal_error":
        choices = [word.strip("'") for word in str(context.get("expected", "")).replace(" or ", ", ").split(", ")]
        return f"must be one of {', '.join(choices)}", _nearest(str(details["input"]), choices)
    if kind in ("too_long", "too_short"):
        bound = context.get("max_length", context.get("min_length"))
        return f"must have at {'most' if kind == 'too_long' else 'least'} {bound} entries", ""
    quotes = kind == "string_type" and isinstance(details["input"], (int, float))
    words = details["msg"].replace("Input should be", "must be")
    return _TYPES.get(kind, words), "write it in quotes" if quotes else ""
