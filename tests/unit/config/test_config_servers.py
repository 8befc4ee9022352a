"""Servers and stages in lightship.yml."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lightship.config.load import Config, parse
from lightship.config.schema import json_schema
from lightship.errors import ConfigurationError, UsageError
from lightship.model import Server
from lightship.operations.context import load_context


def config(**keys: Any) -> Config:
    return parse(json.dumps({"services": {"shop": {"repository": "/srv/git/shop", **keys}}}))


def problems(text: str) -> list[tuple[str, int]]:
    with pytest.raises(ConfigurationError) as caught:
        parse(text)
    return [(one["path"], one["line"]) for one in caught.value.detail["problems"]]


def test_an_address_and_a_map_describe_a_server() -> None:
    entries = [
        "local",
        "web1.example",
        "deploy@web2.example:2222",
        "root@[::1]:22",
        "my_alias",
        {"host": "10.0.0.1"},
        {
            "host": "10.0.0.2",
            "name": "big",
            "user": "deploy",
            "port": 22,
            "roles": ["web", "worker"],
            "labels": {"zone": "a"},
            "sudo": False,
        },
        {"host": "::1", "port": 2222},
    ]
    roles = {"worker": {"command": ["true"]}}
    assert config(servers=entries, roles=roles).service().machines == (
        Server("local", "localhost", local=True),
        Server("web1.example", "web1.example"),
        Server("web2.example:2222", "web2.example", "deploy", 2222),
        Server("[::1]:22", "::1", "root", 22),
        Server("my_alias", "my_alias"),
        Server("10.0.0.1", "10.0.0.1"),
        Server("big", "10.0.0.2", "deploy", 22, ("web", "worker"), {"zone": "a"}, False),
        Server("[::1]:2222", "::1", None, 2222),
    )


@pytest.mark.parametrize(
    ("entry", "key"),
    [
        ({"host": "-oProxyCommand=x"}, ".host"),
        ({"host": "a b"}, ".host"),
        ({"host": "a;b"}, ".host"),
        ({"host": "web1\n"}, ".host"),
        ({"host": "1:2:3"}, ".host"),
        ({"name": "web1"}, ".host"),
        ({"host": "a", "name": "-x"}, ".name"),
        ({"host": "a", "name": "\u202ea"}, ".name"),
        ({"host": "a", "user": "-lroot"}, ".user"),
        ({"host": "a", "user": "a@b"}, ".user"),
        ({"host": "a", "port": 0}, ".port"),
        ({"host": "a", "port": "22"}, ".port"),
        ({"host": "a", "roles": []}, ".roles"),
        ({"host": "a", "roles": ["-x"]}, ".roles[0]"),
        ({"host": "a", "labels": {"a": "$(id)"}}, ".labels.a"),
        ({"host": "a", "sudo": "yes"}, ".sudo"),
        ({"host": "a", "hots": "b"}, ".hots"),
        (["a"], ""),
        (7, ""),
    ],
)
def test_what_is_wrong_with_a_server_is_told_with_its_place(entry: Any, key: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        config(servers=["local", entry])
    (problem,) = caught.value.detail["problems"]
    assert problem["path"] == f"services.shop.servers[1]{key}"
    assert problem["rule"]


@pytest.mark.parametrize(
    "servers",
    [
        ["a.example", "b.example", "root@a.example"],
        [{"host": "a", "name": "same"}, {"host": "b", "name": "same"}],
        ["a", {"host": "a"}],
    ],
)
def test_two_servers_of_one_name_are_refused(servers: list[Any]) -> None:
    with pytest.raises(ConfigurationError, match="twice"):
        config(servers=servers)


def test_inventory_and_servers_take_each_others_place() -> None:
    with pytest.raises(ConfigurationError, match="beside servers"):
        config(servers=["a"], inventory="hosts.yml")
    with pytest.raises(ConfigurationError, match="without inventory"):
        config(hosts="web")
    text = {
        "defaults": {"repository": "/srv/git/x", "servers": ["a"]},
        "services": {"one": {"inventory": "hosts.yml", "hosts": "web"}, "two": {}},
    }
    found = parse(json.dumps(text))
    assert found.service("one").inventory == "hosts.yml"
    assert found.service("two").inventory is None


@pytest.mark.parametrize("bad", ["-i", "@file", "web; id", "$(id)", "a b", "", "\n"])
def test_a_pattern_is_no_option_and_no_file(bad: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        config(inventory="hosts.yml", hosts=bad)
    assert caught.value.detail["problems"][0]["path"] == "services.shop.hosts"


STAGES = """
defaults:
  repository: /srv/git/shop
