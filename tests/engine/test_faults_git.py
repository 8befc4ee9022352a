"""The git server is away, slow, or says something else than a moment ago: told clearly, and nothing is changed."""

from __future__ import annotations

import contextlib
import http.server
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lightship_agent.errors import Refused
from lightship_agent.git import Mirror
from lightship_agent.gitcommand import MANY_PACKS
from lightship_agent.paths import ServicePaths
from support.engine import Engine
from support.promises import refused, settled, unchanged, works
from support.repo import ENVIRONMENT, Repository, git
from support.site import Site


@pytest.fixture(scope="module")
def site(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(engine, tmp_path_factory.mktemp("git"))
    try:
        made.deploy()
        yield made
    finally:
        made.close()


class Proxy:
    """Stands in front of a git server, and lets through as much as a test wants: all of it, slowly, or only so much."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.limit: int | None = None
        self.cuts = False
        self.pause = 0.0
        self.passed = 0
        self.stalled = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                return
            self._open += [client, server]
            threading.Thread(target=self._carry, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._carry, args=(server, client, True), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        try:
            while data := source.recv(2048):
                if counted:
                    allowed = len(data) if self.limit is None else max(self.limit - self.passed, 0)
                    self.passed += len(data)
                    if allowed < len(data):
                        sink.sendall(data[:allowed])
                        self.stalled.set()
                        if self.cuts:
                            self.cut()
                        return  # else the connection stays open, and nothing more comes
                    time.sleep(self.pause)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self) -> None:
        """Refuse all connections from now on, and end those that are open."""
        for one in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def cut(self) -> None:
        """End the connections that are open."""
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


class GitServer(http.server.ThreadingHTTPServer):
    """A real git server: git's own http-backend, as web servers run it."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        super().__init__(("127.0.0.1", 0), GitHandler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *_: object) -> None:
        """Clients that are cut off are what these tests are about."""


class GitHandler(http.server.BaseHTTPRequestHandler):
    """One request: to git http-backend, and its answer back."""

    server: GitServer

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        told = {
            "GIT_PROJECT_ROOT": str(self.server.folder),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        environment = {**os.environ, **ENVIRONMENT, **told}
        done = subprocess.run(["git", "http-backend"], input=body, capture_output=True, env=environment, check=False)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        lines = [line.partition(": ") for line in head.decode().split("\r\n")]
        status = next((value for name, _, value in lines if name == "Status"), "200 OK")
        self.send_response(int(status.split()[0]))
        for name, _, value in lines:
            if name != "Status":
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(content)

    do_POST = do_GET  # noqa: N815 - the base class asks for these names

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def git_server(folder: Path) -> Iterator[int]:
    """The repositories of a folder on a git server of their own: its port."""
    server = GitServer(folder)
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def served(site: Site) -> Iterator[int]:
    """The site's repository on a git server of its own: its port."""
    with git_server(site.repository.remote.parent) as port:
        yield port
    site.configure(repository=str(site.repository.remote))


def at(site: Site, port: int) -> None:
    """The service's repository is reached over this port."""
    site.configure(repository=f"http://127.0.0.1:{port}/{site.repository.remote.name}")


def free_lock(site: Site) -> None:
    """Nobody holds the lock: a rollback to what is live has it at once, and changes nothing."""
    said = site.run("rollback", "--to", str(site.current), "--json", expect=0)
    assert said.result["outcome"] == "nothing"


def test_a_repository_that_is_gone_is_told_and_a_rollback_needs_none(site: Site) -> None:
    first = settled(site)
    works(site)
    gone = site.repository.remote.with_name("gone.git")
    site.repository.remote.rename(gone)
    try:
        with unchanged(site):
            said = site.deploy(expect=None)
            assert said.status == 3
            assert said.error["code"].startswith("git-")
            assert "remote.git" in said.error["message"]
            assert said.error["hint"]
            free_lock(site)
        with site.load() as load:
            site.run("rollback", expect=0)
            assert load.wait_for(first)
        assert not load.report.failed
        assert site.run("status", "--json").result["servers"][0]["on_disk"] == first
    finally:
        gone.rename(site.repository.remote)
    works(site)


def test_a_port_that_is_closed_is_told_at_once(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    at(site, port)
    try:
        site.change("unreachable")
        with unchanged(site):
            said = site.deploy(expect=None)
            assert said.status == 3
            assert said.error["code"] in ("git-unreachable", "git-remote")
            assert said.seconds < 10
    finally:
        site.configure(repository=str(site.repository.remote))
    works(site)


def test_a_slow_git_server_is_waited_for(site: Site, served: int) -> None:
    proxy = Proxy(served)
    proxy.pause = 0.15
    try:
        at(site, proxy.port)
        files = {"data/blob.bin": os.urandom(40_000)}
        slow = site.change("slowly", files)
        with site.load() as load:
            said = site.deploy()
            assert load.wait_for(slow)
        assert said.seconds > 2
        assert not load.report.failed
    finally:
        proxy.close()


@pytest.mark.parametrize("passed", [0, 200, 20_000])
def test_a_git_server_that_falls_silent_is_given_up(site: Site, served: int, passed: int) -> None:
    """Before its first word, after the list of branches, and in the middle of the objects."""
    proxy = Proxy(served)
    patience = {"GIT_HTTP_LOW_SPEED_LIMIT": "1000", "GIT_HTTP_LOW_SPEED_TIME": "3"}
    try:
        at(site, proxy.port)
        site.change(f"silent{passed}", {"data/more.bin": os.urandom(200_000)})
        with unchanged(site):
            proxy.limit = passed
            said = site.deploy(expect=None, environment=patience)
            assert proxy.stalled.is_set()
            # Asked by the command itself, or by the agent on the server.
            refused(site, said, "git-unreachable" if passed > 1000 else "git-remote")
            assert said.seconds < 20
            assert "127.0.0.1" in said.error["message"]
        proxy.limit = None
        free_lock(site)
        assert not leftovers(site)
        works(site)
    finally:
        proxy.close()


def test_a_connection_that_is_cut_in_the_middle_is_told(site: Site, served: int) -> None:
    proxy = Proxy(served)
    running = None
    try:
        at(site, proxy.port)
        site.change("cut", {"data/cut.bin": os.urandom(400_000)})
        proxy.limit = 20_000
        with unchanged(site):
            running = site.start("deploy", "--json")
            assert proxy.stalled.wait(20)
            proxy.cut()
            out, _ = running.communicate(timeout=60)
            assert running.returncode == 3, out
            assert '"git-unreachable"' in out
    finally:
        if running is not None:
            running.kill()
            running.communicate()
        proxy.close()
        site.configure(repository=str(site.repository.remote))
    works(site)


def test_a_connection_may_be_cut_at_any_byte_and_is_told_as_cut(tmp_path: Path) -> None:
    """In a header, among the branches, in the head of the pack or its objects: git has words of its own for each."""
    repository = Repository(tmp_path / "origin")
    repository.commit("big", {"data/big.bin": os.urandom(60_000)})
    with git_server(repository.remote.parent) as port:
        whole = through(Proxy(port), repository, tmp_path / "whole")
        assert whole.told is None
        assert whole.passed > 60_000
        told = {}
        for place in (*range(1, 1200, 37), *range(1200, whole.passed - 100, whole.passed // 60)):
            proxy = Proxy(port)
            proxy.limit, proxy.cuts = place, True
            told[place] = through(proxy, repository, tmp_path / str(place)).told
        assert set(told.values()) == {"git-unreachable"}, told


@dataclass(frozen=True)
class Fetched:
    """What a fetch into an empty mirror said (the code of its refusal), and how many bytes of answers it had."""

    told: str | None
    passed: int


def through(proxy: Proxy, repository: Repository, home: Path) -> Fetched:
    """Fetch by the agent's own mirror."""
    mirror = Mirror(ServicePaths(home, "demo"), timeout=10)
    try:
        mirror.fetch(f"http://127.0.0.1:{proxy.port}/{repository.remote.name}", "main")
    except Refused as refusal:
        return Fetched(refusal.code, proxy.passed)
    finally:
        proxy.close()
    return Fetched(None, proxy.passed)


def test_a_branch_that_was_deleted_is_told_and_what_is_live_stays(site: Site) -> None:
    settled(site)
    site.repository.commit("to a branch", push=False)
    git(site.repository.tree, "push", "--quiet", "origin", "HEAD:refs/heads/short-lived")
    git(site.repository.remote, "update-ref", "-d", "refs/heads/short-lived")
    site.configure(branch="short-lived")
    try:
        with unchanged(site):
            refused(site, site.deploy(expect=None), "no-such-ref", status=2)
    finally:
        site.configure(branch="main")
    works(site)


def test_a_push_by_force_in_the_middle_deploys_one_of_the_two_and_then_the_other(site: Site) -> None:
    """The commit that the branch named at first is what is deployed, even when no branch holds it any more."""
    base = settled(site)
    old = site.change("rewritten")
    running = site.start("deploy", "--json", environment={"LIGHTSHIP_TESTING": "1", "LIGHTSHIP_FAILPOINTS": ""})
    git(site.repository.tree, "reset", "--quiet", "--hard", base)
    new = site.change("other")
    out, err = running.communicate(timeout=120)
    assert running.returncode in (0, 3), (out, err)
    assert site.current in ((old, new) if running.returncode == 0 else (base,))
    assert site.get()[2] == site.current
    site.deploy()
    assert site.current == new


def test_a_history_that_was_rewritten_is_deployed_and_the_plan_says_so(site: Site) -> None:
    base = settled(site)
    site.change("one")
    site.deploy()
    git(site.repository.tree, "reset", "--quiet", "--hard", base)
    new = site.change("another")
    plan = site.run("plan", "--json", expect=0).result
    assert plan["servers"][0]["plan"]["change"]["ahead"] is False if "servers" in plan else True
    with site.load() as load:
        site.deploy()
        assert load.wait_for(new)
    assert not load.report.failed


def test_a_commit_with_a_submodule_is_refused_with_its_path_and_a_way_out(site: Site) -> None:
    settled(site)
    tree, base = site.repository.tree, site.repository.head
    (tree / ".gitmodules").write_text('[submodule "lib"]\n\tpath = vendor/lib\n\turl = ../lib.git\n')
    git(tree, "update-index", "--add", "--cacheinfo", f"160000,{base},vendor/lib")
    git(tree, "add", ".gitmodules")
    git(tree, "commit", "--quiet", "--no-gpg-sign", "-m", "a submodule")
    site.repository.push()
    with unchanged(site):
        said = site.deploy(expect=None)
        refused(site, said, "submodule")
        assert "vendor/lib" in said.error["message"]
        assert "subtree" in said.error["hint"]
        refused(site, site.deploy(expect=None), "submodule")
    git(tree, "reset", "--quiet", "--hard", base)
    (tree / ".gitmodules").unlink(missing_ok=True)
    works(site)


def leftovers(site: Site) -> list[str]:
    """Git processes that still work on the mirror, and locks in it."""
    sign = f"--git-dir={site.home / 'repo.git'}"
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if sign in (entry / "cmdline").read_bytes().decode(errors="replace").split("\0"):
                    found.append(entry.name)
            except OSError:
                continue
    return found + [str(path) for path in (site.home / "repo.git").rglob("*.lock")]


def test_the_mirror_does_not_grow_without_end_and_a_kill_while_it_is_packed_costs_nothing(site: Site) -> None:
    settled(site)
    mirror = Mirror(ServicePaths.at(str(site.root), site.name))
    packs = site.home / "repo.git" / "objects" / "pack"
    while len(list(packs.glob("*.pack"))) <= MANY_PACKS:
        site.repository.commit("one more", {"count.txt": str(time.monotonic_ns())})
        mirror.fetch(str(site.repository.remote), "main")
    commit = site.change("united")
    # The controller too, when it asks again: with each agent killed there it would keep trying for a minute.
    killed = {"LIGHTSHIP_TESTING": "1", "LIGHTSHIP_FAILPOINTS": "mirror.maintain=kill,ask.hello=kill@2"}
    site.run("deploy", environment=killed)
    assert site.current == commit and len(list(packs.glob("*.pack"))) > MANY_PACKS
    works(site)
    assert len(list(packs.glob("*.pack"))) <= MANY_PACKS / 2
    assert not list(packs.glob("tmp_*"))
