"""How an image is built here: with BuildKit where engine and client have it, else with the engine's own builder.

A client of version 23 or later builds with BuildKit only by its plugin buildx; an older one does so by itself when
``DOCKER_BUILDKIT=1`` asks it to, from engine 18.09 (API 1.39) on. A machine may have both kinds of client, so each that
is there is looked at rather than assumed of.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lightship_agent.errors import AgentFailure
from lightship_agent.records import dataclass
from lightship_agent.system import Run

__all__ = ["Build", "Builder", "build_command", "find_builder", "said"]

USUAL_CLIENT = "/usr/bin/docker"
SWITCH = "DOCKER_BUILDKIT"
_BUILDX_ONLY = 23
_OLDEST_API = (1, 39)
_STEP = r"#[0-9]+ (?:(?P<seconds>[0-9]+\.[0-9]+) )?(?P<text>.*)"
_NOISE = r"(sha256:[0-9a-f]{64}.*|DONE [0-9.]+s|\.\.\.|transferring .*|naming to .*|writing image .*|)"


@dataclass(frozen=True)
class Builder:
    """A way to build: the words that a build's command begins with, and whether BuildKit does it."""

    words: tuple[str, ...] = ("docker", "build")
    buildkit: bool = False

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """The environment of the command."""
        return {**base, SWITCH: "1" if self.buildkit else "0"}


@dataclass(frozen=True)
class Build:
    """What is built: ``folder`` holds the commit's files; ``secrets`` are files by the id that the Dockerfile uses."""

    tag: str
    dockerfile: str
    context: str
    args: Mapping[str, str]
    labels: Mapping[str, str]
    folder: Path
    secrets: Mapping[str, Path]


def build_command(builder: Builder, build: Build) -> list[str]:
    """``docker build`` of a clean tree of the commit. No secret is in it: only where its file lies."""
    place = os.path.join(str(build.folder), build.context)
    command = [*builder.words]
    if builder.buildkit:
        command += ["--progress", "plain"]
        for name, path in sorted(build.secrets.items()):
            command += ["--secret", f"id={name},src={path}"]
    else:
        # Beside a container that is as busy as it may be (1024), a build takes a fifth of the processors and not half.
        # BuildKit has no such option.
        command += ["--force-rm", "--cpu-shares", "256"]
    command += ["--tag", build.tag, "--file", os.path.join(str(build.folder), build.dockerfile)]
    for name, value in sorted(build.args.items()):
        command += ["--build-arg", f"{name}={value}"]
    for name, value in sorted(build.labels.items()):
        command += ["--label", f"{name}={value}"]
    return [*command, "--", place]


def find_builder(run: Run, environment: Mapping[str, str]) -> Builder:
    """The best way to build that this machine has. ``DOCKER_BUILDKIT=0`` in the environment asks for the old one."""
    if environment.get(SWITCH) == "0":
        return Builder()
    for client in _clients(environment.get("PATH", os.defpath)):
        found = _with_buildkit(run, client)
        if found is not None:
            return found
    return Builder()


def _clients(path: str) -> Iterator[str]:
    """The docker commands of this machine, each once, that which a person would get first."""
    import shutil  # noqa: PLC0415 - it costs every agent's start, and only a build needs it

    seen = set()
    for folder in (*path.split(os.pathsep), os.path.dirname(USUAL_CLIENT)):
        client = shutil.which("docker", path=folder) if folder else None
        if client is not None and os.path.realpath(client) not in seen:
            seen.add(os.path.realpath(client))
            yield client


def _with_buildkit(run: Run, client: str) -> Builder | None:
    """The builder, if this client and its engine can use BuildKit."""
    words = _said(run, [client, "version", "--format", "{{.Client.Version}} {{.Server.APIVersion}} {{.Server.Os}}"])
    version, api, system = (*words.split(), "", "", "")[:3]
    if system != "linux" or _numbers(api) < _OLDEST_API:
        return None
    if _numbers(version)[:1] < (_BUILDX_ONLY,):
        return Builder((client, "build"), True)
    if _said(run, [client, "buildx", "version"]):
        # The builder of this engine itself: others have neither its images nor its cache.
        return Builder((client, "buildx", "build", "--builder", "default", "--load"), True)
    return None


def _said(run: Run, argv: Sequence[str]) -> str:
    try:
        done = run(argv, timeout=30)
    except AgentFailure:
        return ""
    return done.out.strip() if done.ok else ""


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"[0-9]+(\.[0-9]+)*", version)
    return tuple(int(part) for part in found.group().split(".")) if found else ()


def said(text: str) -> str | None:
    """A line of a build for people: without BuildKit's counters; None for one that says nothing."""
    found = re.fullmatch(_STEP, text)
    if found is None:
        return text if text.strip() else None
    words = found.group("text")
    return None if found.group("seconds") is None and re.fullmatch(_NOISE, words) else words
