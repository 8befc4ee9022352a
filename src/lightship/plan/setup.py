"""What a server lacks to be ready: from what was found there, the plan of ``lightship setup``. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from lightship_agent.records import dataclass, field

__all__ = ["OLDEST_PYTHON", "Item", "ServerPlan", "State", "plan_setup"]

#: ``ok``: as it should be. ``change``: setup puts it right. ``person``: only somebody there can.
State = Literal["ok", "change", "person"]

OLDEST_PYTHON = (3, 9)
_FAMILY = ("debian", "ubuntu")
_ROOT_MODE = 0o755


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that a server needs."""

    name: str
    state: State
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class ServerPlan:
    """The items, and what is to be done for those that change."""

    items: tuple[Item, ...]
    packages: tuple[str, ...] = ()
    engine: bool = False
    make_root: bool = False

    @property
    def changes(self) -> int:
        """How many items change."""
        return sum(one.state == "change" for one in self.items)

    @property
    def ready(self) -> bool:
        """Whether nothing is left to do, for setup or for a person."""
        return all(one.state == "ok" for one in self.items)


@dataclass(slots=True)
class _Making:
    """A plan as it grows."""

    facts: Mapping[str, Any]
    items: list[Item] = field(default_factory=list)
    packages: list[str] = field(default_factory=list)

    @property
    def apt(self) -> bool:
        """Whether it is a Debian or Ubuntu (or one that says it is like them), with apt."""
        system = self.facts.get("os") or {}
        names = {str(system.get("id", "")), *str(system.get("id_like", "")).split()}
        return bool(self.facts.get("apt")) and bool(names & set(_FAMILY))

    @property
    def system(self) -> str:
        system = self.facts.get("os") or {}
        return str(system.get("pretty_name") or system.get("id") or "an unknown system")

    def ok(self, name: str, message: str) -> None:
        self.items.append(Item(name, "ok", message))

    def person(self, name: str, message: str, hint: str) -> None:
        self.items.append(Item(name, "person", message, hint))

    def change(self, name: str, message: str) -> None:
        self.items.append(Item(name, "change", message))

    def package(self, name: str, package: str) -> None:
        if self.apt:
            self.packages.append(package)
            self.change(name, f"not there: install the package {package}")
        else:
            self.person(name, "not there", f"install it: {self.system} is neither Debian nor Ubuntu, so setup does not")


def plan_setup(facts: Mapping[str, Any]) -> ServerPlan:
    """The plan for a server. ``facts`` is what ``lightship_agent.setup`` found, with ``sudo`` and perhaps no Python."""
    making = _Making(facts)
    if facts.get("uid") != 0:
        making.person("root", str(facts.get("why") or "not root there"), str(facts.get("hint") or "log in as root"))
        return ServerPlan(tuple(making.items))
    making.ok("root", f"{facts.get('user')}, by sudo" if facts.get("sudo") else "root")
    making.ok("system", making.system)
    if not _python(making):
        return ServerPlan(tuple(making.items), tuple(making.packages))
    if facts.get("looked") is False:
        # Without Python nothing more could be seen; the second look, after it was installed, sees the rest.
        return ServerPlan(tuple(making.items), tuple(making.packages))
    _one_package(making, "git", "git", facts.get("git"))
    _one_package(making, "certificates", "ca-certificates", "there" if facts.get("certificates") else None)
    start = _docker(making)
    make_root = _root(making, facts.get("root") or {})
    return ServerPlan(tuple(making.items), tuple(making.packages), start, make_root)


def _python(making: _Making) -> bool:
    version = making.facts.get("python")
    if not version:
        making.package("python3", "python3")
        return False
    parts = tuple(int(part) for part in str(version).split(".")[:2] if part.isdigit())
    oldest = ".".join(map(str, OLDEST_PYTHON))
    if parts < OLDEST_PYTHON:
        making.person(
            "python3",
            f"{version}, and {oldest} or later is needed",
            "install a newer one as python3 on the PATH of the login: Debian 11 and Ubuntu 22.04 have one",
        )
        return False
    making.ok("python3", str(version))
    return True


def _one_package(making: _Making, name: str, package: str, found: object) -> None:
    if found:
        making.ok(name, str(found))
    else:
        making.package(name, package)


def _docker(making: _Making) -> bool:
    """The command and the engine; whether the engine is to be started."""
    facts = making.facts
    _one_package(making, "docker", "docker.io", facts.get("docker"))
    engine = facts.get("engine") or {}
    if engine.get("version"):
        if facts.get("enabled") is False:
            making.change("engine", f"{engine['version']} answers, but is not started with the machine: enable it")
            return True
        making.ok("engine", f"{engine['version']} answers")
        return False
    if facts.get("systemd") and (facts.get("docker") or making.apt):
        making.change("engine", "does not answer: start it, and with the machine from now on (systemctl enable --now)")
        return True
    why = "does not answer, and no systemd runs there to start it by"
    making.person("engine", why, "start dockerd the way that this machine starts services, then run setup again")
    return False


def _root(making: _Making, root: Mapping[str, Any]) -> bool:
    path, kind = root.get("path"), root.get("kind")
    if kind == "none":
        making.change("directory", f"{path} is not there: make it, of root, mode 0755")
        return True
    if kind != "directory":
        what = "a symbolic link" if kind == "link" else "not a directory"
        making.person("directory", f"{path} is {what}", f"move it away, or name another directory (root: {path})")
        return False
    owner, mode = (root.get("uid"), root.get("gid")), int(root.get("mode", 0))
    shown = f"{path} of {owner[0]}:{owner[1]}, mode {mode:04o}"
    if owner == (0, 0) and mode == _ROOT_MODE:
        making.ok("directory", shown)
        return False
    making.change("directory", f"{shown}: give it to root (0:0), mode 0755")
    return True
