"""What is known and what is wanted: frozen values that every other part passes about.

``from_json`` reads what an agent sent and trusts none of it: a wrong shape is a ``TransportError`` that names the
place. Texts are kept as they came; they are made printable where they are shown (``lightship.output``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, cast

from lightship.errors import LightshipError, TransportError
from lightship_agent.records import dataclass, field

__all__ = [
    "Certificate",
    "Change",
    "Commit",
    "Container",
    "Desired",
    "Facts",
    "FileChange",
    "HistoryEntry",
    "Kind",
    "Outcome",
    "Plan",
    "ProxyClaim",
    "ProxyFacts",
    "Release",
    "Role",
    "RoleProcess",
    "Server",
    "ServerResult",
    "Slot",
    "Step",
    "StepTiming",
    "Worker",
    "short",
]

Kind = Literal["nothing", "code", "container", "full"]
Outcome = Literal["done", "nothing", "skipped", "refused", "reverted", "degraded", "aborted"]

_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_LARGEST = 2**63
_T = TypeVar("_T")


def short(commit: str | None) -> str:
    """A commit as people read it; a dash for none."""
    return commit[:7] if commit else "-"


class _Reader:
    """Reads one JSON object key by key and says where a wrong one lies."""

    def __init__(self, data: object, where: str) -> None:
        if not isinstance(data, Mapping):
            raise _wrong(where, "an object", data)
        self._data = cast("Mapping[str, Any]", data)
        self._where = where

    def _at(self, key: str) -> str:
        return f"{self._where}.{key}"

    def _get(self, key: str, kinds: type | tuple[type, ...], what: str, default: Any) -> Any:
        value = self._data.get(key)
        if value is None:
            if default is _REQUIRED:
                raise _wrong(self._at(key), what, None)
            return default
        if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
            raise _wrong(self._at(key), what, value)
        if isinstance(value, (int, float)) and not -_LARGEST <= value <= _LARGEST:  # NaN is not, either
            raise _wrong(self._at(key), f"{what} within reason", value)
        return value

    def text(self, key: str, default: Any = "") -> str:
        return cast("str", self._get(key, str, "a text", default))

    def text_or_none(self, key: str) -> str | None:
        return cast("str | None", self._get(key, str, "a text or null", None))

    def integer(self, key: str, default: Any = 0) -> int:
        return cast("int", self._get(key, int, "a whole number", default))

    def number(self, key: str, default: Any = 0.0) -> float:
        return float(self._get(key, (int, float), "a number", default))

    def flag(self, key: str, default: Any = False) -> bool:
        return cast("bool", self._get(key, bool, "true or false", default))

    def commit(self, key: str) -> str:
        value = self.commit_or_none(key)
        if value is None:
            raise _wrong(self._at(key), "a commit", None)
        return value

    def commit_or_none(self, key: str) -> str | None:
        value = self.text_or_none(key)
        if value is not None and not _COMMIT.fullmatch(value):
            raise _wrong(self._at(key), "a commit (40 or 64 hexadecimal digits)", value)
        return value

    def items(self, key: str, read: Callable[[object, str], _T]) -> tuple[_T, ...]:
        values = self._get(key, list, "a list", [])
        return tuple(read(value, f"{self._at(key)}[{index}]") for index, value in enumerate(values))

    def strings(self, key: str) -> tuple[str, ...]:
        values = self._get(key, list, "a list", [])
        for index, value in enumerate(values):
            if not isinstance(value, str):
                raise _wrong(f"{self._at(key)}[{index}]", "a text", value)
        return tuple(values)

    def object_or_none(self, key: str, read: Callable[[object, str], _T]) -> _T | None:
        value = self._data.get(key)
        return None if value is None else read(value, self._at(key))

    def texts(self, key: str) -> dict[str, str]:
        values = self._get(key, Mapping, "an object", {})
        for name, value in values.items():
            if not isinstance(value, str):
                raise _wrong(f"{self._at(key)}[{str(name)[:100]!r}]", "a text", value)
        return dict(values)

    def mapping(self, key: str, read: Callable[[object, str], _T]) -> dict[str, _T]:
        values = self._get(key, Mapping, "an object", {})
        return {str(name): read(value, f"{self._at(key)}[{str(name)[:100]!r}]") for name, value in values.items()}


_REQUIRED = object()


def _wrong(where: str, what: str, value: object) -> TransportError:
    # Only texts and numbers are written out: a list may be as deep as it likes.
    text = f" {str(value)[:80]!r}" if isinstance(value, (str, int, float)) else ""
    shown = "missing" if value is None else f"{type(value).__name__}{text}"
    return TransportError(
        f"the agent's answer is not understood: {where} is to be {what}, and is {shown}",
        code="protocol",
        hint="the agent and lightship may be of different versions",
    )


@dataclass(frozen=True, slots=True)
class Server:
    """A machine that runs services, as the configuration or an inventory names it. What is ``None`` was not said."""

    name: str
    """What people, results and ``--server`` call it; no two servers of a service have the same."""
    host: str
    """The address, or a name that ``~/.ssh/config`` knows."""
    user: str | None = None
    port: int | None = None
    roles: tuple[str, ...] | None = None
    """The roles that it plays; ``None``: all that the service has."""
    labels: Mapping[str, str] = field(default_factory=dict)
    sudo: bool | None = None
    """Whether the agent runs as root by sudo; ``None``: when the user is not root."""
    key_file: str | None = None
    local: bool = False
    """Whether it is this machine, which is reached without SSH."""


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker process of a slot, as it said itself and as the server confirmed."""

    id: int
    pid: int
    release: str | None
    state: str
    time: float = 0.0

    @classmethod
    def from_json(cls, data: object, where: str = "worker") -> Worker:
        """Read a worker from the agent's JSON."""
        read = _Reader(data, where)
        return cls(
            id=read.integer("id"),
            pid=read.integer("pid"),
            release=read.commit_or_none("release"),
            state=read.text("state", "unknown"),
            time=read.number("time"),
        )


