"""The two sides of the protocol are of one mind: what the controller sends is what the agent reads, and back."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from lightship.config.load import parse
from lightship.errors import LightshipError, TransportError, UsageError
from lightship.model import Change, Facts
from lightship.operations.requests import (
    container_args,
    desired_state,
    inspect_args,
    planned_shape,
    prepare_args,
    wanted_image,
)
from lightship.plan import make_plan
from lightship.transport.base import MAX_LINE
from lightship.transport.conversation import PROTOCOL, Conversation
from lightship.transport.local import LocalTransport
from lightship.transport.zipapp import agent_file
from lightship_agent import protocol
from lightship_agent.names import valid_branch, valid_commit, valid_url
from lightship_agent.requests import IMAGE, PrepareRequest

NEW = "b" * 40
TEXT = """
services:
  shop:
    repository: https://git.example/shop.git
    app: shop.wsgi:application
    ports: ["8000:8000"]
    env: {A: "1"}
    options: ["--memory=512m"]
    shared: [media]
    checks: [{name: django, command: [python, manage.py, check]}]
    health: {path: /health/, status: [200, "301-302"]}
    soak: 1.5
"""
SERVICE = parse(TEXT).service()


def prepared(kind: Any) -> tuple[dict[str, Any], PrepareRequest]:
    change = Change(NEW, infra={"Dockerfile": "1"})
    facts = Facts(hostname="h")
    desired = desired_state(SERVICE, change, facts)
    plan = make_plan(planned_shape(SERVICE, desired.fingerprint), facts, change, desired, kind)
    container = container_args(SERVICE, desired, {"A": "1"}) if plan.replaces_container else None
    args = prepare_args(SERVICE, plan, retry=False, why="deploy main", container=container)
    return args, PrepareRequest.parse(args)


def test_both_sides_speak_the_same_protocol() -> None:
    assert PROTOCOL == protocol.VERSION
    assert MAX_LINE == protocol.MAX_LINE


@pytest.mark.parametrize("kind", ["code", "container", "full"])
def test_the_agent_reads_what_prepare_asks(kind: str) -> None:
    args, request = prepared(kind)
    assert (request.commit, request.kind, request.app) == (NEW, kind, "shop.wsgi:application")
    assert request.health is not None
    assert request.health.accepts(301)
    assert not request.health.accepts(404)
    assert [check.name for check in request.checks] == ["django"]
    assert (request.keep, request.soak, request.reload) == (5, 1.5, "swap")
    if kind == "code":
        assert request.container is None
        return
    assert request.container is not None
    assert request.container.fingerprint == args["container"]["fingerprint"]
    assert request.container.settings == args["container"]["settings_digest"]
    assert list(request.container.ports) == ["8000:8000"]
    assert request.env == {"A": "1"}


def test_the_agent_reads_what_inspect_and_build_ask() -> None:
    args = inspect_args(SERVICE, "main", NEW, {"A": "1"})
    assert valid_url(args["repository"])
    assert valid_branch(args["ref"])
    assert valid_commit(args["commit"])
    wanted = wanted_image(SERVICE, NEW, desired_state(SERVICE, Change(NEW), Facts(hostname="h")))
    assert wanted.build is not None
    assert set(wanted.build) == {"commit", "tag", "dockerfile", "context", "args", "labels"}
    assert re.fullmatch(IMAGE, wanted.name)


def ask(root: Path, *requests: tuple[str, dict[str, Any]]) -> list[Any]:
    cache = root / "cache"
    cache.mkdir(mode=0o700)

    async def go() -> list[Any]:
        answers: list[Any] = []
        async with await Conversation.open(LocalTransport(agent_file(cache))) as conversation:
            for op, args in requests:
                try:
                    answers.append(await conversation.call(op, args, timeout=30))
                except LightshipError as error:
                    answers.append(error)
        return answers

    return asyncio.run(go())


def test_the_real_agent_answers_hello_with_facts(tmp_path: Path) -> None:
    hello = {"protocol": PROTOCOL, "service": "shop", "root": str(tmp_path / "srv"), "container": "shop", "lock": False}
    answer, status, bye = ask(tmp_path, ("hello", hello), ("status", {}), ("bye", {}))
    found = Facts.from_json(answer["facts"])
    assert (found.current, found.releases, found.container) == (None, (), None)
    assert Facts.from_json(status).hostname == found.hostname
    assert bye == {}
    assert not (tmp_path / "srv").exists(), "looking changes nothing"


def test_the_real_agent_refuses_another_protocol(tmp_path: Path) -> None:
    (error,) = ask(tmp_path, ("hello", {"protocol": 99, "service": "shop"}))
    assert isinstance(error, UsageError)
    assert error.code == "protocol-version"


WRONG: list[Any] = [
    None,
    [],
    "x",
    {"current": 3},
    {"current": "zz"},
    {"current": "A" * 40},
    {"releases": {}},
    {"releases": [3]},
    {"releases": [{"commit": None}]},
    {"slots": []},
    {"slots": {"0": {"workers": [{"id": "1"}]}}},
    {"slots": {"0": {"running": "yes"}}},
    {"container": "x"},
    {"disk": {"free_bytes": "many"}},
    {"disk": {"free_bytes": True}},
]


@pytest.mark.parametrize("wrong", WRONG, ids=repr)
def test_facts_of_a_wrong_shape_are_named(wrong: Any) -> None:
    with pytest.raises(TransportError, match="facts"):
        Facts.from_json(wrong)
