#!/usr/bin/env python3
"""The base image of the example and of the tests: Debian bookworm with Python 3.11, a compiler and two wheels.

Where Docker Hub answers, it is python:3.11-slim-bookworm, adapted; elsewhere it is made of Debian's packages, from the
mirror that this machine's own apt sources name. Either way the very same Dockerfiles build on it. What this machine
needs to reach its package indexes (certificates, pip's index, apt's sources) goes into the image, and uWSGI, which is
published as source alone, is compiled here once instead of in every image that is built.

The tag holds a hash of all that, so a second run finds the image there and is done.
"""

from __future__ import annotations

import argparse
import configparser
import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from machine import TroubleError, alone, install_packages, is_root, run, say, stop_with, tail

NAME = "lightship-base"
SUITE = "bookworm"
TAG = f"{NAME}:{SUITE}"
HUB_IMAGE = "python:3.11-slim-bookworm"
LABEL = "lightship.base"
PACKAGES = ("ca-certificates", "gcc", "libc6-dev", "python3", "python3-dev", "python3-venv")
BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
# What `lightship init` writes into a Dockerfile; a test holds the two together.
WHEELS = ("uwsgi==2.0.31", "supervisor==4.3.0")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
HUB_ANSWERS_WITHIN = 6.0
HUB_DELIVERS_WITHIN = 240.0

DOCKERFILE = f"""\
ARG FROM
FROM ${{FROM}}
COPY rootfs/ /
ENV LANG=C.UTF-8 \\
    SSL_CERT_FILE={BUNDLE} \\
    PIP_CERT={BUNDLE} \\
    PIP_FIND_LINKS=/opt/lightship/wheels \\
    PIP_DISABLE_PIP_VERSION_CHECK=1 \\
    PIP_ROOT_USER_ACTION=ignore
RUN set -e; \\
    command -v python >/dev/null || ln -s python3 /usr/bin/python; \\
    if ! command -v gcc >/dev/null; then \\
        apt-get update; \\
        apt-get install -y --no-install-recommends gcc libc6-dev; \\
        rm -rf /var/lib/apt/lists/*; \\
    fi; \\
    python3 -m venv /tmp/wheels; \\
    /tmp/wheels/bin/pip install --quiet setuptools wheel; \\
    /tmp/wheels/bin/pip wheel --quiet --no-cache-dir --no-build-isolation \\
        --wheel-dir /opt/lightship/wheels {" ".join(WHEELS)}; \\
    rm -rf /tmp/wheels
CMD ["python3"]
"""


@dataclass(frozen=True)
class Source:
    """One archive of this machine's apt sources."""

    uri: str
    suite: str
    components: tuple[str, ...]
    keyring: str = ""
    trusted: bool = False

    def line(self) -> str:
        """The same, as one line of sources.list."""
        options = [f"signed-by={self.keyring}"] if self.keyring else []
        options += ["trusted=yes"] if self.trusted else []
        shown = f"[{' '.join(options)}] " if options else ""
        return f"deb {shown}{self.uri} {self.suite} {' '.join(self.components)}"


