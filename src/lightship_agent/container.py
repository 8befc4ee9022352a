"""The service's containers: commands as argument lists, and the few things that are asked of the engine.

What changes something is done by the ``docker`` command, so that it does just what a person would see it do. What is
only asked goes to the engine's own socket where there is one (1 ms instead of the 30 to 50 ms that starting ``docker``
takes).
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lightship_agent import TYPE_CHECKING
from lightship_agent.errors import AgentFailure, Refused
from lightship_agent.paths import CONTAINER_CODE, CONTAINER_RUN, CONTAINER_SHARED, ServicePaths
from lightship_agent.records import dataclass, field
from lightship_agent.system import Completed, run

if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "Container",
    "ContainerSettings",
    "Engine",
    "Image",
    "create_command",
    "exec_command",
]

LABEL_SERVICE = "lightship.service"
LABEL_INSTANCE = "lightship.instance"
LABEL_ROOT = "lightship.root"
LABEL_FINGERPRINT = "lightship.fingerprint"
LABEL_SETTINGS = "lightship.settings"
LABEL_RELOAD = "lightship.reload"
LABEL_UPSTREAM = "lightship.upstream"
DEFAULT_SOCKET = "/var/run/docker.sock"
MAX_ANSWER = 16 * 1024 * 1024


@dataclass(frozen=True)
class Container:
    """What the engine says of one container."""

    name: str
    id: str
    instance: int
    running: bool
    status: str
    started: str
    image: str
    image_id: str
    pid: int
    restarts: int
    restart_policy: str
    oom_killed: bool
    exit_code: int
    labels: Mapping[str, str]
    ports: Mapping[str, Sequence[Mapping[str, str]]]
    env: Mapping[str, str]

    @classmethod
    def parse(cls, found: Mapping[str, Any]) -> Container:
        """From the JSON of ``docker container inspect``."""
        state, config, host = found["State"], found["Config"], found.get("HostConfig") or {}
        labels = config.get("Labels") or {}
        number = labels.get(LABEL_INSTANCE, "0")
        return cls(
            name=str(found["Name"]).lstrip("/"),
            id=found["Id"],
            instance=int(number) if number.isdigit() else 0,
            running=bool(state.get("Running")) and not state.get("Restarting") and not state.get("Paused"),
            status=str(state.get("Status", "")),
            started=str(state.get("StartedAt", "")),
            image=str(config.get("Image", "")),
            image_id=str(found.get("Image", "")),
            pid=int(state.get("Pid") or 0),
            restarts=int(found.get("RestartCount") or 0),
            restart_policy=str((host.get("RestartPolicy") or {}).get("Name", "")),
            oom_killed=bool(state.get("OOMKilled")),
            exit_code=int(state.get("ExitCode") or 0),
            labels=labels,
            ports=host.get("PortBindings") or {},
            env={name: value for name, _, value in (entry.partition("=") for entry in config.get("Env") or ())},
        )

    @property
    def reload(self) -> str:
        """The reload way that it was made for."""
        return self.labels.get(LABEL_RELOAD, "")

    @property
    def user(self) -> str:
        """The user that the image's workers run as (the image sets ``LIGHTSHIP_USER``)."""
        return self.env.get("LIGHTSHIP_USER", "app")

    @property
    def python(self) -> str:
        """The interpreter that has the service's packages (an image may set ``LIGHTSHIP_PYTHON``)."""
        return self.env.get("LIGHTSHIP_PYTHON", "/opt/venv/bin/python3")

    @property
    def behind_proxy(self) -> bool:
        """Whether it listens on the loopback alone, for a proxy to lead to it."""
        return LABEL_UPSTREAM in self.labels

    def published(self) -> int | None:
        """The first host port that is published, or None."""
        for bindings in self.ports.values():
            for binding in bindings or ():
                if str(binding.get("HostPort", "")).isdigit():
                    return int(binding["HostPort"])
        return None

    def as_dict(self) -> dict[str, Any]:
        """The container as the facts carry it."""
        return {
            "name": self.name,
            "id": self.id,
            "instance": self.instance,
            "running": self.running,
            "status": self.status,
            "started": self.started,
            "image": self.image,
            "image_id": self.image_id,
            "fingerprint": self.labels.get(LABEL_FINGERPRINT, ""),
            "settings": self.labels.get(LABEL_SETTINGS, ""),
            "reload": self.reload,
            "restarts": self.restarts,
        }