@dataclass(frozen=True, slots=True)
class Slot:
    """One of the two places in an instance where a uWSGI can run."""

    release: str | None
    running: bool
    workers: tuple[Worker, ...] = ()
    generation: str | None = None

    @classmethod
    def from_json(cls, data: object, where: str = "slot") -> Slot:
        """Read a slot from the agent's JSON."""
        read = _Reader(data, where)
        generation = cast("Mapping[str, Any]", data).get("generation")
        return cls(
            release=read.commit_or_none("release"),
            running=read.flag("running"),
            workers=read.items("workers", Worker.from_json),
            generation=None if generation is None else str(generation)[:64],
        )


@dataclass(frozen=True, slots=True)
class RoleProcess:
    """One process of a role that is there, as the server's own kernel confirmed."""

    role: str
    process: int
    pid: int
    release: str | None
    state: str

    @classmethod
    def from_json(cls, data: object, where: str = "process") -> RoleProcess:
        """Read a process from the agent's JSON."""
        read = _Reader(data, where)
        return cls(
            role=read.text("role"),
            process=read.integer("process"),
            pid=read.integer("pid"),
            release=read.commit_or_none("release"),
            state=read.text("state", "unknown"),
        )


@dataclass(frozen=True, slots=True)
class Role:
    """What a role is to run on a server, and what its processes run. ``problem`` is empty when all is as it should."""

    release: str | None
    wanted: int
    processes: tuple[RoleProcess, ...] = ()
    problem: str = ""

    @classmethod
    def from_json(cls, data: object, where: str = "role") -> Role:
        """Read a role from the agent's JSON."""
        read = _Reader(data, where)
        return cls(
            release=read.commit_or_none("release"),
            wanted=read.integer("wanted"),
            processes=read.items("processes", RoleProcess.from_json),
            problem=read.text("problem"),
        )


