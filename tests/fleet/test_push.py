"""``source: push``: servers that have no key for the git host and no way to it get the code all the same."""

from __future__ import annotations

import contextlib
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.engine import Engine
from support.repo import git
from support.servers import ROOT, Fleet, Servers, all_run, no_failures
from support.site import Said

NOISE = random.Random(1).randbytes(400_000)
# What a change of one line may cost: a commit, some trees, the difference of a file.
LITTLE = 3000
# Everything of a release: kinds and modes, where links lead, and what is in the files.
DIGEST = (
    "cd {release} && find . -name __pycache__ -prune -o -printf '%y %m %p %l\\n' | sort | sha256sum && "
    "find . -name __pycache__ -prune -o -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum"
)


@pytest.fixture
def pushed(engine: Engine, servers: Servers, tmp_path: Path) -> Iterator[Fleet]:
    """A service whose code is sent, on servers that are not let into the git server."""
    with no_way_to_git(servers):
        made = Fleet(engine, tmp_path / "site", settings={"source": "push"}, servers=servers)
        made.environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")
        try:
            (made.repository.tree / "service" / "link").symlink_to("wsgi.py")
            made.repository.write({"noise": NOISE})
            (made.repository.tree / "noise").chmod(0o755)
            made.repository.commit("with all kinds of files")
            yield made
        finally:
            made.close()


@contextlib.contextmanager
def no_way_to_git(servers: Servers) -> Iterator[None]:
    """The servers have no key, and what they send to the git server is turned away."""
    rule = f"OUTPUT -d {servers.git.address} -j REJECT"
    for one in servers.machines:
        one.do(f"mv /root/.ssh /root/ssh.away; iptables -I {rule}")
    try:
        yield
    finally:
        for one in servers.machines:
            one.do(f"iptables -D {rule}; rm -rf /root/.ssh; mv /root/ssh.away /root/.ssh")


def sent(said: Said) -> dict[str, int | None]:
    """How many bytes of code each server got."""
    return {
        one["server"]: next((step["bytes"] for step in one["steps"] if step["name"] == "push"), None)
        for one in said.result["servers"]
    }


def digests(fleet: Fleet, commit: str) -> set[str]:
    release = f"{ROOT}/{fleet.name}/code/releases/{commit}"
    return {one.do(DIGEST.format(release=release)) for one in fleet.servers.machines}


def test_servers_without_a_way_to_the_git_host_are_deployed_to(pushed: Fleet, tmp_path: Path) -> None:
    fleet, names = pushed, set(pushed.servers.names)
    url = fleet.settings["repository"]
    for one in fleet.servers.machines:
        assert "unreached" in one.do(f"git ls-remote {url} || echo unreached")
    first = fleet.repository.head
    said = fleet.deploy()
    all_run(fleet, first)
    assert min(count or 0 for count in sent(said).values()) > len(NOISE)
    whole = digests(fleet, first)
    assert len(whole) == 1

    assert sent(fleet.deploy()) == dict.fromkeys(names), "what is live already is not sent again"
    with fleet.loads() as loads:
        # A plan sends too, so that it can say what changes; the deploy after it need not.
        second = fleet.change("v2")
        said = fleet.run("plan", expect=0)
        assert "the code is sent from here" in said.stdout
        assert "service/version.py" in said.stdout
        assert sent(fleet.deploy()) == dict.fromkeys(names)
        all_run(fleet, second)

        # One line more costs next to nothing, however large the repository is; history may be another.
        third = fleet.change("v3")
        assert max(count or LITTLE for count in sent(fleet.deploy()).values()) < LITTLE
        all_run(fleet, third)
        git(fleet.repository.tree, "reset", "--quiet", "--hard", first)
        other = fleet.change("v4")
        assert max(count or LITTLE for count in sent(fleet.deploy()).values()) < LITTLE
        all_run(fleet, other)
        fleet.run("rollback", "--json", expect=0)
        all_run(fleet, third)

        # Another controller, which knows nothing yet.
        fleet.environment["XDG_CACHE_HOME"] = str(tmp_path / "another")
        fifth = fleet.change("v5")
        assert max(count or LITTLE for count in sent(fleet.deploy()).values()) < LITTLE
        all_run(fleet, fifth)

        # A controller that is killed while it sends has changed nothing, and the next deploy needs no help.
        before = fleet.fingerprints()
        sixth = fleet.change("v6", files={"more": random.Random(2).randbytes(1_500_000)})
        testing = {"LIGHTSHIP_TESTING": "1", "LIGHTSHIP_FAILPOINTS": "ask.receive=kill@7"}
        assert fleet.deploy(expect=None, environment=testing).status == -signal.SIGKILL
        assert fleet.fingerprints() == before
        said = fleet.deploy()
        assert min(count or 0 for count in sent(said).values()) > 1_500_000
        all_run(fleet, sixth)
        for one in fleet.servers.machines:
            assert not one.do(f"find {ROOT}/{fleet.name}/repo.git -name 'tmp_*' -o -name incoming")
    no_failures(loads)

    checks = fleet.run("doctor", "--json").result["checks"]
    assert [one for one in checks if one["state"] == "wrong"] == []
    assert {one["state"] for one in checks if one["name"] == "git from there"} == {"ok"}


def test_both_ways_end_in_the_same_tree(servers: Servers, pushed: Fleet) -> None:
    commit = pushed.repository.head
    pushed.deploy()
    by_push = digests(pushed, commit)
    for one in servers.machines:
        one.do(f"docker rm --force $(docker ps -aq --filter name={pushed.name}-); rm -rf {ROOT}/{pushed.name}")
        one.do(f"iptables -D OUTPUT -d {servers.git.address} -j REJECT; cp -a /root/ssh.away /root/.ssh")
    pushed.configure(source="pull")
    try:
        assert sent(pushed.deploy()) == dict.fromkeys(servers.names)
        assert digests(pushed, commit) == by_push
        assert len(by_push) == 1
        # And from one way to the other.
        pushed.configure(source="push")
        next_one = pushed.change("v2")
        assert max(count or LITTLE for count in sent(pushed.deploy()).values()) < LITTLE
        all_run(pushed, next_one)
    finally:
        for one in servers.machines:
            one.do(f"iptables -I OUTPUT -d {servers.git.address} -j REJECT")