services:
  shop:
    env: {A: "1", B: "1"}
    servers: [nowhere]
    stages:
      staging:
        branch: next
        env: {B: "2"}
        servers: [test]
      production:
        servers: [web1, web2]
"""


def test_a_stage_has_the_services_keys_and_its_own_on_top() -> None:
    found = parse(STAGES)
    staging = found.service("shop", "staging")
    assert (staging.name, staging.stage, staging.branch) == ("shop", "staging", "next")
    assert staging.env == {"A": "1", "B": "2"}
    assert [one.name for one in staging.machines] == ["test"]
    production = found.service(None, "production")
    assert production.branch == "main"
    assert production.env == {"A": "1", "B": "1"}


def test_which_stage_is_meant() -> None:
    with pytest.raises(UsageError, match="2 stages") as caught:
        parse(STAGES).service()
    assert caught.value.code == "stage"
    with pytest.raises(UsageError) as caught:
        parse(STAGES).service(None, "productoin")
    assert "production" in caught.value.hint
    assert parse(f"{STAGES}    default_stage: staging\n").service().stage == "staging"
    assert config(stages={"only": {"servers": ["a"]}}).service().stage == "only"
    with pytest.raises(UsageError, match="no stage"):
        config().service(None, "production")


def test_what_is_wrong_with_a_stage_is_told_once_at_its_place() -> None:
    wrong = STAGES.replace("branch: next", "branch: -x").replace('A: "1"', "A: 1")
    assert problems(wrong) == [("services.shop.env.A", 6), ("services.shop.stages.staging.branch", 10)]
    assert problems(STAGES.replace("branch: next", "brunch: next"))[0][0] == "services.shop.stages.staging.brunch"
    assert problems(STAGES.replace("branch: next", "stages: {}"))[0][0] == "services.shop.stages.staging.stages"
    assert problems(STAGES.replace("      staging:", '      "-x":'))[0][0] == "services.shop.stages.-x"
    assert problems(f"{STAGES}    default_stage: stagin\n") == [("services.shop.default_stage", 15)]
    assert problems(STAGES.replace("repository: /srv/git/shop", "keep: 5")) == [("services.shop.repository", 5)]
    assert problems("services: {shop: {repository: /srv/x, default_stage: a}}") == [("services.shop.default_stage", 1)]
    for bad in ("[a]", "7", "{a: 7}", "{a: [b]}"):
        assert problems(f"services: {{shop: {{repository: /srv/x, stages: {bad}}}}}")[0][0].startswith(
            "services.shop.stages"
        )


def test_two_stages_do_not_share_a_server() -> None:
    shared = STAGES.replace("[web1, web2]", "[web1, test]")
    assert problems(shared) == [("services.shop.stages.production.servers", 14)]
    parse(shared.replace("branch: next", "root: /srv/staging"))


def test_editors_know_a_stages_keys() -> None:
    definitions = json_schema()["$defs"]
    assert definitions["Service"]["properties"]["stages"]["additionalProperties"] == {"$ref": "#/$defs/Stage"}
    left = set(definitions["Service"]["properties"]) - set(definitions["Stage"]["properties"])
    assert left == {"stages", "default_stage"}


def test_a_command_may_choose_servers(tmp_path: Path) -> None:
    file = tmp_path / "lightship.yml"
    file.write_text(STAGES)

    def names(*only: str) -> tuple[str, ...]:
        return load_context(None, file, lambda _: None, stage="production", only=only).names

    assert names() == ("web1", "web2")
    assert names("web2") == ("web2",)
    assert names("web2", "web1") == ("web1", "web2")
    with pytest.raises(UsageError) as caught:
        names("web3")
    assert caught.value.code == "server"