@dataclass(frozen=True, slots=True)
class Release:
    """One release on a server: an immutable tree named by its commit."""

    commit: str
    created: float = 0.0
    state: str = "prepared"
    why: str = ""
    subject: str = ""
    fingerprint: str = ""
    image_id: str = ""
    """The image that it ran in; empty when that is not known."""

    @classmethod
    def from_json(cls, data: object, where: str = "release") -> Release:
        """Read a release from the agent's JSON."""
        read = _Reader(data, where)
        return cls(
            commit=read.commit("commit"),
            created=read.number("created"),
            state=read.text("state", "prepared"),
            why=read.text("why"),
            subject=read.text("subject"),
            fingerprint=read.text("fingerprint"),
            image_id=read.text("image_id"),
        )


@dataclass(frozen=True, slots=True)
class Container:
    """The service's container on a server."""

    name: str
    id: str = ""
    instance: int = 0
    running: bool = False
    status: str = ""
    started: str = ""
    image: str = ""
    image_id: str = ""
    fingerprint: str = ""
    settings: str = ""
    reload: str = ""

    @classmethod
    def from_json(cls, data: object, where: str = "container") -> Container:
        """Read a container from the agent's JSON."""
        read = _Reader(data, where)
        started = cast("Mapping[str, Any]", data).get("started")
        return cls(
            name=read.text("name"),
            id=read.text("id"),
            instance=read.integer("instance"),
            running=read.flag("running"),
            status=read.text("status"),
            started="" if started is None else str(started)[:64],
            image=read.text("image"),
            image_id=read.text("image_id"),
            fingerprint=read.text("fingerprint"),
            settings=read.text("settings"),
            reload=read.text("reload"),
        )


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate that the proxy has loaded; ``until`` as HAProxy words it, empty when it does not say."""

    path: str
    until: str = ""
    names: str = ""

    @classmethod
    def from_json(cls, data: object, where: str = "certificate") -> Certificate:
        """Read a certificate from the agent's JSON."""
        read = _Reader(data, where)
        return cls(path=read.text("path"), until=read.text("until"), names=read.text("names"))


@dataclass(frozen=True, slots=True)
class ProxyClaim:
    """What a service has of the proxy on a server, as ``proxy`` in lightship.yml says it. 0 is "no such port"."""

    hosts: tuple[str, ...] = ()
    address: str = ""
    http: int = 0
    https: int = 0
    certificates: tuple[str, ...] = ()
    redirect: bool = False
    timeout: float = 0.0
    port: int = 0
    image: str = ""
    acme_port: int = 0

    @classmethod
    def from_json(cls, data: object, where: str = "claim") -> ProxyClaim:
        """Read a claim from the agent's JSON, or from what is sent to it."""
        read = _Reader(data, where)
        return cls(
            hosts=read.strings("hosts"),
            address=read.text("address"),
            http=read.integer("http"),
            https=read.integer("https"),
            certificates=read.strings("certificates"),
            redirect=read.flag("redirect"),
            timeout=read.number("timeout"),
            port=read.integer("port"),
            image=read.text("image"),
            acme_port=read.integer("acme_port"),
        )


@dataclass(frozen=True, slots=True)
class ProxyFacts:
    """The proxy on a server, as it serves this service.

    ``current``: it runs by the configuration that was written. ``leads``: requests go to the container of the instance
    ``leads_to``. ``maintenance`` is since when visitors are turned away.
    """

    container: str
    image: str = ""
    running: bool = False
    current: bool = False
    leads: bool = False
    leads_to: int = 0
    claim: ProxyClaim = field(default_factory=ProxyClaim)
    maintenance: float | None = None
    certificates: tuple[Certificate, ...] = ()

    @classmethod
    def from_json(cls, data: object, where: str = "proxy") -> ProxyFacts:
        """Read what the agent says of the proxy."""
        read = _Reader(data, where)
        since = read.number("maintenance", -1.0)
        return cls(
            container=read.text("container"),
            image=read.text("image"),
            running=read.flag("running"),
            current=read.flag("current"),
            leads=read.flag("leads"),
            leads_to=read.integer("leads_to"),
            claim=read.object_or_none("claim", ProxyClaim.from_json) or ProxyClaim(),
            maintenance=since if since >= 0 else None,
            certificates=read.items("certificates", Certificate.from_json),
        )

    @property
    def problem(self) -> str:
        """What is not as it should be; empty when all is well."""
        if not self.running:
            return f"the proxy {self.container} does not run"
        if not self.current:
            return "the proxy does not run by the configuration that was written"
        return "" if self.leads else "the proxy does not lead to the container that serves"


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One earlier rollout on a server."""

    id: str
    kind: str
    commit: str | None
    outcome: str
    started: float
    seconds: float

    @classmethod
    def from_json(cls, data: object, where: str = "history") -> HistoryEntry:
        """Read a past rollout from the agent's JSON."""
        read = _Reader(data, where)
        return cls(
            id=str(cast("Mapping[str, Any]", data).get("id", ""))[:64],
            kind=read.text("kind"),
            commit=read.commit_or_none("commit"),
            outcome=read.text("outcome"),
            started=read.number("started"),
            seconds=read.number("seconds"),
        )


