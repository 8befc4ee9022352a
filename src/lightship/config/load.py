"""From ``lightship.yml`` to services: find the file, read it, merge the defaults, validate, report every problem.

How ``defaults`` are merged: a map is merged key by key (the service's value wins), a list or a single value of the
service replaces the default as a whole. Each secret is one value: its source is never mixed from both.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightship.config import yaml
from lightship.config.options import flag_of
from lightship.config.problems import Problem, configuration_error, path_text, shown
from lightship.config.rules import LABEL, SERVICE, ConflictError, RuleError
from lightship.errors import ConfigurationError, UsageError
from lightship_agent.records import dataclass, field

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic_core import ErrorDetails

    from lightship.config.schema import Service

__all__ = ["FILE_NAME", "Config", "find", "load", "parse", "service_model"]

FILE_NAME = "lightship.yml"

_TOP = ("defaults", "services")


@dataclass(frozen=True)
class Config:
    """A valid configuration: its services by name, and the file it came from."""

    services: Mapping[str, Service]
    """Each service; of one with stages that which is meant unasked, or else the first."""
    path: Path
    stages: Mapping[str, Mapping[str, Service]] = field(default_factory=dict)
    """The stages of the services that have some."""

    @property
    def directory(self) -> Path:
        """The directory that relative paths in the file start from."""
        return self.path.parent

    def service(self, name: str | None = None, stage: str | None = None) -> Service:
        """The service called ``name`` (without one the only one there is), in a stage if it has stages."""
        found = self.named(name)
        stages = self.stages.get(found.name, {})
        if stage is None:
            if len(stages) > 1 and found.default_stage is None:
                raise UsageError(
                    f"the service {found.name} has {len(stages)} stages: say which",
                    hint=f"--stage, one of: {', '.join(stages)}; or set default_stage",
                    code="stage",
                )
            return found
        if stage not in stages:
            raise UsageError(
                f"the service {found.name} has no stage {shown(stage)}",
                hint=_nearest(stage, stages) or (f"one of: {', '.join(stages)}" if stages else "it has none"),
                code="stage",
            )
        return stages[stage]

    def named(self, name: str | None = None) -> Service:
        """The service called ``name``, whichever of its stages ``services`` has."""
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
    return Config(services, path, found.stages)


@dataclass(frozen=True)
class _Layer:
    """Keys of a service at one place of the file. What stands above wins over what stands below."""

    place: yaml.KeyPath
    keys: dict[str, Any]


class _Validation:
    """One pass over a document. Collects problems, each once: a mistake in ``defaults`` shows in every service."""

    def __init__(self, document: yaml.Document) -> None:
        self.document = document
        self.problems = list(document.problems)
        self.seen = {problem.path for problem in self.problems}
        self.stages: dict[str, dict[str, Service]] = {}

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
        place: yaml.KeyPath = ("services", name)
        try:
            SERVICE(name)
        except RuleError as error:
            self.add(place, error.rule, name)
            return None
        if not isinstance(own, dict):
            self.add(place, "must be a map", own)
            return None
        layers = [_Layer(place, own), _Layer(("defaults",), defaults)]
        for layer in layers:
            for key in ("name", "stage"):
                if key in layer.keys:
                    self.add(
                        (*layer.place, key),
                        f"is not a key: a service's {key} is its key under {key}s"
                        if key == "stage"
                        else "is not a key: a service's name is its key under services",
                    )
        stages = self.stage_layers(layers)
        if stages is None:
            return self.validated(name, None, layers)
        found = {stage: self.validated(name, stage, [*more, *layers]) for stage, more in stages.items()}
        whole = {stage: service for stage, service in found.items() if service is not None}
        if len(whole) < len(found):
            return None
        self.once_on_a_server(place, whole)
        default = next(iter(whole.values())).default_stage
        if default is not None and default not in whole:
            hint = _nearest(default, whole) or f"one of: {', '.join(whole)}"
            self.add(
                (*self.place_of("default_stage", layers), "default_stage"),
                "must be one of the stages",
                default,
                hint=hint,
            )
            return None
        self.stages[name] = whole
        return whole[default] if default is not None else next(iter(whole.values()))

    def stage_layers(self, layers: Sequence[_Layer]) -> dict[str, list[_Layer]] | None:
        """The keys of each stage, by its name; ``None`` when there are none, or none that can be understood."""
        found: dict[str, list[_Layer]] = {}
        for layer in layers:
            stages = layer.keys.get("stages")
            if not isinstance(stages, dict) or not all(isinstance(keys, dict) for keys in stages.values()):
                continue  # the service's own validation says so
            for stage, keys in stages.items():
                place = (*layer.place, "stages", stage)
                try:
                    LABEL(stage)
                except RuleError as error:
                    self.add(place, error.rule, stage)
                    continue
                for key in {"name", "stage", "stages", "default_stage"} & keys.keys():
                    self.add((*place, key), "is not a key of a stage")
                found.setdefault(stage, []).append(_Layer(place, keys))
        return found or None

    def once_on_a_server(self, place: yaml.KeyPath, stages: Mapping[str, Service]) -> None:
        """A service is on a server once: two of its stages there would be each other's container and files."""
        seen: dict[tuple[str, int | None, str], str] = {}
        for stage, service in stages.items():
            for server in () if service.inventory else service.machines:
                other = seen.setdefault((server.host, server.port, service.root), stage)
                if other != stage:
                    self.add(
                        (*place, "stages", stage, "servers"),
                        f"must not have a server that the stage {other} has too",
                        server.name,
                        hint="give the stages different servers, or make two services of them",
                    )

    def place_of(self, key: str, layers: Sequence[_Layer]) -> yaml.KeyPath:
        """Where a key was set."""
        return next((layer.place for layer in layers if key in layer.keys), layers[0].place)

    def validated(self, name: str, stage: str | None, layers: Sequence[_Layer]) -> Service | None:
        """One service, or one stage of it, from all places that say something of it."""
        from pydantic import ValidationError  # noqa: PLC0415

        merged: dict[str, Any] = {}
        for layer in reversed(layers):
            merged = _merge(_without_other_servers(merged, layer.keys), layer.keys)
        if stage is not None:
            del merged["stages"]
        try:
            return service_model().model_validate({**merged, "name": name, "stage": stage})
        except ValidationError as error:
            for details in error.errors(include_url=False):
                # A list whose every item is wrong counts as too short; its items say it better.
                short = details["type"] == "too_short" and bool(details["input"])
                if not short:
                    self.detail(layers, details)
        return None

    def detail(self, layers: Sequence[_Layer], details: ErrorDetails) -> None:
        """One of Pydantic's errors, at the place in the file where the value came from."""
        from lightship.config.schema import TAGS  # noqa: PLC0415

        # A wrong key of a map ends in a marker; the forms of `image` are marked too. Neither is in the file.
        location = tuple(part for part in details["loc"] if part not in (*TAGS, "[key]"))
        error = (details.get("ctx") or {}).get("error")
        if isinstance(error, ConflictError):
            for key, rule in error.found:
                self.add((*self.place_of(key, layers), key), rule)
            return
        missing = details["type"] == "missing"
        own = next(layer.place for layer in layers if layer.place[:1] == ("services",) and len(layer.place) == 2)  # noqa: PLR2004
        holding = [layer.place for layer in layers if _has(layer.keys, location)]
        around = [layer.place for layer in layers if location and location[0] in layer.keys]
        within = own if not location or (missing and not around) else (holding or around or [own])[0]
        rule, hint = _words(details)
        value = details["input"]
        if missing or "secrets" in location[:2] or details["type"] == "extra_forbidden" or not location:
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


