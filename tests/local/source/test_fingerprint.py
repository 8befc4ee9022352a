"""The fingerprint: the same for the same infrastructure, another for any other, blind to code and to order."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightship.config.load import parse
from lightship.config.schema import Service
from lightship.source.fingerprint import container_fingerprint, differences, image_fingerprint, settings_of

FILES = st.dictionaries(
    st.text(min_size=1, max_size=12), st.text("0123456789abcdef", min_size=4, max_size=4), max_size=6
)


def service(**keys: Any) -> Service:
    return parse(json.dumps({"services": {"shop": {"repository": "/srv/git/shop", **keys}}})).service()


def fingerprint(one: Service, files: dict[str, str] | None = None) -> str:
    settings = settings_of(one)
    return container_fingerprint(image_fingerprint(files or {"Dockerfile": "aa"}, settings["image"]), settings)


@given(FILES, st.randoms())
def test_order_does_not_matter(files: dict[str, str], random: Any) -> None:
    items = list(files.items())
    random.shuffle(items)
    settings = settings_of(service())["image"]
    turned = dict(reversed(list(settings.items())))
    assert image_fingerprint(dict(items), turned) == image_fingerprint(files, settings)


@given(FILES, FILES)
def test_any_other_files_are_another_image(one: dict[str, str], other: dict[str, str]) -> None:
    assert (image_fingerprint(one, {}) == image_fingerprint(other, {})) == (one == other)


@given(st.text(max_size=8), st.text(max_size=8))
def test_any_other_build_argument_is_another_image(one: str, other: str) -> None:
    assert (image_fingerprint({}, {"args": {"A": one}}) == image_fingerprint({}, {"args": {"A": other}})) == (
        one == other
    )


INFRASTRUCTURE: list[tuple[dict[str, Any], list[str]]] = [
    ({"image": "shop:1"}, ["image.args", "image.context", "image.dockerfile", "image.name"]),
    ({"image": {"dockerfile": "docker/web"}}, ["image.dockerfile"]),
    ({"image": {"context": "docker"}}, ["image.context"]),
    ({"image": {"args": {"A": "1"}}}, ["image.args.A"]),
    ({"ports": ["8000:8000"]}, ["ports[0]"]),
    ({"volumes": ["/data:/data"]}, ["volumes[0]"]),
    ({"options": ["--memory=1g"]}, ["options[0]"]),
    ({"env": {"B": "1", "A": "1"}}, ["env.A", "env.B"]),
    ({"secrets": {"S": {"env": "S"}}}, ["env.S"]),
    ({"reload": "touch"}, ["reload"]),
    ({"root": "/data/lightship"}, ["root"]),
    ({"roles": {"worker": {"command": ["true"]}}}, ["roles"]),
    ({"proxy": {"hosts": ["shop.example"]}}, ["proxy"]),
]
CODE: list[dict[str, Any]] = [
    {"repository": "/srv/git/other"},
    {"source": "push"},
    {"branch": "next"},
    {"servers": ["a.example"]},
    {"inventory": "hosts.yml", "hosts": "web"},
    {"stages": {"production": {}}, "default_stage": "production"},
    {"app": "other.wsgi:application"},
    {"infra": ["x"]},
    {"shared": ["media"]},
    {"checks": [{"name": "a", "command": ["true"]}]},
    {"migrate": {"command": ["true"]}},
    {"health": {"path": "/h"}},
    {"shared": ["static"], "assets": {"directory": "static"}},
    {"keep": 9},
    {"keep_warm": 1},
    {"keep_connected": 600},
    {"patience": 1},
    {"boot_timeout": 9},
    {"soak": 9},
    {"rollout": {"canary": 2}},
    {"registry": "registry.example/team"},
    {"image": {"secrets": {"TOKEN": {"env": "TOKEN"}}}},
]


@pytest.mark.parametrize(("keys", "paths"), INFRASTRUCTURE)
def test_a_change_of_the_container_changes_it_and_is_named(keys: dict[str, Any], paths: list[str]) -> None:
    old, new = service(), service(**keys)
    assert fingerprint(old) != fingerprint(new)
    assert differences(settings_of(old), settings_of(new)) == paths
    assert differences(settings_of(new), settings_of(old)) == paths


@pytest.mark.parametrize("keys", CODE)
def test_what_only_concerns_releases_does_not(keys: dict[str, Any]) -> None:
    assert fingerprint(service()) == fingerprint(service(**keys))
    assert differences(settings_of(service()), settings_of(service(**keys))) == []


def test_every_key_is_one_or_the_other() -> None:
    sorted_out = {key for keys, _ in INFRASTRUCTURE for key in keys} | {key for keys in CODE for key in keys}
    assert sorted_out == set(Service.model_fields) - Service.own_keys


def test_of_the_proxy_only_the_port_inside_the_container_is_part_of_it() -> None:
    one, other = service(proxy={"http": 80}), service(proxy={"http": 81, "hosts": ["shop.example"]})
    assert fingerprint(one) == fingerprint(other)
    assert fingerprint(one) != fingerprint(service(proxy={"port": 9000}))
    assert "proxy" not in settings_of(service()), "containers without one stay as they are"


def test_values_are_no_part_of_it() -> None:
    one = service(env={"A": "hunter2"}, secrets={"S": {"file": "x"}}, image={"args": {"T": "hunter3"}})
    other = service(env={"A": "other"}, secrets={"S": {"env": "X"}}, image={"args": {"T": "hunter3"}})
    assert fingerprint(one) == fingerprint(other)
    assert "hunter" not in json.dumps(settings_of(one))
    assert "hunter" not in str(differences(settings_of(one), {}))


def test_it_is_stable() -> None:
    """A change of this value replaces every container at its next deploy: count VERSION up knowingly."""
    assert image_fingerprint({"Dockerfile": "aa"}, {"name": "x:1"}) == STABLE


STABLE = "06233a5da7a01f8c2121e1be9a1c9ade924bffbd854a6188de06337e38923d8d"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=2), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.dictionaries(st.text("abc", min_size=1, max_size=2), JSON),
    st.dictionaries(st.text("abc", min_size=1, max_size=2), JSON),
)
def test_differences_are_empty_exactly_when_the_fingerprint_is_the_same(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    same = container_fingerprint("", one) == container_fingerprint("", other)
    assert (differences(one, other) == []) == same
    assert differences(one, one) == []
