"""The schema as editors and people see it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from lightship.config.load import FILE_NAME, parse
from lightship.config.options import ALLOWED, OPTION
from lightship.config.reference import EXAMPLE, fields, page
from lightship.config.resolved import plain, yaml_text
from lightship.config.schema import Service, json_schema

#: Keys that say nothing without another.
BESIDE = {
    "assets": {"shared": ["staticfiles"]},
    "hosts": {"inventory": "hosts.yml"},
    "default_stage": {"stages": {"staging": {}}},
}
PAGE = Path(__file__).parents[3] / "docs" / "reference" / "configuration.md"


def test_the_page_is_fresh() -> None:
    assert PAGE.read_text("utf-8") == page(), (
        "run: python -m lightship.config.reference > docs/reference/configuration.md"
    )


def test_every_key_is_described_with_an_example() -> None:
    found = list(fields(json_schema()))
    assert {path for path, _, _ in found if "." not in path} == set(Service.model_fields) - Service.own_keys
    assert {"secrets.NAME.file", "checks[].command", "health.path", "image.args"} <= {path for path, _, _ in found}
    for path, part, _ in found:
        assert part.get("description"), path
        assert part.get("examples"), path


def test_examples_are_valid() -> None:
    for path, part, _ in fields(json_schema()):
        if "." not in path:
            for example in part["examples"]:
                beside = BESIDE.get(path, {})
                parse(yaml_text({"services": {"shop": {"repository": "/srv/git/x", path: example, **beside}}}))


def test_the_full_example_loads_and_uses_every_key() -> None:
    config = parse(EXAMPLE)
    assert set(config.services) == {"shop", "admin", "blog"}
    assert config.service("shop").env["LANG"] == "C.UTF-8"
    assert config.service("admin").servers == ("local",)
    for key in set(Service.model_fields) - Service.own_keys:
        assert re.search(rf"^    {key}:", EXAMPLE, re.MULTILINE) or key == "servers"


def test_what_show_prints_loads_as_the_same() -> None:
    config = parse(EXAMPLE)
    again = parse(yaml_text(plain(config.services.values(), config.stages)), Path(FILE_NAME))
    assert again.services == config.services
    assert again.stages == config.stages


def test_the_json_schema_is_closed_and_complete() -> None:
    schema = json_schema()
    references = set(re.findall(r"#/\$defs/([A-Za-z]+)", str(schema)))
    assert references == set(schema["$defs"])

    def walk(part: Any) -> None:
        if isinstance(part, dict):
            if "properties" in part and isinstance(part["properties"], dict):
                assert part["additionalProperties"] is False
            if isinstance(part.get("pattern"), str):
                re.compile(part["pattern"])
            for value in part.values():
                walk(value)
        if isinstance(part, list):
            for value in part:
                walk(value)

    walk(schema)
    assert "name" not in schema["$defs"]["Service"]["properties"]


def test_the_table_of_options_is_the_allow_list() -> None:
    listed = set(re.findall(r"^\| `--([a-z-]+)=` ", PAGE.read_text("utf-8"), re.MULTILINE))
    assert listed == set(ALLOWED)
    assert OPTION("--memory=512m") == "--memory=512m"
