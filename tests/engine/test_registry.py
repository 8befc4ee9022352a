"""Images and a real registry: built once, pushed, pulled by digest, and every way in which a registry says no."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.engine import Engine
from support.registry import PASSWORD, Registry, gateway
from support.site import Said, Site

# An image in which nothing runs costs nothing to build, push and pull.
TINY = "FROM scratch\nCOPY deploy /deploy\nCOPY requirements.txt /\n"
BUILDING = ("build.secrets", "build.start", "build.done", "push.start", "push.done")
PULLING = ("image.note", "pull.start", "pull.done")
TOKEN = "a-token-that-nobody-sees"


@pytest.fixture(scope="module")
def registry(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    # Not 127.0.0.1: what is there counts as insecure, and its certificate is not looked at.
    folder = tmp_path_factory.mktemp("registry")
    with Registry.running(engine, folder, gateway(engine, "bridge")) as made:
        yield made


@pytest.fixture
def tiny(engine: Engine, registry: Registry, tmp_path: Path) -> Iterator[Site]:
    """A service whose image is tiny, logged in at the registry. It can be built, and not run."""
    site = Site(
        engine,
        tmp_path / "site",
        files={"Dockerfile": TINY},
        settings={"image": {"dockerfile": "Dockerfile"}, "registry": f"{registry.host}/team"},
        environment=registry.login(tmp_path / "docker"),
    )
    yield site
    site.close()


def build(site: Site, *arguments: str, expect: int = 0, **options: Any) -> Said:
    """`lightship build --json`."""
    return site.run("build", "--json", *arguments, expect=expect, **options)


def done(said: Said) -> tuple[bool, bool]:
    """Whether it was built, and whether it was pushed."""
    return said.result["built"], said.result["pushed"]


def images(site: Site) -> list[str]:
    """The ids of the service's images on this machine."""
    return site.engine.docker("image", "ls", "--quiet", "--filter", f"label=lightship.service={site.name}").split()


def forget_here(site: Site) -> None:
    """Remove them."""
    if found := images(site):
        site.engine.docker("image", "rm", "--force", *set(found))


def new_infrastructure(site: Site, text: str) -> str:
    """A commit that needs another image."""
    return site.repository.commit(f"Infrastructure {text}", {"requirements.txt": f"# {text}\n"})


def leftovers(site: Site) -> list[str]:
    """What a build or a transfer leaves only when it is cut off."""
    return [path.name for path in (site.home / "state").iterdir() if path.name.startswith("build-")]


# --- build, push, pull ------------------------------------------------------------------------------------------------


def test_an_image_is_built_once_pushed_and_never_built_again(tiny: Site, registry: Registry, tmp_path: Path) -> None:
    (tiny.repository.tree / "deploy" / "not-committed").write_text("x")
    said = build(tiny)
    found = said.result
    assert done(said) == (True, True)
    name, tag = f"team/{tiny.name}", found["fingerprint"][:16]
    assert found["image"] == f"{registry.host}/{name}:{tag}"
    assert found["digest"].startswith(f"{registry.host}/{name}@sha256:")
    assert registry.tags(name) == [tag]
    labels = json.loads(tiny.engine.docker("image", "inspect", found["image"]))[0]["Config"]["Labels"]
    assert labels["lightship.fingerprint"] == found["fingerprint"]
    # From a clean tree of the commit: what lies about in the working directory is in no image.
    container = tiny.engine.docker("create", "--label", tiny.engine.label, found["image"], "x")
    tiny.engine.docker("export", "--output", str(tmp_path / "tree.tar"), container)
    tiny.engine.docker("rm", container)
    with tarfile.open(tmp_path / "tree.tar") as tree:
        names = tree.getnames()
    assert "deploy/uwsgi.ini" in names
    assert "deploy/not-committed" not in names
    (tiny.repository.tree / "deploy" / "not-committed").unlink()
    # It is there already; it is in the registry; a commit of code alone needs no other.
    assert done(build(tiny)) == (False, False)
    forget_here(tiny)
    again = build(tiny)
    assert done(again) == (False, False)
    assert (again.result["digest"], again.result["image_id"]) == (found["digest"], found["image_id"])
    tiny.change("v2")
    assert build(tiny).result["digest"] == found["digest"]
    # Nothing was deployed, and the plain words say what was done.
    assert tiny.current is None
    assert tiny.containers() == []
    assert "is there already, nothing to build" in tiny.run("build", expect=0).stdout
    # Deleted from the registry: it is pushed again from here. While that does not answer, it is said.
    registry.forget(name, found["digest"])
    assert done(build(tiny)) == (False, True)
    assert registry.tags(name) == [tag]
    with registry.down():
        said = build(tiny)
    assert done(said) == (False, False)
    assert "cannot be reached" in said.result["warnings"][0]
    # Deleted meanwhile, here and there: it is built once more, since nobody has it.
    forget_here(tiny)
    registry.forget(name, found["digest"])
    assert done(build(tiny)) == (True, True)
    assert not leftovers(tiny)