def service_model() -> type[Service]:
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
        both = isinstance(old, dict) and isinstance(value, dict) and path not in (("secrets",), ("image", "secrets"))
        merged[key] = _merge(old, value, (*path, key)) if both and isinstance(old, dict) else value
    return merged


def _without_other_servers(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """``servers`` and ``inventory`` take each other's place, as one list takes the place of another."""
    if "servers" in above and "inventory" not in above:
        return {key: value for key, value in below.items() if key not in ("inventory", "hosts")}
    if above.get("inventory") is not None and "servers" not in above:
        return {key: value for key, value in below.items() if key != "servers"}
    return below


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
    from lightship.config.schema import (  # noqa: PLC0415
        Assets,
        Check,
        Health,
        ImageBuild,
        Proxy,
        Role,
        SecretSource,
        ServerEntry,
        Service,
    )

    models: dict[str, type[BaseModel]] = {
        "image": ImageBuild,
        "health": Health,
        "checks": Check,
        "roles": Role,
        "secrets": SecretSource,
        "servers": ServerEntry,
        "proxy": Proxy,
        "assets": Assets,
    }
    if location[:2] == ("image", "secrets"):
        models["image"] = SecretSource
    model: type[BaseModel] = models.get(str(location[0]), Service) if len(location) > 1 else Service
    return [name for name in model.model_fields if not (model is Service and name in Service.own_keys)]


_FORMS = {
    "image": "must be an image's name or a map (dockerfile, context, args, secrets)",
    "proxy": "must be none or a map (hosts, port, http, https, certificates, ...)",
    "servers": "must be '[user@]host[:port]' or a map (host, name, user, port, roles, labels, sudo)",
}
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
}


def _words(details: ErrorDetails) -> tuple[str, str]:
    """The rule that was broken, and a hint."""
    kind, context = details["type"], details.get("ctx") or {}
    error = context.get("error")
    if isinstance(error, RuleError):
        return error.rule, error.hint
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        return _FORMS[str(details["loc"][0])], ""
    if kind == "extra_forbidden":
        location = tuple(part for part in details["loc"] if not str(part).startswith("<"))
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