@dataclass(frozen=True)
class Image:
    """What the engine says of one image: its id, its names by tag and by digest, its layers from the lowest up."""

    id: str
    tags: Sequence[str]
    digests: Sequence[str]
    layers: Sequence[str]
    architecture: str
    created: str

    @classmethod
    def parse(cls, found: Mapping[str, Any]) -> Image:
        """From the JSON of ``docker image inspect``."""
        return cls(
            id=str(found["Id"]),
            tags=tuple(found.get("RepoTags") or ()),
            digests=tuple(found.get("RepoDigests") or ()),
            layers=tuple((found.get("RootFS") or {}).get("Layers") or ()),
            architecture=str(found.get("Architecture") or ""),
            created=str(found.get("Created") or ""),
        )

    def digest(self, repository: str) -> str:
        """Its name by digest in a repository; empty when it never came from there, nor went there."""
        return next((name for name in self.digests if name.partition("@")[0] == repository), "")


@dataclass(frozen=True)
class ContainerSettings:
    """What a container of the service is started with. ``image_id`` is what the image's name stood for then."""

    image: str
    options: Sequence[str]
    ports: Sequence[str]
    volumes: Sequence[str]
    fingerprint: str
    settings: str
    reload: str
    labels: Mapping[str, str]
    roles: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    upstream: str = ""
    """With a proxy before it: where it listens on this machine's loopback, and its port inside (``8000:8000``)."""
    image_id: str = ""


def create_command(
    paths: ServicePaths, name: str, instance: int, settings: ContainerSettings, env_file: Path, *, check: str = ""
) -> list[str]:
    """``docker create`` of an instance.

    ``check`` names the release that a *check* container is to boot: it publishes no ports. The engine starts no
    container by itself until it is the one that serves (``Engine.set_restart``).
    """
    labels = {
        **settings.labels,
        LABEL_SERVICE: paths.service,
        LABEL_INSTANCE: str(instance),
        LABEL_ROOT: str(paths.home),
        LABEL_FINGERPRINT: settings.fingerprint,
        LABEL_SETTINGS: settings.settings,
        LABEL_RELOAD: settings.reload,
    }
    command = [
        "docker",
        "create",
        "--name",
        name,
        "--env-file",
        str(env_file),
        "--env",
        f"LIGHTSHIP_INSTANCE={instance}",
    ]
    if check:
        command += ["--env", f"LIGHTSHIP_RELEASE={check}"]
    command += ["--restart", "no"]
    command += ["--volume", f"{paths.code}:{CONTAINER_CODE}:ro"]
    command += ["--volume", f"{paths.run(instance)}:{CONTAINER_RUN}"]
    command += ["--volume", f"{paths.shared}:{CONTAINER_SHARED}"]
    for volume in settings.volumes:
        command += ["--volume", volume]
    for key, value in sorted(labels.items()):
        command += ["--label", f"{key}={value}"]
    if not any(option.startswith("--log-") for option in settings.options):
        command += ["--log-opt", "max-size=10m", "--log-opt", "max-file=3"]
    command += list(settings.options)
    if not check:
        for port in settings.ports:
            command += ["--publish", port]
        if settings.upstream:
            command += ["--label", f"{LABEL_UPSTREAM}={settings.upstream}"]
            command += ["--publish", f"127.0.0.1:{settings.upstream}"]
    return [*command, "--", settings.image]


def exec_command(
    container: str,
    folder: str,
    command: Sequence[str],
    *,
    user: str = "",
    env: Mapping[str, str] | None = None,
    interactive: bool = False,
) -> list[str]:
    """``docker exec`` of a command in a folder of the container; ``interactive`` passes standard input on."""
    words = ["docker", "exec", *(["--interactive"] if interactive else []), "--workdir", folder]
    if user:
        words += ["--user", user]
    for name, value in sorted((env or {}).items()):
        words += ["--env", f"{name}={value}"]
    return [*words, container, *command]


