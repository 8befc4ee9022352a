"""The credentials of an https address: git gets in with them, and no argument of any process ever holds them.

A small git server on loopback, with TLS under a certificate authority of the test's own, asks for a password.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import http.server
import os
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightship.config.repository import Repository
from lightship.config.rules import RuleError
from lightship.errors import RefusedError
from lightship.source.mirror import SourceMirror
from lightship.source.remote import Resolved, credential_environment, ls_remote_command, resolve
from lightship_agent import git, gitcommand
from lightship_agent.credentials import access
from lightship_agent.errors import ProtocolError, Refused
from lightship_agent.paths import ServicePaths
from support.processes import ArgumentWatch
from support.repo import Repository as Repo
from support.repo import git as run_git

USER, PASSWORD = "deploy", "t0k3n-geheim+/%"
QUOTED = "t0k3n-geheim+%2F%25"


class Handler(http.server.SimpleHTTPRequestHandler):
    """A repository's files for whoever knows the password, each after a while in which git's processes can be seen."""

    def do_GET(self) -> None:
        wanted = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if self.headers.get("Authorization") != wanted:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="git"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        time.sleep(0.05)
        super().do_GET()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, Path]]:
    """The server's address without scheme and credentials, the commit there, and the authority's certificate."""
    folder = tmp_path_factory.mktemp("git-server")
    repository = Repo(folder)
    commit = repository.commit("first", {"a.txt": "a"})
    run_git(repository.remote, "update-server-info")
    key, certificate = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out",
         str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    handler = functools.partial(Handler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"localhost:{server.server_port}/remote.git", commit, certificate
    server.shutdown()
    server.server_close()
    thread.join()


def mirror(tmp_path: Path, certificate: Path) -> git.Mirror:
    paths = ServicePaths(tmp_path, "shop")
    paths.state.mkdir(parents=True)
    environment = {**os.environ, "GIT_SSL_CAINFO": str(certificate), "HOME": str(tmp_path)}
    return git.Mirror(paths, base_env=environment)


def test_the_server_fetches_without_a_password_in_any_argument(served: tuple[str, str, Path], tmp_path: Path) -> None:
    address, commit, certificate = served
    store = tmp_path / "stored"
    (tmp_path / ".gitconfig").write_text(f"[credential]\n\thelper = store --file={store}\n")
    url = f"https://{USER}:{QUOTED}@{address}"
    with ArgumentWatch(PASSWORD, QUOTED, USER + ":", also=("git-remote-http",)) as watch:
        assert mirror(tmp_path, certificate).fetch(url, "main") == commit
    assert watch.also_seen, "the watch did not see git's own program for https at work"
    assert watch.found == []
    assert not store.exists(), "another helper was told the password"
    assert not [one for one in tmp_path.rglob("*") if one.is_file() and PASSWORD.encode() in one.read_bytes()]


def test_the_controller_asks_without_a_password_in_any_argument(
    served: tuple[str, str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, commit, certificate = served
    monkeypatch.setenv("GIT_SSL_CAINFO", str(certificate))
    repository = Repository(f"https://{USER}:{QUOTED}@{address}")
    with ArgumentWatch(PASSWORD, QUOTED, USER + ":", also=("git-remote-http",)) as watch:
        assert asyncio.run(resolve(repository, "main")).commit == commit
    assert watch.also_seen
    assert watch.found == []


def test_the_controller_fetches_without_a_password_in_any_argument_or_file(
    served: tuple[str, str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, commit, certificate = served
    store = tmp_path / "stored"
    (tmp_path / ".gitconfig").write_text(f"[credential]\n\thelper = store --file={store}\n")
    monkeypatch.setenv("GIT_SSL_CAINFO", str(certificate))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / ".gitconfig"))
    mirror = SourceMirror(Repository(f"https://{USER}:{QUOTED}@{address}"), folder=tmp_path / "mirrors")
    with ArgumentWatch(PASSWORD, QUOTED, USER + ":", also=("git-remote-http",)) as watch:
        assert asyncio.run(mirror.bring(Resolved("main", commit, "branch")))
    assert watch.also_seen
    assert watch.found == []
    assert not store.exists(), "another helper was told the password"
    assert not [one for one in tmp_path.rglob("*") if one.is_file() and PASSWORD.encode() in one.read_bytes()]
    wrong = SourceMirror(Repository(f"https://{USER}:wr0ng-geheim@{address}"), folder=tmp_path / "others")
    with pytest.raises(RefusedError) as caught:
        asyncio.run(wrong.bring(Resolved("main", commit, "branch")))
    assert "wr0ng" not in str(caught.value.as_dict())


def test_a_wrong_password_is_refused_and_not_shown(
    served: tuple[str, str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, _, certificate = served
    url = f"https://{USER}:wr0ng-geheim@{address}"
    with pytest.raises(Refused) as caught:
        mirror(tmp_path, certificate).fetch(url, "main")
    assert caught.value.code == "git-auth"
    assert "wr0ng" not in str(caught.value.as_dict())
    monkeypatch.setenv("GIT_SSL_CAINFO", str(certificate))
    with pytest.raises(RefusedError) as failed:
        asyncio.run(resolve(Repository(url), "main"))
    assert "wr0ng" not in str(failed.value.as_dict())


def test_a_server_whose_certificate_is_not_known_is_refused(served: tuple[str, str, Path], tmp_path: Path) -> None:
    address, _, _ = served
    paths = ServicePaths(tmp_path, "shop")
    paths.state.mkdir(parents=True)
    with pytest.raises(Refused, match="certificate"):
        git.Mirror(paths, base_env={**os.environ, "HOME": str(tmp_path)}).fetch(f"https://{address}", "main")


def test_no_argument_holds_the_credentials() -> None:
    way = access("https://u:tok3n@git.example:8443/a/b.git")
    command = gitcommand.fetch_command(Path("/m"), way.url, ["+refs/heads/x:refs/y"], settings=way.settings)
    assert "tok3n" not in " ".join(command)
    assert way.url == "https://git.example:8443/a/b.git"
    assert dict(way.env) == {"LIGHTSHIP_GIT_USER": "u", "LIGHTSHIP_GIT_PASSWORD": "tok3n"}
    assert "tok3n" not in repr(way)
    repository = Repository("https://tok3n@git.example/r")
    assert "tok3n" not in " ".join(ls_remote_command(repository, "main"))
    assert credential_environment(repository) == {"LIGHTSHIP_GIT_USER": "tok3n", "LIGHTSHIP_GIT_PASSWORD": ""}
    assert access("ssh://git@git.example/r").url == "ssh://git@git.example/r"


@pytest.mark.parametrize("userinfo", ["u:a%0Ahost=evil.example", "u%0D:a", "u:%00"])
def test_credentials_cannot_say_more_to_git_than_themselves(userinfo: str) -> None:
    with pytest.raises(ProtocolError):
        access(f"https://{userinfo}@git.example/r")
    with pytest.raises(RuleError):
        Repository(f"https://{userinfo}@git.example/r")