@dataclass(frozen=True, slots=True)
class Facts:
    """What was observed on one server about one service."""

    hostname: str
    python: str = ""
    docker: str | None = None
    git: str | None = None
    current: str | None = None
    stable: str | None = None
    previous: str | None = None
    releases: tuple[Release, ...] = ()
    container: Container | None = None
    slots: Mapping[str, Slot] = field(default_factory=dict)
    roles: Mapping[str, Role] = field(default_factory=dict)
    free_bytes: int = 0
    free_inodes: int = 0
    history: tuple[HistoryEntry, ...] = ()
    env_digest: str | None = None
    proxy: ProxyFacts | None = None

    @classmethod
    def from_json(cls, data: object, where: str = "facts") -> Facts:
        """Read the facts from the agent's JSON; a wrong shape is a ``TransportError`` that names the place."""
        read = _Reader(data, where)
        disk = read.object_or_none("disk", _disk) or (0, 0)
        return cls(
            hostname=read.text("hostname"),
            python=read.text("python"),
            docker=read.object_or_none("docker", _version),
            git=read.text_or_none("git"),
            current=read.commit_or_none("current"),
            stable=read.commit_or_none("stable"),
            previous=read.commit_or_none("previous"),
            releases=read.items("releases", Release.from_json),
            container=read.object_or_none("container", Container.from_json),
            slots=read.mapping("slots", Slot.from_json),
            roles=read.mapping("roles", Role.from_json),
            free_bytes=disk[0],
            free_inodes=disk[1],
            history=read.items("history", HistoryEntry.from_json),
            env_digest=read.text_or_none("env_digest"),
            proxy=read.object_or_none("proxy", ProxyFacts.from_json),
        )

    def release(self, commit: str | None) -> Release | None:
        """The release of that commit, when the server has it."""
        return next((one for one in self.releases if one.commit == commit), None)

    @property
    def serving(self) -> tuple[Worker, ...]:
        """The workers that take requests now."""
        return tuple(
            worker
            for slot in self.slots.values()
            if slot.running
            for worker in slot.workers
            if worker.state == "serving"
        )

    @property
    def web(self) -> bool:
        """Whether the web role is played here."""
        return self.container is None or self.container.reload != "roles"

    @property
    def processes(self) -> tuple[RoleProcess, ...]:
        """The processes of all roles that are there."""
        return tuple(process for role in self.roles.values() for process in role.processes)

    @property
    def loaded(self) -> tuple[str, ...]:
        """The releases that serving workers and the roles' processes have loaded; one when all is well."""
        found = {worker.release for worker in self.serving} | {process.release for process in self.processes}
        return tuple(sorted(release for release in found if release))

    @property
    def roles_problem(self) -> str:
        """What is wrong with a role, in words; empty when all run as they should."""
        return next((role.problem for role in self.roles.values() if role.problem), "")


def _version(data: object, where: str) -> str:
    return _Reader(data, where).text("version")


def _disk(data: object, where: str) -> tuple[int, int]:
    read = _Reader(data, where)
    return read.integer("free_bytes"), read.integer("free_inodes")


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit in a list: its name and what its author called it."""

    commit: str
    subject: str = ""

    @classmethod
    def from_json(cls, data: object, where: str = "commit") -> Commit:
        """Read a commit from the agent's JSON."""
        read = _Reader(data, where)
        return cls(commit=read.commit("commit"), subject=read.text("subject"))


