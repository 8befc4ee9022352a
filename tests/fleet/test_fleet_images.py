"""An image comes to several real servers: built on one of them, and to the others from it or from a registry."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.engine import Engine
from support.registry import PASSWORD, USER, Registry, gateway
from support.servers import IMAGE, Fleet, Machine, Servers, all_run
from support.site import Said

# What the servers have, and one small layer over it.
DOCKERFILE = f"FROM {IMAGE}\nCOPY deploy/marker /marker\n"
#: So big is that layer at first: more than goes in one part.
MEGABYTES = 8


@pytest.fixture
def built(engine: Engine, servers: Servers, tmp_path: Path) -> Iterator[Fleet]:
    """A service whose image is built from its repository."""
    files = {"Dockerfile": DOCKERFILE, "deploy/marker": secrets.token_hex(MEGABYTES * 500_000)}
    made = Fleet(
        engine, tmp_path / "site", servers=servers, files=files, settings={"image": {"dockerfile": "Dockerfile"}}
    )
    try:
        yield made
    finally:
        made.close()
        for one in servers.machines:
            one.do(f"docker image ls -q --filter label=lightship.service={made.name} | xargs -r docker image rm -f")


def steps(said: Said) -> dict[str, set[str]]:
    """The steps of each server."""
    return {one["server"]: {step["name"] for step in one["steps"]} for one in said.result["servers"]}


def images(fleet: Fleet) -> list[tuple[str, str]]:
    """What each server's container is made of: name and id."""
    facts = fleet.facts().values()
    return [(one["facts"]["container"]["image"], one["facts"]["container"]["image_id"]) for one in facts]


def another(fleet: Fleet, text: str) -> str:
    """A commit that needs another image."""
    return fleet.repository.commit(f"Marker {text}", {"deploy/marker": text})


def test_without_a_registry_it_is_built_once_and_sent_to_the_others(built: Fleet) -> None:
    first, *others = built.servers.names
    said = built.run("deploy", "--json", "--verbose", expect=0)
    found = steps(said)
    assert "build" in found[first]
    for name in others:
        assert {"send", "load"} <= found[name]
        assert not {"build", "pull", "save"} & found[name]
    sizes = [float(size) for size in re.findall(r"getting the image \(([0-9.]+) MB\)", said.stderr)]
    assert len(sizes) == len(others)
    # Of an image of more than 400 MB only the layer that they lack.
    assert MEGABYTES <= min(sizes) <= max(sizes) < MEGABYTES + 1
    assert len(set(images(built))) == 1
    all_run(built, built.repository.head)
    # What all have is sent to nobody; back to the image before it, all by themselves.
    before = images(built)
    built.configure(env={"COLOUR": "blue"})
    said = built.deploy()
    assert not {"build", "send", "load", "save"} & set().union(*steps(said).values())
    another(built, "two")
    built.deploy()
    assert images(built) != before
    built.run("rollback", "--json", expect=0)
    assert images(built) == before


@pytest.fixture
def registry(engine: Engine, servers: Servers, tmp_path: Path) -> Iterator[Registry]:
    """A registry that the servers reach on their network; they trust it, and are logged in."""
    with Registry.running(engine, tmp_path / "registry", gateway(engine, servers.network)) as made:
        for one in servers.machines:
            one.do(f"mkdir -p /etc/docker/certs.d/{made.host}")
            one.put(f"/etc/docker/certs.d/{made.host}/ca.crt", made.ca.read_text())
            login(one, made)
        try:
            yield made
        finally:
            for one in servers.machines:
                one.do(f"docker logout {made.host}; rm -rf /etc/docker/certs.d/{made.host}", check=False)


def login(machine: Machine, registry: Registry) -> None:
    """Log root in there, as a person does."""
    machine.do(f"echo {PASSWORD} | docker login --username {USER} --password-stdin {registry.host} 2>&1")


def test_with_a_registry_it_is_built_once_pushed_and_pulled_by_digest(built: Fleet, registry: Registry) -> None:
    first, *others = built.servers.names
    built.configure(registry=f"{registry.host}/team")
    said = built.run("deploy", "--json", expect=0, timeout=500)
    found = steps(said)
    assert {"build", "push"} <= found[first]
    for name in others:
        assert "pull" in found[name]
        assert not {"build", "push", "load"} & found[name]
    (digest,) = {name for name, _ in images(built)}
    assert re.fullmatch(rf"{re.escape(registry.host)}/team/{built.name}@sha256:[0-9a-f]{{64}}", digest)
    assert len(registry.tags(f"team/{built.name}")) == 1
    all_run(built, built.repository.head)

    # One that is not logged in gets it from the first, and it is said why.
    last = built.servers.machines[-1]
    last.do(f"docker logout {registry.host}")
    commit = another(built, "two")
    said = built.deploy(timeout=500)
    warnings: dict[str, Any] = {one["server"]: one["warnings"] for one in said.result["servers"]}
    assert f"it is sent from {first} instead" in warnings[last.name][0]
    assert f"docker login {registry.host}" not in warnings[first]
    assert "load" in steps(said)[last.name]
    assert len({identity for _, identity in images(built)}) == 1
    all_run(built, commit)

    # The registry is down: what was built before is deployed anyway, another one is refused and nothing is touched.
    with registry.down():
        built.configure(env={"COLOUR": "blue"})
        assert built.deploy().result["kind"] == "container"
        before = built.fingerprints()
        another(built, "three")
        said = built.deploy(expect=3)
        assert said.error["code"] == "registry-unreachable"
        assert built.fingerprints() == before
