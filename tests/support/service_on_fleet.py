"""A service on simulated servers: from its configuration to the result of a command."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lightship.operations import deploy as deploys
from lightship.operations import rollback as rollbacks
from lightship.operations.context import Context, load_context
from lightship.operations.deploy import Wanted
from lightship.operations.rolling import Rolling
from lightship.rollout import RolloutResult
from lightship.rollout.events import BatchStarted, Event

from .fleet import NEW, Fault, SimulatedServer, run_virtually

_T = TypeVar("_T")


class Fleet:
    """A service on simulated servers. The container's settings are taken to be those that are configured."""

    def __init__(self, folder: Path, servers: Sequence[SimulatedServer], extra: str = "") -> None:
        self.servers = servers
        self.events: list[Event] = []
        names = ", ".join(one.server for one in servers)
        (folder / "lightship.yml").write_text(
            f"services:\n  shop:\n    repository: /srv/git/shop.git\n    servers: [{names}]\n    app: shop.wsgi:app\n"
            f'    image: "shop:1"\n    {extra}\n'
        )
        self.file = folder / "lightship.yml"
        self.context: Context
        self.choose()

    def choose(self, *names: str) -> None:
        """From now on only these servers are meant, as with `--server`."""
        by_name = {one.server: one for one in self.servers}
        self.context = load_context("shop", self.file, self.events.append, lambda name: by_name[name], only=names)

    def run(self, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        found, _ = run_virtually(work)
        return found

    def deploy(self, commit: str = NEW, **rolling: Any) -> RolloutResult:
        wanted = Wanted(commit=commit, kind="code", rolling=Rolling(**rolling))
        return self.run(lambda: deploys.deploy(self.context, wanted, 0.0))

    def rollback(self, to: str | None = None, **rolling: Any) -> RolloutResult:
        return self.run(lambda: rollbacks.rollback(self.context, to, 0.0, rolling=Rolling(**rolling)))

    @property
    def runs(self) -> list[str | None]:
        return [one.current for one in self.servers]

    @property
    def batches(self) -> list[int]:
        return [len(one.servers) for one in self.events if isinstance(one, BatchStarted)]


def fleet(folder: Path, count: int = 3, extra: str = "", **special: dict[str, Any]) -> Fleet:
    servers = [SimulatedServer(f"web{number}", **special.get(f"web{number}", {})) for number in range(count)]
    return Fleet(folder, servers, extra)


DOWN = {"fault": Fault("open", "cut", down=1e6)}