@dataclass(frozen=True, slots=True)
class FileChange:
    """One file that differs between what is live and what is wanted; status as git says it (A, M, D, R...)."""

    status: str
    path: str

    @classmethod
    def from_json(cls, data: object, where: str = "file") -> FileChange:
        """Read a changed file from the agent's JSON."""
        read = _Reader(data, where)
        return cls(status=read.text("status"), path=read.text("path", _REQUIRED))


@dataclass(frozen=True, slots=True)
class Change:
    """What a commit would change on a server."""

    commit: str
    subject: str = ""
    author: str = ""
    time: float = 0.0
    live: str | None = None
    commits: tuple[Commit, ...] = ()
    count: int = 0
    ahead: bool = True
    files: tuple[FileChange, ...] = ()
    files_count: int = 0
    infra: Mapping[str, str] = field(default_factory=dict)
    infra_live: Mapping[str, str] | None = None
    env_changed: bool = False
    migrations: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, data: object, where: str = "inspect") -> Change:
        """Read the answer of ``inspect``."""
        read = _Reader(data, where)
        live = cast("Mapping[str, Any]", data).get("infra_live")
        return cls(
            commit=read.commit("commit"),
            subject=read.text("subject"),
            author=read.text("author"),
            time=read.number("time"),
            live=read.commit_or_none("live"),
            commits=read.items("commits", Commit.from_json),
            count=read.integer("count"),
            ahead=read.flag("ahead", True),
            files=read.items("files", FileChange.from_json),
            files_count=read.integer("files_count"),
            infra=read.texts("infra"),
            infra_live=None if live is None else read.texts("infra_live"),
            env_changed=read.flag("env_changed"),
            migrations=read.strings("migrations"),
        )

    @property
    def infra_changed(self) -> tuple[str, ...]:
        """The infrastructure files that differ from those of the live release; none when that is not known."""
        if self.infra_live is None:
            return ()
        paths = {*self.infra, *self.infra_live}
        return tuple(sorted(path for path in paths if self.infra.get(path) != self.infra_live.get(path)))

    @property
    def code_changed(self) -> bool:
        """Whether any file differs that is not infrastructure. When the list was cut, the count decides."""
        infra = {*self.infra, *(self.infra_live or {})}
        if self.files_count > len(self.files):
            return self.files_count > len(self.infra_changed)
        return any(one.path not in infra for one in self.files)


@dataclass(frozen=True, slots=True)
class Desired:
    """What the configuration and the commit ask for: the image's inputs and the container's settings, as digests."""

    fingerprint: str
    settings: str
    settings_changed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """One unit of a plan."""

    name: str
    title: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a rollout would do on one server, and why."""

    kind: Kind
    commit: str
    why: tuple[str, ...]
    steps: tuple[Step, ...]
    change: Change
    blocked: str = ""
    expected_seconds: float | None = None
    """How long it is going to take by what rollouts of this kind took here before; ``None`` when there were none."""

    @property
    def nothing_to_do(self) -> bool:
        """Whether the commit is live already, in a container as configured."""
        return self.kind == "nothing"

    @property
    def replaces_container(self) -> bool:
        """Whether a new container takes the place of the old one."""
        return self.kind in ("container", "full")


@dataclass(frozen=True, slots=True)
class StepTiming:
    """How long a step took on a server, and how much was sent there for it, where something was."""

    name: str
    seconds: float
    bytes: int | None = None


@dataclass(frozen=True, slots=True)
class ServerResult:
    """What became of a rollout on one server."""

    server: str
    outcome: Outcome
    kind: Kind
    commit: str | None
    previous: str | None
    running: str | None
    steps: tuple[StepTiming, ...] = ()
    workers: tuple[Worker, ...] = ()
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0
    error: LightshipError | None = None
    processes: tuple[RoleProcess, ...] = ()
    """Those of its roles beside web."""