def test_a_registry_that_says_no_is_told_as_what_it_is(tiny: Site, registry: Registry, tmp_path: Path) -> None:
    def with_login(**environment: str) -> Callable[[], Said]:
        return lambda: build(tiny, expect=3, environment=environment)

    def distrusted() -> Said:
        registry.distrust()
        try:
            return build(tiny, expect=3)
        finally:
            registry.trust()

    def down() -> Said:
        with registry.down():
            return build(tiny, expect=3)

    (tmp_path / "nobody").mkdir()
    cases = {
        "wrong password": (
            with_login(**registry.login(tmp_path / "wrong", "wrong")),
            "registry-denied",
            "docker login",
        ),
        "no login": (with_login(DOCKER_CONFIG=str(tmp_path / "nobody")), "registry-denied", f"login {registry.host}"),
        "unknown CA": (distrusted, "registry-certificate", f"/etc/docker/certs.d/{registry.host}/ca.crt"),
        "down": (down, "registry-unreachable", f"curl https://{registry.host}/v2/"),
    }
    for case, (work, code, hint) in cases.items():
        said = work()
        assert said.error["code"] == code, (case, said.shown)
        assert registry.host in said.error["message"], case
        assert hint in said.error["hint"], case
        assert "Error response from daemon" not in said.error["message"], case
        # Nothing was built for a registry that does not take it.
        assert images(tiny) == [], case
    assert done(build(tiny)) == (True, True)


def test_a_layer_that_was_damaged_in_the_registry_is_not_used(tiny: Site, registry: Registry) -> None:
    # With the old builder, which keeps no layer of an image that is gone: what is here already is not pulled.
    found = build(tiny, environment={"DOCKER_BUILDKIT": "0"}).result
    forget_here(tiny)
    registry.damage(registry.layers(f"team/{tiny.name}", found["fingerprint"][:16])[-1])
    said = build(tiny, expect=3)
    assert said.error["code"] == "image-corrupt", said.shown
    assert "damaged" in said.error["message"]
    assert "delete the image from the registry" in said.error["hint"]
    assert images(tiny) == []


def test_an_image_that_was_built_and_not_pushed_is_pushed_by_the_next_command(tiny: Site, registry: Registry) -> None:
    killed = {"LIGHTSHIP_TESTING": "1", "LIGHTSHIP_FAILPOINTS": "push.start=kill"}
    build(tiny, expect=3, environment=killed)
    said = build(tiny)
    assert done(said) == (False, True)
    assert registry.tags(f"team/{tiny.name}") == [said.result["fingerprint"][:16]]


