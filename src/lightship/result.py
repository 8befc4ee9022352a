"""What the commands that only look return: frozen values, rendered by ``lightship.output``."""

from __future__ import annotations

from lightship.errors import LightshipError
from lightship.model import Facts, Kind, Plan, Release, short
from lightship_agent.records import dataclass

__all__ = [
    "BuildResult",
    "Drift",
    "ExecResult",
    "PlanResult",
    "ReleasesResult",
    "ServerExec",
    "ServerReleases",
    "ServerStatus",
    "StatusResult",
    "Timing",
    "Wait",
]


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """What one server runs: expected, on disk, and loaded by each worker."""

    server: str
    expected: str | None
    on_disk: str | None
    loaded: tuple[str, ...]
    facts: Facts | None
    error: LightshipError | None = None
    image: str = ""
    """The image of its container: the fingerprint of what it was built from, or its name and what that stands for."""
    environment: str = ""
    """The fingerprint of its variables and secrets."""

    @property
    def problem(self) -> str:  # noqa: PLR0911 - one for each thing that can be wrong
        """What is not as it should be, in words; empty when all is well or nothing was deployed yet."""
        if self.facts is None:
            return self.error.message if self.error is not None else "not reached"
        if self.on_disk is None:
            return f"current names no release, but {short(self.expected)} was deployed last" if self.expected else ""
        if self.facts.container is None:
            return "there is no container"
        if not self.facts.container.running:
            return f"the container does not run ({self.facts.container.status or 'stopped'})"
        if self.facts.web and not self.facts.serving:
            return "no worker says that it serves"
        others = [short(one) for one in self.loaded if one != self.on_disk]
        if others:
            return f"workers run {', '.join(others)} while {short(self.on_disk)} is on disk"
        if self.facts.roles_problem:
            return self.facts.roles_problem
        if self.expected is not None and self.on_disk != self.expected:
            return f"{short(self.on_disk)} is on disk, but {short(self.expected)} was deployed last"
        return self.facts.proxy.problem if self.facts.proxy is not None else ""


@dataclass(frozen=True, slots=True)
class Drift:
    """One thing that differs on one server: ``what`` it is, its ``value`` there, and what it is to be."""

    server: str
    what: str
    value: str
    expected: str


@dataclass(frozen=True, slots=True)
class StatusResult:
    """The service on all its servers. ``head`` is what the branch names now, if the git server could be asked.

    ``expected`` is what the fleet is to run: what most servers had deployed last.
    """

    service: str
    branch: str
    head: str | None
    head_error: str
    servers: tuple[ServerStatus, ...]
    expected: str | None = None
    drift: tuple[Drift, ...] = ()

    @property
    def exit_status(self) -> int:
        """0 when each server runs what it should and all run the same, 3 when none was reached, else 5."""
        if all(one.facts is None for one in self.servers):
            return 3
        differ = len({one.on_disk for one in self.servers}) > 1 or bool(self.drift)
        return 5 if differ or any(one.problem for one in self.servers) else 0


@dataclass(frozen=True, slots=True)
class PlanResult:
    """What a deploy would do on each server."""

    service: str
    ref: str
    commit: str
    subject: str
    kind: Kind
    plans: tuple[tuple[str, Plan], ...]
    source: str = ""
    """How the code comes to the servers: ``pull`` or ``push``; empty where none has to come."""


@dataclass(frozen=True, slots=True)
class BuildResult:
    """The image of a commit: its name, its name by digest if a registry has it, and what had to be done for it."""

    service: str
    ref: str
    commit: str
    subject: str
    server: str
    fingerprint: str
    image: str
    image_id: str
    digest: str
    built: bool
    pushed: bool
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class ServerReleases:
    """The releases that one server has."""

    server: str
    current: str | None
    stable: str | None
    previous: str | None
    releases: tuple[Release, ...]


@dataclass(frozen=True, slots=True)
class ReleasesResult:
    """The releases on each server, newest first."""

    service: str
    servers: tuple[ServerReleases, ...]


@dataclass(frozen=True, slots=True)
class ServerExec:
    """How a command ended on one server; with an error it was not run, or is not known to have ended."""

    server: str
    status: int
    error: LightshipError | None = None


@dataclass(frozen=True, slots=True)
class ExecResult:
    """How a command ended on each server; the worst is the exit status."""

    service: str
    servers: tuple[ServerExec, ...]

    @property
    def exit_status(self) -> int:
        """The first exit status that is not 0."""
        return next((one.status for one in self.servers if one.status), 0)


@dataclass(frozen=True, slots=True)
class Wait:
    """How long a command waited for one thing (``lightship.trace.waits`` lists them)."""

    what: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Timing:
    """Where a command's time went. The waits add up to ``seconds``, from the start of its process to its end."""

    trace: str
    """The id under which ``lightship trace`` shows the whole of it."""
    seconds: float
    waits: tuple[Wait, ...]
    shorter: tuple[str, ...] = ()
    """What would make it shorter, in words; empty when nothing is worth saying."""
