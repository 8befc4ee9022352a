"""``lightship doctor`` on a service that really runs on this machine, as it should and broken on purpose."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.engine import Engine
from support.site import Site


@pytest.fixture(scope="module")
def site(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(engine, tmp_path_factory.mktemp("doctor") / "site")
    try:
        made.deploy()
        yield made
    finally:
        made.close()


def states(site: Site) -> dict[str, str]:
    said = site.run("doctor", "--json")
    found = {one["name"]: one["state"] for one in said.result["checks"]}
    assert said.status == (5 if "wrong" in found.values() else 0), said.result
    return found


def test_what_runs_well_is_found_well_and_what_is_broken_is_found(site: Site, tmp_path: Path) -> None:
    names = ("git host", "git from there", "docker", "engine", "container", "workers", "rollout", "ports", "health")
    found = states(site)
    assert {name: found[name] for name in names} == dict.fromkeys(names, "ok")

    site.configure(health={"path": "/not-there", "status": [299]}, secrets={"GONE": {"file": str(tmp_path / "gone")}})
    found = states(site)
    assert (found["health"], found["secret GONE"], found["container"]) == ("wrong", "wrong", "ok")

    site.configure(branch="never-pushed")
    found = states(site)
    assert (found["branch"], found["git from there"]) == ("wrong", "wrong")

    site.configure()
    site.engine.docker("stop", "--time", "2", site.container())
    found = states(site)
    assert (found["container"], found["health"]) == ("wrong", "unknown")