def test_a_kill_at_any_side_effect_leaves_nothing_and_the_next_build_needs_no_help(
    tiny: Site, registry: Registry, tmp_path: Path
) -> None:
    tiny.configure(image={"dockerfile": "Dockerfile", "secrets": {"TOKEN": {"env": "TOKEN"}}})
    log = tmp_path / "points"
    for number, point in enumerate((*BUILDING, *PULLING)):
        new_infrastructure(tiny, f"{number}")
        if point in PULLING:
            build(tiny, environment={"TOKEN": TOKEN})
            forget_here(tiny)
        log.unlink(missing_ok=True)
        testing = {"TOKEN": TOKEN, "LIGHTSHIP_TESTING": "1", "LIGHTSHIP_FAILPOINTS_LOG": str(log)}
        said = build(tiny, expect=3, environment={**testing, "LIGHTSHIP_FAILPOINTS": f"{point}=kill"})
        assert said.error["code"] == "transport", said.shown
        assert log.read_text().split()[-1] == point
        if point == "build.start":
            (secret,) = (tiny.home / "state").glob("build-*/TOKEN")
            assert (secret.stat().st_mode & 0o777, secret.read_text()) == (0o600, TOKEN)
            assert secret.parent.stat().st_mode & 0o777 == 0o700
        said = build(tiny, environment={"TOKEN": TOKEN})
        assert said.result["digest"], point
        assert not leftovers(tiny), point
    assert len(registry.tags(f"team/{tiny.name}")) == len(BUILDING + PULLING)


def test_secrets_of_a_build_reach_no_layer_no_output_and_no_argument(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "pip.conf").write_text(f"[global]\npassword = {TOKEN}\n")
    (tmp_path / "pip.conf").chmod(0o600)
    # Never the same twice, or the builder has it in its cache: a secret's value is no part of what it goes by.
    seen_by = f"cat /run/secrets/CONF && cat /proc/*/cmdline >/seen || true; : {engine.name()}"
    wanted = f"RUN --mount=type=secret,id=CONF {seen_by}"
    dockerfile = f"ARG BASE_IMAGE\nFROM ${{BASE_IMAGE}}\n{wanted}\n"
    image = {
        "dockerfile": "Dockerfile",
        "args": {"BASE_IMAGE": engine.base_image},
        "secrets": {"CONF": {"file": str(tmp_path / "pip.conf")}},
    }
    site = Site(engine, tmp_path / "site", files={"Dockerfile": dockerfile}, settings={"image": image})
    try:
        # An engine that cannot use them says so, before anything is built.
        said = build(site, expect=3, environment={"DOCKER_BUILDKIT": "0"})
        assert said.error["code"] == "no-buildkit"
        assert "buildx" in said.error["hint"]
        said = site.run("build", "--json", "--verbose", expect=0)
        assert "***" in said.stderr, "the build did see it"
        assert TOKEN not in said.stdout + said.stderr
        found = said.result
        assert (found["built"], found["digest"]) == (True, "")
        inspected = engine.docker("image", "inspect", found["image"])
        history = engine.docker("history", "--no-trunc", found["image"])
        seen = engine.docker("run", "--rm", "--label", engine.label, found["image"], "cat", "/seen")
        assert TOKEN not in inspected + history + seen
        assert not leftovers(site)
    finally:
        site.close()
        forget_here(site)


# --- deploys ----------------------------------------------------------------------------------------------------------


def serving(site: Site) -> tuple[str, str]:
    """Name and id of the image that serves."""
    name, identity = site.engine.docker("inspect", "--format", "{{.Config.Image}} {{.Image}}", site.container()).split()
    return name, identity


def untouched(site: Site) -> dict[str, Any]:
    """What a deploy that is refused leaves as it is: all but what it has looked up."""
    found = site.snapshot()
    found["files"] = {name: file for name, file in found["files"].items() if name.startswith("code/")}
    return found