def from_list(text: str) -> Iterator[Source]:
    """Sources of the one-line format."""
    for row in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[([^\]]*)\]\s*)?(\S+)\s+(\S+)\s*([^#]*)", row)
        if match:
            options = dict(part.partition("=")[::2] for part in (match[1] or "").split())
            yield Source(
                match[2],
                match[3],
                tuple(match[4].split()),
                options.get("signed-by", ""),
                options.get("trusted", "") == "yes",
            )


def from_deb822(text: str) -> Iterator[Source]:
    """Sources of the paragraph format."""
    text = re.sub(r"(?m)^#.*\n?", "", text)
    for paragraph in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        key = ""
        for row in paragraph.splitlines():
            if row[:1].isspace():
                fields[key] = fields.get(key, "") + "\n" + row.strip()
            elif ":" in row:
                key, _, value = row.partition(":")
                key = key.strip().lower()
                fields[key] = value.strip()
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() == "no":
            continue
        signed = fields.get("signed-by", "").strip()
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield Source(
                    uri,
                    suite,
                    tuple(fields.get("components", "").split()),
                    signed if signed.startswith("/") else "",
                    fields.get("trusted", "").lower() == "yes",
                )


def apt_sources(etc: Path = Path("/etc/apt")) -> list[Source]:
    """The archives of Debian itself that this machine uses and a container can reach."""
    found: list[Source] = []
    for path in [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]:
        if path.suffix not in (".list", ".sources"):
            continue
        with contextlib.suppress(OSError):
            text = path.read_text(errors="replace")
            found += from_deb822(text) if path.suffix == ".sources" else from_list(text)
    suites = (SUITE, f"{SUITE}-updates", f"{SUITE}-security")
    return [
        source
        for source in found
        if source.suite in suites and "main" in source.components and re.match(r"https?://", source.uri)
    ]


def pip_settings() -> str:
    """What of this machine's pip settings says where packages come from, as a pip.conf; paths of this machine do not.

    The files are read here because asking pip itself takes longer than all the rest of a second run.
    """
    home = Path.home()
    files = [
        Path("/etc/xdg/pip/pip.conf"),
        Path("/etc/pip.conf"),
        home / ".pip/pip.conf",
        home / ".config/pip/pip.conf",
        Path(sys.prefix) / "pip.conf",
    ]
    if own := os.environ.get("PIP_CONFIG_FILE"):
        files.append(Path(own))
    settings: dict[str, str] = {}
    for path in files:
        parser = configparser.RawConfigParser()
        with contextlib.suppress(OSError, configparser.Error, UnicodeDecodeError):
            parser.read_string(path.read_text())
        for section in ("global", "install"):
            if parser.has_section(section):
                settings.update(parser.items(section))
    for key in ("index-url", "extra-index-url", "trusted-host"):
        if value := os.environ.get("PIP_" + key.upper().replace("-", "_")):
            settings[key] = value
    rows = []
    for key in ("index-url", "extra-index-url"):
        addresses = [word for word in settings.get(key, "").split() if re.match(r"https?://", word)]
        if addresses:
            rows.append(f"{key} = {' '.join(addresses)}")
    if rows and settings.get("trusted-host"):
        rows.append(f"trusted-host = {' '.join(settings['trusted-host'].split())}")
    return "\n".join(["[global]", *rows, ""]) if rows else ""


def certificates() -> bytes:
    """The certificates this machine trusts, which may be more than Debian's: a proxy may sit in between."""
    for name in (os.environ.get("SSL_CERT_FILE", ""), BUNDLE):
        with contextlib.suppress(OSError):
            if name and (data := Path(name).read_bytes()):
                return data
    return b""


@dataclass(frozen=True)
class Recipe:
    """All that the image is made of."""

    sources: tuple[Source, ...]
    pip_conf: str
    bundle: bytes

    @classmethod
    def of_this_machine(cls) -> Recipe:
        """Read it off this machine."""
        return cls(tuple(apt_sources()), pip_settings(), certificates())

    def digest(self) -> str:
        """Twelve digits that change when any of it does."""
        total = hashlib.sha256()
        for part in (DOCKERFILE, " ".join(PACKAGES), repr(self.sources), self.pip_conf):
            total.update(part.encode() + b"\0")
        total.update(self.bundle)
        return total.hexdigest()[:12]

    def write_rootfs(self, folder: Path) -> None:
        """Lay out the files that go into the image."""
        folder.mkdir(parents=True)
        if self.bundle:
            write(folder, BUNDLE, self.bundle)
        if self.pip_conf:
            write(folder, "/etc/pip.conf", self.pip_conf.encode())
        if self.sources:
            text = "".join(source.line() + "\n" for source in self.sources)
            write(folder, "/etc/apt/sources.list", text.encode())
            # The file that the official images bring; the sources above take its place.
            write(folder, "/etc/apt/sources.list.d/debian.sources", b"")
            for keyring in {source.keyring for source in self.sources if source.keyring}:
                with contextlib.suppress(OSError):
                    write(folder, keyring, Path(keyring).read_bytes())


def write(folder: Path, name: str, data: bytes) -> None:
    """Put one file below a folder."""
    path = folder / name.lstrip("/")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(0o644)


def image_id(name: str) -> str:
    """An image's id; empty when there is none of that name."""
    return run(["docker", "image", "inspect", "--format", "{{.Id}}", name]).stdout.strip()


def pulled() -> bool:
    """Whether Docker Hub answers quickly and its image could be had."""
    if image_id(HUB_IMAGE):
        return True
    if run(["docker", "manifest", "inspect", HUB_IMAGE], timeout=HUB_ANSWERS_WITHIN).returncode:
        return False
    say(f"pulling {HUB_IMAGE}")
    return run(["docker", "pull", "--quiet", HUB_IMAGE], timeout=HUB_DELIVERS_WITHIN).returncode == 0


def bootstrap(recipe: Recipe, name: str) -> None:
    """Make a root file system of Debian's packages, and an image of it."""
    if image_id(name):
        return
    if not is_root():
        raise TroubleError(
            f"Missing: a base image. {HUB_IMAGE} cannot be pulled (no image registry answers),\n"
            "and only root can make one of Debian's packages. Run the same command once as root."
        )
    if not shutil.which("debootstrap"):
        install_packages(["debootstrap"], "makes the base image, as no image registry answers")
    say("making the base image of Debian's packages (about a minute, once)")
    folder = Path(tempfile.mkdtemp(prefix="lightship-base-", dir="/var/tmp"))
    root = folder / "root"
    try:
        make_root(recipe, root)
        import_root(root, name)
    finally:
        unmount_below(root)
        shutil.rmtree(folder, ignore_errors=True)


def make_root(recipe: Recipe, root: Path) -> None:
    """Run debootstrap against the machine's own mirror."""
    main = next((source for source in recipe.sources if source.suite == SUITE), None)
    keyring = main.keyring if main and main.keyring else str(KEYRING)
    command = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
    if main and main.trusted:
        command.append("--no-check-gpg")
    elif Path(keyring).exists():
        command.append(f"--keyring={keyring}")
    command += [SUITE, str(root)] + ([main.uri] if main else [])
    done = run(command, timeout=900)
    if done.returncode:
        log = root / "debootstrap" / "debootstrap.log"
        said = log.read_text(errors="replace") if log.exists() else done.stderr or done.stdout
        raise TroubleError(f"debootstrap could not make the base image:\n\n{tail(done.stdout, 3)}\n{tail(said, 10)}")
    for pattern in ("var/cache/apt/archives/*.deb", "var/lib/apt/lists/*_*", "var/log/*.log"):
        for path in root.glob(pattern):
            path.unlink()


def import_root(root: Path, name: str) -> None:
    """Hand a root file system to the engine."""
    with subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE) as tar:
        done = subprocess.run(
            ["docker", "import", "--change", f"LABEL {LABEL}=root", "-", name],
            stdin=tar.stdout,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode or tar.returncode:
        raise TroubleError(f"docker import failed:\n\n{tail(done.stderr)}")


def unmount_below(root: Path) -> None:
    """Let go of what an interrupted debootstrap left mounted, before the folder is removed."""
    if not is_root():
        return
    for row in reversed(Path("/proc/mounts").read_text().splitlines()):
        point = row.split()[1]
        if point.startswith(f"{root}/"):
            run(["umount", point])


def build(recipe: Recipe, start: str, name: str, digest: str) -> None:
    """Adapt the image to this machine and compile the wheels."""
    say("adapting the base image and compiling uWSGI (once)")
    with tempfile.TemporaryDirectory(prefix="lightship-base-") as folder:
        recipe.write_rootfs(Path(folder) / "rootfs")
        (Path(folder) / "Dockerfile").write_text(DOCKERFILE)
        command = ["docker", "build", "--build-arg", f"FROM={start}", "--label", f"{LABEL}={digest}", "--tag", name]
        done = run([*command, folder], timeout=900)
    if done.returncode:
        raise TroubleError(
            f"The base image could not be built:\n\n{tail(done.stdout + done.stderr)}\n\n"
            "Containers must be able to reach the package index that this machine's pip uses."
        )


def ensure() -> str:
    """Have the base image; its full name."""
    recipe = Recipe.of_this_machine()
    digest = recipe.digest()
    name = f"{TAG}-{digest}"
    if ready(name):
        return name
    with alone("base-image"):
        if ready(name):
            return name
        if not image_id(name):
            started = time.monotonic()
            start = HUB_IMAGE
            if not pulled():
                start = f"{NAME}:root-{hashlib.sha256(repr((PACKAGES, recipe.sources)).encode()).hexdigest()[:12]}"
                bootstrap(recipe, start)
            build(recipe, start, name, digest)
            say(f"the base image is ready ({time.monotonic() - started:.0f} s)")
        done = run(["docker", "tag", name, TAG])
        if done.returncode:
            raise TroubleError(f"docker tag failed:\n\n{tail(done.stderr)}")
    return name


def ready(name: str) -> bool:
    """Whether the image is there under both its names."""
    done = run(["docker", "image", "inspect", "--format", "{{.Id}}", name, TAG])
    ids = done.stdout.split()
    return done.returncode == 0 and len(ids) == 2 and ids[0] == ids[1]  # noqa: PLR2004 - two names asked for


def remove() -> None:
    """Remove every image that was made here."""
    listed = run(["docker", "image", "ls", "--filter", f"reference={NAME}", "--format", "{{.Repository}}:{{.Tag}}"])
    for name in listed.stdout.split():
        run(["docker", "image", "rm", "--force", name])
    # What builds upon it left behind without a name; it carries the base image's label.
    unnamed = ["docker", "image", "ls", "--quiet", "--filter", "dangling=true", "--filter", f"label={LABEL}"]
    if ids := run(unnamed).stdout.split():
        run(["docker", "image", "rm", "--force", *ids])


def main() -> int:
    """Parse and act."""
    parser = argparse.ArgumentParser(description="The base image of the example and of the tests.")
    parser.add_argument("action", choices=["ensure", "remove"], nargs="?", default="ensure")
    try:
        if parser.parse_args().action == "remove":
            remove()
        else:
            print(ensure())
    except TroubleError as trouble:
        return stop_with(trouble)
    return 0


if __name__ == "__main__":
    sys.exit(main())