class Engine:
    """The Docker engine of this server."""

    def __init__(self, runner: Callable[..., Completed] = run, socket_path: str | None = None) -> None:
        self._run = runner
        host = os.environ.get("DOCKER_HOST", "")
        default = host[len("unix://") :] if host.startswith("unix://") else ("" if host else DEFAULT_SOCKET)
        self._socket = default if socket_path is None else socket_path

    def version(self) -> str | None:
        """The engine's version, or None when none answers."""
        # In the head of the answer to a ping. For /version Docker starts runc and docker-init, to know theirs: 8 ms.
        named = re.search(rb"(?im)^Server: Docker/([0-9][^ \r\n]*)", self._ping())
        if named:
            return named[1].decode("ascii", "replace")
        answer = self._get("/version")
        if answer is not None:
            return str(answer.get("Version", "")) or None
        try:
            done = self._run(["docker", "version", "--format", "{{.Server.Version}}"], timeout=15)
        except AgentFailure:  # there is not even the command: that is for what needs it to say
            return None
        return done.out.strip() or None if done.status == 0 else None

    def container(self, name: str) -> Container | None:
        """One container by name or id, or None when there is none."""
        found = self._inspect("container", f"/containers/{name}/json", name)
        return Container.parse(found) if found else None

    def image(self, name: str) -> Image | None:
        """An image that is on this server, by name or id, or None."""
        found = self._inspect("image", f"/images/{name}/json", name)
        return Image.parse(found) if found else None

    def image_id(self, name: str) -> str | None:
        """The id of an image that is on this server, or None."""
        found = self.image(name)
        return found.id if found else None

    def images(self, *filters: str) -> list[Image]:
        """The images on this server, all or those that ``docker image ls --filter`` finds."""
        command = ["docker", "image", "ls", "--quiet", "--no-trunc"]
        for one in filters:
            command += ["--filter", one]
        names = dict.fromkeys(self.command(command, "list the images").out.split())
        return [image for image in map(self.image, names) if image is not None]

    def architecture(self) -> str:
        """What the engine's machine is, in the words that images use; empty when that is not known."""
        return str((self._get("/version") or {}).get("Arch", ""))

    def containers_of(self, paths: ServicePaths) -> list[Container]:
        """Every container that lightship made for this service here, stopped ones too, newest instance first.

        Only those have a number: one that somebody runs by hand has the labels of the image alone, and is not ours.
        """
        command = ["docker", "ps", "--all", "--quiet", "--no-trunc", "--filter", f"label={LABEL_INSTANCE}"]
        command += [
            "--filter",
            f"label={LABEL_SERVICE}={paths.service}",
            "--filter",
            f"label={LABEL_ROOT}={paths.home}",
        ]
        done = self.command(command, "list the containers")
        found = [self.container(line) for line in done.out.split()]
        return sorted((each for each in found if each), key=lambda each: -each.instance)

    def command(
        self,
        argv: Sequence[str],
        what: str,
        *,
        timeout: float = 120.0,
        on_line: Callable[[str, str], None] | None = None,
        **options: Any,
    ) -> Completed:
        """Run a docker command; raises ``AgentFailure`` (code ``docker-failed``) when it fails."""
        done = self._run(list(argv), timeout=timeout, on_line=on_line, **options)
        if done.status != 0:
            lines = [line for line in done.err.strip().splitlines() if line.strip()]
            # `docker start` ends with a line that only repeats that it failed.
            lines = [line for line in lines if not line.startswith("Error: failed to start")] or lines
            reason = (lines or [f"exit status {done.status}"])[-1][:500]
            raise AgentFailure(
                "docker-failed",
                f"could not {what}: {reason}",
                hint=_hint_for(reason),
                detail={"command": argv[:3], "status": done.status, "stderr": done.err[-4000:]},
            )
        return done

    def set_restart(self, name: str, policy: str) -> None:
        """Say when the engine starts a container by itself: ``always``, or ``no`` for never."""
        self.command(["docker", "update", "--restart", policy, "--", name], f"set the restart policy of {name}")

    def start(self, name: str) -> None:
        """Start a container that was created or stopped."""
        self.command(["docker", "start", "--", name], f"start the container {name}")

    def stop(self, name: str, patience: float) -> None:
        """Stop a container; its slots get ``patience`` seconds to finish their requests."""
        seconds = str(max(1, int(patience) + 1))
        self.command(["docker", "stop", "-t", seconds, "--", name], f"stop {name}", timeout=patience + 60)

    def remove(self, name: str) -> None:
        """Remove a container, running or not; one that is not there is fine."""
        if self.container(name) is not None:
            self.command(["docker", "rm", "--force", "--volumes", "--", name], f"remove the container {name}")

    def _inspect(self, kind: str, path: str, name: str) -> Mapping[str, Any] | None:
        if self._socket:
            try:
                return self._ask(path)
            except OSError:
                pass
        done = self._run(["docker", kind, "inspect", "--", name], timeout=30)
        if done.status != 0:
            if "no such" in done.err.lower():
                return None
            raise Refused(
                "engine-unreachable",
                f"the Docker engine does not answer: {done.err.strip()[-300:]}",
                hint="start it (systemctl start docker) and deploy again; what is live was not touched",
            )
        found = json.loads(done.stdout)
        return found[0] if found else None

    def _get(self, path: str) -> Mapping[str, Any] | None:
        try:
            return self._ask(path) if self._socket else None
        except OSError:
            return None

    def _ping(self) -> bytes:
        """The head of the engine's answer; empty when there is none, or it is not well."""
        try:
            head = self._exchange("/_ping")[0] if self._socket else b""
        except OSError:
            return b""
        return head if _status(head) == b"200" else b""

    def _ask(self, path: str) -> Mapping[str, Any] | None:
        """One GET over the engine's socket; None for 404, ``OSError`` for anything that is not an answer."""
        head, body = self._exchange(path)
        if _status(head) == b"404":
            return None
        if _status(head) != b"200":
            raise OSError(f"the engine answered {head[:100]!r}")
        try:
            parsed = json.loads(body)
        except ValueError as error:
            raise OSError(f"the engine's answer is not JSON: {error}") from None
        if not isinstance(parsed, dict):
            raise OSError("the engine's answer is not an object")
        return parsed

    def _exchange(self, path: str) -> tuple[bytes, bytes]:
        """Head and body of the answer to one GET."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(10)
        with connection:
            connection.connect(self._socket)
            connection.sendall(f"GET {path} HTTP/1.0\r\nHost: docker\r\n\r\n".encode("ascii"))
            answer = b""
            while len(answer) < MAX_ANSWER:
                part = connection.recv(65536)
                if not part:
                    break
                answer += part
        head, _, body = answer.partition(b"\r\n\r\n")
        return head, body


def _status(head: bytes) -> bytes:
    return b" ".join(head.split(b" ", 2)[1:2])


def _hint_for(reason: str) -> str:
    """What a person can do about the failures that are met most often. Only shown, never branched on."""
    lowered = reason.lower()
    if "port is already allocated" in lowered or "address already in use" in lowered:
        return "another program has the port: choose another one under `ports:`, or stop that program"
    if "no such image" in lowered or "unable to find image" in lowered:
        return "the image is not on this server: `lightship deploy --kind container` makes it ready"
    if re.search(r'(get|head) "https?://', lowered) and re.search(r"no such host|timeout|refused|unreachable", lowered):
        return (
            "the engine does not reach that registry: check the server's network, or name an image that the server has "
            "(of a Dockerfile from `lightship init`: `image: {args: {BASE_IMAGE: ...}}`)"
        )
    if "cannot connect to the docker daemon" in lowered:
        return "start the engine (systemctl start docker) and deploy again"
    if "no space left" in lowered:
        return "free some disk space on the server (docker system df shows what Docker uses)"
    return ""