@pytest.mark.timeout(600)
def test_deploys_with_a_registry_and_without_one_that_answers(
    engine: Engine, registry: Registry, tmp_path: Path
) -> None:
    site = Site(
        engine,
        tmp_path / "site",
        settings={"registry": f"{registry.host}/team"},
        environment=registry.login(tmp_path / "docker"),
    )
    try:
        said = site.deploy(timeout=500)
        first = serving(site)
        assert first[0].startswith(f"{registry.host}/team/{site.name}@sha256:")
        assert PASSWORD not in said.stdout + said.stderr
        again = new_infrastructure(site, "two")
        before = untouched(site)
        with registry.down():
            # Another image cannot be had: what serves is not touched, and nothing is left.
            said = site.deploy(expect=3)
            assert said.error["code"] == "registry-unreachable", said.shown
            assert untouched(site) == before
            assert not leftovers(site)
            # The one that is there is as good as ever: for a container deploy as for a rollback.
            site.configure(env={"COLOUR": "blue"})
            site.repository.commit("As before", {"requirements.txt": "# nothing but uWSGI\n"})
            assert site.deploy().result["kind"] in ("container", "full")
            assert serving(site) == first
        denied = registry.login(tmp_path / "wrong", "wrong")
        before = untouched(site)
        said = site.deploy("--commit", again, expect=3, environment=denied)
        assert said.error["code"] == "registry-denied", said.shown
        assert untouched(site) == before
        assert site.deploy("--commit", again, timeout=500).result["outcome"] == "done"
        second = serving(site)
        assert second[1] != first[1]
        # Back to the other image with the registry down, as if it had never been there.
        with registry.down():
            said = site.run("rollback", "--json", expect=0)
        assert said.result["kind"] == "container"
        assert serving(site) == first
        assert site.run("status", "--json", expect=0).result["drift"] == []
        # Somebody removed the other one here: no registry is asked behind anybody's back, and nothing is touched.
        engine.docker("image", "rm", "--force", second[1])
        before = untouched(site)
        said = site.run("rollback", "--to", again, "--json", expect=3)
        assert said.error["code"] == "image-missing", said.shown
        assert "--kind container" in said.error["hint"]
        assert untouched(site) == before
    finally:
        site.close()
        forget_here(site)


@pytest.mark.timeout(600)
def test_an_image_that_is_built_elsewhere_is_pinned_by_what_its_name_stood_for(
    engine: Engine, registry: Registry, tmp_path: Path
) -> None:
    """A hosted registry builds it: the name stays, what it stands for moves."""
    environment = registry.login(tmp_path / "docker")
    name = f"{registry.host}/hosted/site:latest"

    def hosted(folder: Path, text: str) -> str:
        """Build and push another image under that name; its digest."""
        (folder / "deploy" / "marker").write_text(text)
        dockerfile = (folder / "Dockerfile").read_text()
        if "marker" not in dockerfile:
            (folder / "Dockerfile").write_text(f"{dockerfile}\nCOPY deploy/marker /marker\n")
        engine.build(folder, name)
        subprocess.run(["docker", "push", name], env={**os.environ, **environment}, check=True, timeout=500)
        digest = engine.docker("image", "inspect", "--format", "{{index .RepoDigests 0}}", name)
        engine.docker("image", "rm", name)
        return digest

    site = Site(engine, tmp_path / "site", environment=environment)
    try:
        site.configure(image=name, keep=3)
        said = site.deploy(expect=3)
        assert said.error["code"] == "image-not-found", said.shown
        folder = tmp_path / "hosted"
        subprocess.run(["git", "clone", "--quiet", str(site.repository.remote), str(folder)], check=True)
        first = hosted(folder, "one")
        site.deploy("--retry", timeout=500)
        assert serving(site)[0] == first
        image = serving(site)[1]
        second = hosted(folder, "two")
        assert site.deploy().result["kind"] == "nothing", "nobody asks the registry at every deploy"
        site.change("v2")
        site.deploy("--kind", "full")
        assert serving(site)[0] == second
        assert serving(site)[1] != image
        # Deleted from the registry meanwhile: what was pinned is here, and kept for as long as its release is.
        registry.forget("hosted/site", first)
        said = site.run("rollback", "--json", expect=0)
        assert (said.result["kind"], serving(site)) == ("container", (first, image))
        with registry.down():
            said = site.deploy("--kind", "container")
            assert any("is used" in text for text in said.result["servers"][0]["warnings"]), said.shown
        # Past retention it goes, and so does its image.
        for version in ("v3", "v4", "v5", "v6"):
            site.change(version)
            site.deploy(*(["--kind", "full"] if version == "v3" else []))
        site.deploy("--kind", "container")
        assert serving(site)[0] == second
        assert image not in engine.docker("image", "ls", "--all", "--quiet", "--no-trunc").split()
    finally:
        site.close()
        shown = engine.docker("image", "ls", "--quiet", "--filter", f"reference={registry.host}/hosted/site")
        if shown:
            engine.docker("image", "rm", "--force", *set(shown.split()), check=False)
