"""Where a service's files lie, on the server and inside its container. Names only: nothing here touches the disk,
except ``ServicePaths.at``."""

from __future__ import annotations

from pathlib import Path

from lightship_agent.names import valid_commit, valid_service
from lightship_agent.records import dataclass

__all__ = ["CONTAINER_CODE", "CONTAINER_RUN", "CONTAINER_SHARED", "DEFAULT_ROOT", "ServicePaths"]

DEFAULT_ROOT = "/srv/lightship"
CONTAINER_CODE = "/srv/lightship/code"
CONTAINER_RUN = "/srv/lightship/run"
CONTAINER_SHARED = "/srv/lightship/shared"


@dataclass(frozen=True)
class ServicePaths:
    """The places of one service under ``root``.

    ``root`` must hold no symbolic links (``at`` resolves them): files of the container are opened without following
    any, from the top of the path on.
    """

    root: Path
    service: str

    def __post_init__(self) -> None:
        valid_service(self.service)
        if not self.root.is_absolute() or ".." in self.root.parts:
            raise ValueError(f"the root must be an absolute path: {self.root}")

    @classmethod
    def at(cls, root: str, service: str) -> ServicePaths:
        """The paths under ``root``, whose own links (the administrator's) are resolved."""
        return cls(Path(root).resolve(), service)

    @property
    def home(self) -> Path:
        """The service's directory."""
        return self.root / self.service

    @property
    def proxied(self) -> Path:
        """What the service has of this server's proxy; it is there only if that is anything."""
        return self.root / ".proxy" / "state" / f"{self.service}.json"

    @property
    def repo(self) -> Path:
        """The bare mirror of the git repository."""
        return self.home / "repo.git"

    @property
    def env(self) -> Path:
        """The container's --env-file."""
        return self.home / "env"

    @property
    def shared(self) -> Path:
        """Uploads and media; the container writes here."""
        return self.home / "shared"

    @property
    def state(self) -> Path:
        """What only the agent reads and writes."""
        return self.home / "state"

    @property
    def secret_names(self) -> Path:
        """Which of the container's variables are secrets: their names."""
        return self.state / "secrets"

    @property
    def lock(self) -> Path:
        """The file whose flock is the service's lock."""
        return self.state / "lock"

    @property
    def fence(self) -> Path:
        """The number of times the lock was taken."""
        return self.state / "fence"

    @property
    def journal(self) -> Path:
        """What the rollout under way has begun and done."""
        return self.state / "journal"

    @property
    def history(self) -> Path:
        """The rollouts that ended."""
        return self.state / "history.jsonl"

    @property
    def traces(self) -> Path:
        """Where the time of the last rollouts went, a file each."""
        return self.state / "traces"

    @property
    def images(self) -> Path:
        """The names of the images that are here because lightship pulled them."""
        return self.state / "images.json"

    @property
    def release_files(self) -> Path:
        """Where it is written down what each release is."""
        return self.state / "releases"

    def release_file(self, commit: str) -> Path:
        """What is written down of one release."""
        return self.release_files / f"{valid_commit(commit)}.json"

    @property
    def code(self) -> Path:
        """What the container sees, read-only, at CONTAINER_CODE."""
        return self.home / "code"

    @property
    def boot(self) -> Path:
        """The runtime's own files."""
        return self.code / "boot"

    @property
    def releases(self) -> Path:
        """The complete trees."""
        return self.code / "releases"

    def release(self, commit: str) -> Path:
        """The tree of one release."""
        return self.releases / valid_commit(commit)

    def making(self, commit: str) -> Path:
        """Where the tree of a release is made before it gets its name."""
        return self.releases / f".making-{valid_commit(commit)}"

    @property
    def current(self) -> Path:
        """The link whose renaming is the flip."""
        return self.code / "current"

    @property
    def reload(self) -> Path:
        """The file that `touch` and `chain` images watch."""
        return self.code / "reload"

    @property
    def instances(self) -> Path:
        """What the slots of each instance are to run."""
        return self.code / "instances"

    def instance_file(self, number: int) -> Path:
        """What the slots of one instance are to run."""
        return self.instances / f"{int(number)}.json"

    def instance_conf(self, number: int) -> Path:
        """What Supervisor is to run for the roles of one instance."""
        return self.instances / f"{int(number)}.conf"

    def closed(self, number: int) -> Path:
        """The file that closes the gate of a whole instance while it lies there: its workers take no new request."""
        return self.code / f"closed-{int(number)}"

    def opened(self, number: int) -> Path:
        """The file that opens the gate of one instance for the release it names, whatever ``current`` names."""
        return self.code / f"opened-{int(number)}"

    @property
    def runs(self) -> Path:
        """Over the directories of the instances."""
        return self.home / "run"

    def run(self, number: int) -> Path:
        """What one instance says of itself; the container writes here."""
        return self.runs / str(int(number))

    def roles(self, number: int) -> Path:
        """What the keeper of one instance's roles, and their processes, say."""
        return self.run(number) / "roles"

    def slot(self, number: int, slot: int) -> Path:
        """What one slot of an instance says of itself."""
        return self.run(number) / "slots" / str(int(slot))
