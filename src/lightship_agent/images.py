"""The operations on images: look, build, push, pull, and give one to another server through the controller.

None of them touches a container. What a killed one leaves is a file whose name begins with ``build-`` in state/, which
the next conversation removes, or an image that nothing needs, which is pruned.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from lightship_agent import TYPE_CHECKING
from lightship_agent.builder import Build, Builder, build_command, find_builder, said
from lightship_agent.container import LABEL_ROOT, Engine, Image
from lightship_agent.errors import AgentFailure, ProtocolError, Refused
from lightship_agent.failpoints import fail_point, register
from lightship_agent.git import Mirror
from lightship_agent.names import printable, valid_commit
from lightship_agent.paths import ServicePaths
from lightship_agent.records import dataclass
from lightship_agent.redaction import parts
from lightship_agent.registry import digest_of, registry_failure, repository_of
from lightship_agent.requests import DIFF_ID, IDENTIFIER, IMAGE, INSIDE, Reader
from lightship_agent.space import note_image, require_space
from lightship_agent.system import Completed, Run

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from typing import Any

__all__ = ["CHUNK", "Images"]

register(
    build__secrets="the build's secrets are about to be written for root alone",
    build__start="the image is about to be built",
    build__done="the image has been built",
    push__start="the image is about to be pushed",
    push__done="the image has been pushed",
    pull__start="the image is about to be pulled",
    pull__done="the image has been pulled",
    image__tag="an image is about to get its name",
    save__start="the image is about to be packed for another server",
    load__chunk="a part of an image has come",
    load__start="an image that was sent is about to be loaded",
    load__done="an image that was sent has been loaded",
)

BUILD_SECONDS = 3600.0
CHUNK = 3 * 1024 * 1024
"""So many bytes of an image go in one line, before they are compressed and written in base 64."""
_PREFIX = "build-"


@dataclass(frozen=True)
class Images:
    """The images of one service here. ``heard`` raises when nobody listens any more."""

    paths: ServicePaths
    engine: Engine
    mirror: Mirror
    run: Run
    step: Callable[[str], AbstractContextManager[dict[str, Any]]]
    emit: Callable[[dict[str, Any]], None]
    learn: Callable[[Iterable[str]], None]
    guard: Callable[[], None]
    heard: Callable[[], None]

    # --- looking ------------------------------------------------------------------

    def image(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """What is here under a name, and how many of the given layers, from the lowest up."""
        read = Reader(args)
        name, layers = read.text("image", None, IMAGE), read.matching("layers", DIFF_ID)
        found = self.engine.image(name)
        return {
            "id": found.id if found else "",
            "digest": found.digest(repository_of(name)) if found else "",
            "layers": list(found.layers) if found else [],
            "architecture": found.architecture if found else "",
            "engine": self.engine.architecture(),
            "known": _known(layers, self.engine.images()) if layers else 0,
        }

    # --- building -----------------------------------------------------------------

    def build(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Build the image from a clean tree of the commit, unless there is one of that tag."""
        read = Reader(args)
        commit, tag = valid_commit(args.get("commit")), read.text("tag", None, IMAGE)
        context, dockerfile = _inside(read.text("context", ".")), _inside(read.text("dockerfile", "Dockerfile"))
        build_arguments, labels, secrets = read.table("args"), read.table("labels"), read.table("secrets")
        for name in secrets:
            if not re.fullmatch(IDENTIFIER, name):
                raise ProtocolError("bad-value", f"secrets: {printable(name)} is not a secret's name")
        self.learn(part for value in secrets.values() for part in parts(value))
        started = time.monotonic()
        known = self.engine.image_id(tag)
        if known:
            return {"image_id": known, "built": False, "seconds": 0.0}
        builder = find_builder(self.run, os.environ)
        if secrets and not builder.buildkit:
            raise Refused(
                "no-buildkit",
                "the image's build has secrets, and the Docker engine here cannot build with BuildKit",
                hint="install Docker with its plugin buildx on this server, or build without `image.secrets`",
            )
        with self.step("build") as detail, self._folder() as folder, self._secret_files(secrets) as files:
            detail.update(buildkit=builder.buildkit)
            self.mirror.export(commit, folder)
            labels = {**labels, LABEL_ROOT: str(self.paths.home)}
            self._build(builder, Build(tag, dockerfile, context, build_arguments, labels, folder, files), commit)
        image = self.engine.image_id(tag)
        if image is None:
            raise AgentFailure("docker-failed", f"the image {tag} was built and is not there")
        return {"image_id": image, "built": True, "seconds": round(time.monotonic() - started, 3)}

    def _build(self, builder: Builder, build: Build, commit: str) -> None:
        # Without the lock: what a build that outlived us adds to the engine's images is in nobody's way.
        fail_point("build.start")
        self.engine.command(
            build_command(builder, build),
            f"build the image of {commit[:7]}",
            timeout=BUILD_SECONDS,
            on_line=self._log,
            env=builder.environment(os.environ),
            meanwhile=self.heard,
            inherit=(),
        )
        fail_point("build.done")

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        """A folder that only root reads, and that is gone afterwards."""
        import shutil  # noqa: PLC0415 - these two cost every agent's start, and only a build needs them
        import tempfile  # noqa: PLC0415

        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=str(self.paths.state)))
        try:
            yield folder
        finally:
            shutil.rmtree(str(folder), ignore_errors=True)

    @contextmanager
    def _secret_files(self, secrets: Mapping[str, str]) -> Iterator[dict[str, Path]]:
        """The secrets as files of their own, outside the tree that the build may copy from."""
        if not secrets:
            yield {}
            return
        with self._folder() as folder:
            fail_point("build.secrets")
            files = {name: folder / name for name in secrets}
            for name, path in files.items():
                descriptor = os.open(str(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(secrets[name].encode("utf-8"))
            yield files

    def _log(self, stream: str, text: str) -> None:
        shown = said(text)
        if shown is not None:
            self.emit({"event": "log", "stream": stream, "text": shown})

    # --- the registry -------------------------------------------------------------

    def push(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Bring an image to its registry; the answer is its name by digest."""
        image = Reader(args).text("image", None, IMAGE)
        with self.step("push"):
            fail_point("push.start")
            done = self._docker("push the image", image, ["docker", "push", "--", image])
            fail_point("push.done")
        digest = digest_of(done)
        found = self.engine.image(image)
        name = f"{repository_of(image)}@{digest}" if digest else found.digest(repository_of(image)) if found else ""
        if not name:
            raise AgentFailure("docker-failed", f"the image {image} was pushed, and its digest was not told")
        return {"digest": name}

    def pull(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Bring an image here from its registry; with ``tag`` it gets that name as well."""
        read = Reader(args)
        image, tag = read.text("image", None, IMAGE), read.text("tag", "", IMAGE)
        with self.step("pull"):
            if self.engine.image_id(image) is None:
                note_image(self.paths, image)
            fail_point("pull.start")
            done = self._docker("pull the image", image, ["docker", "pull", "--", image])
            fail_point("pull.done")
            found = self._there(image)
            digest = digest_of(done)
            name = f"{repository_of(image)}@{digest}"
            digest = name if digest and name in found.digests else found.digest(repository_of(image))
            if digest and digest != image:
                note_image(self.paths, digest)
            self._name(found, tag)
        return {"image_id": found.id, "digest": digest}

    def _docker(self, what: str, image: str, argv: Sequence[str]) -> Completed:
        done = self.run(argv, timeout=BUILD_SECONDS, on_line=self._log, meanwhile=self.heard, inherit=())
        if not done.ok:
            raise registry_failure(what, image, done)
        return done

    def _there(self, image: str) -> Image:
        found = self.engine.image(image)
        if found is None:
            raise Refused("image-missing", f"the image {image} is not to be had on this server")
        return found

    def _name(self, image: Image, tag: str) -> None:
        if tag and self.engine.image_id(tag) != image.id:
            fail_point("image.tag")
            self.engine.command(["docker", "tag", "--", image.id, tag], f"name the image {tag}")

    # --- from server to server ----------------------------------------------------

    def save(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Give an image, without so many of its layers, to whoever listens."""
        read = Reader(args)
        name, known = read.text("image", None, IMAGE), read.whole("known", 0, 0, 1000)
        image = self._there(name)
        digest, total = hashlib.sha256(), 0
        with self.step("save"), self._folder() as folder:
            fail_point("save.start")
            path = folder / "image.tar"
            require_space(self.paths.state, "the image that another server is to get", size=self._size(image))
            command = ["docker", "save", "--output", str(path), "--", image.id]
            self.engine.command(command, "pack the image", timeout=BUILD_SECONDS, meanwhile=self.heard, inherit=())
            from lightship_agent.archive import give  # noqa: PLC0415 - the reader of archives costs every agent's start

            for part in give(path, known, CHUNK):
                self.heard()
                digest.update(part)
                total += len(part)
                self.emit({"event": "data", "data": base64.b64encode(zlib.compress(part, 1)).decode("ascii")})
        return {"sha256": digest.hexdigest(), "size": total, "image_id": image.id}

    def _size(self, image: Image) -> int:
        done = self.engine.command(
            ["docker", "image", "inspect", "--format", "{{.Size}}", "--", image.id], "ask the image's size"
        )
        return int(done.out) if done.out.strip().isdigit() else 0

    def load(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Take a part of an image; with the last one it is loaded, and is what it is said to be."""
        read = Reader(args)
        path, size = self.paths.state / f"{_PREFIX}received.tar", read.whole("size", 0, 0, 1 << 50)
        offset, part = read.whole("offset", 0, 0, 1 << 50), _unpacked(read.text("data", ""))
        last = _Last.parse(read.inner("last"))
        self.guard()
        if offset == 0:
            path.unlink(missing_ok=True)
            require_space(self.paths.state, "the image that is sent", size=2 * size)
        elif not path.exists() or path.stat().st_size != offset:
            raise ProtocolError("bad-value", f"offset: {offset} is not where the image ends so far")
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(str(path), flags, 0o600), "ab") as file:
            file.write(part)
        fail_point("load.chunk")
        if last is None:
            return {"size": offset + len(part)}
        try:
            return self._load(path, last)
        finally:
            path.unlink(missing_ok=True)

    def _load(self, path: Path, last: _Last) -> dict[str, Any]:
        with self.step("load"):
            if _sha256(path) != last.sha256:
                raise AgentFailure("image-damaged", "the image did not come whole", hint="deploy again")
            fail_point("load.start")
            done = self.run(
                ["docker", "load", "--input", str(path)], timeout=BUILD_SECONDS, meanwhile=self.heard, inherit=()
            )
            fail_point("load.done")
            found = self.engine.image(last.image_id)
            if found is None:
                lines = (done.err or done.out).strip().splitlines() or [f"exit status {done.status}"]
                # An engine that has not the layers that were left out, or does not look for them.
                missing = "no such file" in lines[-1] or "not found" in lines[-1]
                raise AgentFailure(
                    "layers-missing" if missing else "docker-failed",
                    f"could not load the image: {lines[-1][:500]}",
                    detail={"stderr": done.err[-4000:]},
                )
            self._name(found, last.tag)
        return {"image_id": found.id, "size": path.stat().st_size}


@dataclass(frozen=True)
class _Last:
    """What an image that was sent is said to be."""

    sha256: str
    image_id: str
    tag: str

    @classmethod
    def parse(cls, found: Mapping[str, Any] | None) -> _Last | None:
        """From the protocol's JSON; None when more is to come."""
        if found is None:
            return None
        read = Reader(found, "last.")
        return cls(read.text("sha256", None), read.text("image_id", None, IMAGE), read.text("tag", "", IMAGE))


def _known(layers: Sequence[str], images: Sequence[Image]) -> int:
    """How many of the layers, from the lowest up, an image here has in the same order: only so are they the same."""
    return max((_alike(layers, image.layers) for image in images), default=0)


def _alike(first: Sequence[str], second: Sequence[str]) -> int:
    """How many are the same, from the first one on."""
    count = 0
    while count < min(len(first), len(second)) and first[count] == second[count]:
        count += 1
    return count


def _unpacked(text: str) -> bytes:
    """The bytes of a chunk; never more than a chunk has, whatever it is said to unfold to."""
    if not text:
        return b""
    try:
        stream = zlib.decompressobj()
        found = stream.decompress(base64.b64decode(text, validate=True), CHUNK)
        whole = stream.eof and not stream.unconsumed_tail and not stream.unused_data
    except (ValueError, zlib.error):
        whole = False
    if not whole:
        raise ProtocolError("bad-value", "data: is not a part of an image as it is sent")
    return found


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for part in iter(lambda: file.read(1024 * 1024), b""):
            digest.update(part)
    return digest.hexdigest()


def _inside(path: str) -> str:
    """A relative path that stays inside the tree."""
    if path.startswith(("/", "-")) or ".." in path.split("/") or not re.fullmatch(INSIDE, path):
        raise ProtocolError("bad-value", f"{printable(path)} is not a plain path inside the repository")
    return path
