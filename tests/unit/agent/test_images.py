"""Building, registries and archives on the server, as far as no engine is needed."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from lightship_agent.archive import give
from lightship_agent.builder import Build, Builder, build_command, find_builder, said
from lightship_agent.registry import digest_of, host_of, registry_failure, repository_of
from lightship_agent.system import Completed

HOST = "registry.example"
IMAGE = f"{HOST}/team/shop:1"


def completed(status: int = 0, out: str = "", err: str = "") -> Completed:
    return Completed(("docker",), status, out.encode(), err.encode(), 0.1)


# --- builders ---------------------------------------------------------------------------------------------------------


class Clients:
    """docker commands in folders of their own: version of the client, and whether it has buildx."""

    def __init__(self, folder: Path, *clients: tuple[str, bool], api: str = "1.41", system: str = "linux") -> None:
        self.found = {}
        self.answer = f"{api} {system}"
        for number, (version, buildx) in enumerate(clients):
            program = folder / str(number) / "docker"
            program.parent.mkdir()
            program.write_text("#!/bin/sh\n")
            program.chmod(0o755)
            self.found[str(program)] = (version, buildx)
        self.path = ":".join(str(Path(name).parent) for name in self.found)

    def run(self, argv: Sequence[str], **_: object) -> Completed:
        version, buildx = self.found.get(argv[0], ("", False))
        if argv[1] == "version":
            return completed(0, f"{version} {self.answer}\n") if version else completed(1)
        return completed(0, "github.com/docker/buildx v0.12") if buildx else completed(1, err="unknown command")

    def chosen(self, **environment: str) -> Builder:
        return find_builder(self.run, {"PATH": self.path, **environment})


def test_a_client_that_can_use_buildkit_is_looked_for(tmp_path: Path) -> None:
    def clients(name: str, *wanted: tuple[str, bool], **options: str) -> Clients:
        (tmp_path / name).mkdir()
        return Clients(tmp_path / name, *wanted, **options)

    old = clients("old", ("20.10.24+dfsg1", False))
    assert old.chosen() == Builder((next(iter(old.found)), "build"), True)
    # A newer client without the plugin stands first on the path.
    both = clients("both", ("28.2.2", False), ("20.10.24+dfsg1", False))
    assert both.chosen().words == (list(both.found)[1], "build")
    new = clients("new", ("28.2.2", True))
    assert new.chosen().words[1:] == ("buildx", "build", "--builder", "default", "--load")
    assert not clients("none", ("28.2.2", False)).chosen().buildkit
    assert not clients("ancient", ("18.06.1", False), api="1.38").chosen().buildkit
    assert not clients("windows", ("20.10.1", False), system="windows").chosen().buildkit
    assert not old.chosen(DOCKER_BUILDKIT="0").buildkit, "who asks for the other one gets it"


def test_a_build_names_files_and_never_values(tmp_path: Path) -> None:
    build = Build("x:1", "deploy/Dockerfile", "src", {"A": "b"}, {"l": "m"}, tmp_path, {"TOKEN": Path("/s/TOKEN")})
    words = build_command(Builder(("docker", "build"), True), build)
    assert words[-2:] == ["--", f"{tmp_path}/src"]
    assert words[words.index("--secret") + 1] == "id=TOKEN,src=/s/TOKEN"
    # The Dockerfile is named from the top of the repository, whatever the build may copy from.
    assert words[words.index("--file") + 1] == f"{tmp_path}/deploy/Dockerfile"
    assert "--cpu-shares" not in words
    assert "--cpu-shares" in build_command(Builder(), build)
    assert Builder(("docker",), True).environment({"A": "b"}) == {"A": "b", "DOCKER_BUILDKIT": "1"}


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("#5 [2/2] RUN pip install -r requirements.txt", "[2/2] RUN pip install -r requirements.txt"),
        ("#5 0.456 Collecting django", "Collecting django"),
        ("#5 12.1 ", ""),
        ("#5 CACHED", "CACHED"),
        ("#5 sha256:2c8fb039db35717d5b167bdeb13957c35ebe4f9dae6bfac965dfab65b15be124", None),
        ("#5 DONE 0.5s", None),
        ("", None),
        ("Step 1/2 : FROM x", "Step 1/2 : FROM x"),
    ],
)
def test_a_build_is_shown_without_its_counters(line: str, shown: str | None) -> None:
    assert said(line) == shown


# --- registries -------------------------------------------------------------------------------------------------------

# As Docker 20.10 and registry 2.8 say it, and others that are known.
REFUSALS = [
    (f'Get "https://{HOST}/v2/": x509: certificate signed by unknown authority', "registry-certificate"),
    (f'Get "https://{HOST}/v2/": http: server gave HTTP response to HTTPS client', "registry-certificate"),
    (f'Head "https://{HOST}/v2/team/shop/manifests/1": no basic auth credentials', "registry-denied"),
    ("unauthorized: authentication required", "registry-denied"),
    ("no basic auth credentials", "registry-denied"),
    (
        "pull access denied for shop, repository does not exist or may require 'docker login': denied: requested "
        "access to the resource is denied",
        "registry-denied",
    ),
    ('error getting credentials - err: exec: "docker-credential-pass": executable file not found', "registry-denied"),
    (f"manifest for {IMAGE} not found: manifest unknown: manifest unknown", "image-not-found"),
    ("name unknown: repository name not known to registry", "image-not-found"),
    (f'Get "https://{HOST}/v2/": dial tcp 10.0.0.1:443: connect: connection refused', "registry-unreachable"),
    (f'Get "https://{HOST}/v2/": dial tcp: lookup {HOST} on 10.0.0.1:53: no such host', "registry-unreachable"),
    (f'Get "https://{HOST}/v2/": net/http: request canceled (Client.Timeout exceeded)', "registry-unreachable"),
    ("received unexpected HTTP status: 502 Bad Gateway", "registry-unreachable"),
    (f"filesystem layer verification failed for digest sha256:{'1' * 64}", "image-corrupt"),
    ("unknown blob", "image-corrupt"),
    ("failed to register layer: unexpected EOF", "image-corrupt"),
    ("write /var/lib/docker/tmp/x: no space left on device", "docker-failed"),
    ("something that nobody foresaw", "docker-failed"),
]


@pytest.mark.parametrize(("words", "code"), REFUSALS)
def test_each_refusal_of_a_registry_is_told_with_what_to_do(words: str, code: str) -> None:
    failure = registry_failure("pull the image", IMAGE, completed(1, err=f"Error response from daemon: {words}\n"))
    assert failure.code == code
    assert failure.message.startswith(f"could not pull the image {IMAGE}")
    assert words[:60] in failure.message
    assert "Error response from daemon" not in failure.message
    assert HOST in failure.hint or code in ("docker-failed", "image-not-found", "image-corrupt")
    assert failure.hint or code == "docker-failed"
    assert "{" not in failure.hint


def test_names_of_images_are_taken_apart() -> None:
    assert [host_of(name) for name in ("shop:1", "team/shop:1", "r.example/x:1", "r:5000/x", "localhost/x")] == [
        "docker.io", "docker.io", "r.example", "r:5000", "localhost",
    ]  # fmt: skip
    for name in (
        "r:5000/team/shop",
        "r:5000/team/shop:1",
        "r:5000/team/shop:1@sha256:aa",
        "r:5000/team/shop@sha256:aa",
    ):
        assert repository_of(name) == "r:5000/team/shop"
    for name in ("shop:1", "docker.io/library/shop:1", "docker.io/shop@sha256:aa"):
        assert repository_of(name) == "shop"
    assert repository_of("docker.io/team/shop:1") == "team/shop"
    digest = "sha256:" + "a" * 64
    assert digest_of(completed(out=f"x: Pulling\nDigest: {digest}\nStatus: done")) == digest
    assert digest_of(completed(out=f"1: digest: {digest} size: 524")) == digest
    assert digest_of(completed(out="nothing")) == ""


# --- archives ---------------------------------------------------------------------------------------------------------


def archive(path: Path, layers: Sequence[str], links: Sequence[tuple[str, str]] = ()) -> bytes:
    """An archive as `docker save` writes it: the manifest last."""
    with tarfile.open(path, "w") as out:
        for number, name in enumerate(dict.fromkeys(layers)):
            if name in dict(links):
                continue
            content = bytes([number + 1]) * (number * 700 + 100)
            member = tarfile.TarInfo(name)
            member.size = len(content)
            out.addfile(member, io.BytesIO(content))
        for name, goal in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, goal
            out.addfile(member)
        manifest = json.dumps([{"Config": "c.json", "RepoTags": None, "Layers": list(layers)}]).encode()
        member = tarfile.TarInfo("manifest.json")
        member.size = len(manifest)
        out.addfile(member, io.BytesIO(manifest))
    return path.read_bytes()


def names(data: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(data)) as found:
        for member in found:
            content = found.extractfile(member) if member.isreg() else None
            assert content is None or len(content.read()) == member.size
        return found.getnames()


def test_an_archive_goes_without_the_layers_that_are_there(tmp_path: Path) -> None:
    layers = [f"{number}/layer.tar" for number in range(4)]
    archive(tmp_path / "a", layers)
    for known in range(5):
        parts = list(give(tmp_path / "a", known, 1000))
        assert names(b"".join(parts)) == [*layers[known:], "manifest.json"]
        assert {len(part) for part in parts[:-1]} <= {1000}
        assert 0 < len(parts[-1]) <= 1000


def test_a_layer_that_another_one_is_the_same_as_stays(tmp_path: Path) -> None:
    layers = ["0/layer.tar", "1/layer.tar", "2/layer.tar"]
    archive(tmp_path / "a", layers, [("2/layer.tar", "../0/layer.tar")])
    assert names(b"".join(give(tmp_path / "a", 2, 1000))) == ["0/layer.tar", "2/layer.tar", "manifest.json"]
    archive(tmp_path / "b", ["blobs/x", "blobs/y", "blobs/x"])
    assert names(b"".join(give(tmp_path / "b", 2, 1000))) == ["blobs/x", "manifest.json"]
