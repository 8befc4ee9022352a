"""``lightship setup``: record host keys on a person's yes, and bring servers to ready."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightship.errors import LightshipError, RefusedError, TransportError, UsageError
from lightship.model import Server
from lightship.operations.fleet import at_most
from lightship.plan.setup import Item, ServerPlan, plan_setup
from lightship.transport.shell import Shell, Shells, run_program
from lightship_agent.records import dataclass, replace

__all__ = [
    "HostKey",
    "ServerSetup",
    "SetupOptions",
    "SetupResult",
    "SetupWays",
    "bring_to_ready",
    "find_facts",
    "setup",
]

_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")
_MOST_HOPS = 10
_LOOK_SECONDS, _CHANGE_SECONDS, _PYTHON_SECONDS = 120.0, 2400.0, 1200.0
_VERSION = 'import sys;print();print("%d.%d" % sys.version_info[:2])'
#: For a server without Python: a constant, run by sh. It ends with 3 where it is neither a Debian nor an Ubuntu.
_INSTALL_PYTHON = (
    "command -v apt-get >/dev/null || exit 3; export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8; "
    "apt-get -q -o DPkg::Lock::Timeout=120 update </dev/null && "
    "apt-get -q -y --no-install-recommends -o DPkg::Lock::Timeout=120 install -- python3 ca-certificates </dev/null"
)
_SYSTEM = 'echo; . /etc/os-release; command -v apt-get >/dev/null && apt=apt; echo "$ID|$ID_LIKE|$apt|"'


@dataclass(frozen=True, slots=True)
class HostKey:
    """A host key that was not known."""

    server: str
    host: str
    algorithm: str
    fingerprint: str
    file: str
    recorded: bool = False


@dataclass(frozen=True, slots=True)
class ServerSetup:
    """One server: what was found, what was changed."""

    server: str
    items: tuple[Item, ...] = ()
    changed: int = 0
    error: LightshipError | None = None

    @property
    def ready(self) -> bool:
        """Whether services can be deployed to it."""
        return self.error is None and all(one.state == "ok" for one in self.items)


@dataclass(frozen=True, slots=True)
class SetupResult:
    """What became of the servers."""

    service: str
    dry_run: bool
    host_keys: tuple[HostKey, ...]
    servers: tuple[ServerSetup, ...]
    changed: int

    @property
    def exit_status(self) -> int:
        """0 when all are ready (or were only to be looked at), 3 when nothing was changed, 5 when some of it was."""
        if all(one.error is None if self.dry_run else one.ready for one in self.servers):
            return 0
        return 5 if self.changed else 3


@dataclass(frozen=True, slots=True)
class SetupOptions:
    """What the command line says."""

    dry_run: bool = False
    yes: bool = False
    accept: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for one in self.accept:
            if not _FINGERPRINT.fullmatch(one):
                raise UsageError(
                    f"{one[:100]!r} is no fingerprint",
                    hint="it is SHA256: and 43 characters, as `ssh-keygen -lf FILE` shows it",
                    code="fingerprint",
                )


#: Asks a person; ``None`` where there is nobody to ask.
Confirm = Callable[[str], Awaitable[bool | None]]


@dataclass(frozen=True, slots=True)
class SetupWays:
    """How setup talks with a person."""

    confirm: Confirm
    key: Callable[[HostKey], None]
    plan: Callable[[Sequence[ServerSetup]], None]


@dataclass(frozen=True, slots=True)
class _Found:
    server: Server
    plan: ServerPlan | None = None
    error: LightshipError | None = None

    def result(self) -> ServerSetup:
        return ServerSetup(self.server.name, self.plan.items if self.plan else (), error=self.error)


async def setup(
    service: str, root: str, servers: Sequence[Server], options: SetupOptions, ways: SetupWays
) -> SetupResult:
    """Look at all servers, say what is to change, and change it on a yes."""
    keys: dict[tuple[str, str], HostKey] = {}
    found = await _look(servers, root)
    for _ in range(_MOST_HOPS):
        # Behind a jump host the next unknown key is seen only when the one before it is known.
        unknown = [one.error for one in found if one.error is not None and one.error.code == "host-key-unknown"]
        if not unknown or not await _record(unknown, keys, options, ways):
            break
        again = {one.server.name for one in found if one.error in unknown}
        looked = {one.server.name: one for one in await _look([s for s in servers if s.name in again], root)}
        found = [looked.get(one.server.name, one) for one in found]
    recorded = sum(one.recorded for one in keys.values())
    first = [one.result() for one in found]
    ways.plan(first)
    if options.dry_run or not any(one.plan and one.plan.changes for one in found):
        return SetupResult(service, options.dry_run, tuple(keys.values()), tuple(first), recorded)
    if not await _agreed(options, ways):
        return SetupResult(service, False, tuple(keys.values()), tuple(first), recorded)
    done = await at_most(lambda one: _change(one, root), found)
    return SetupResult(service, False, tuple(keys.values()), tuple(done), recorded + sum(one.changed for one in done))


async def _agreed(options: SetupOptions, ways: SetupWays) -> bool:
    answer = True if options.yes else await ways.confirm("Do this?")
    if answer is None:
        raise RefusedError(
            "there are things to change, and nobody to ask: nothing was changed on a server",
            hint="see them by --dry-run, then say --yes",
            code="setup-confirm",
        )
    return answer


# --- host keys ------------------------------------------------------------------------


async def _record(
    errors: Sequence[LightshipError],
    keys: dict[tuple[str, str], HostKey],
    options: SetupOptions,
    ways: SetupWays,
) -> bool:
    """Show each unknown key once, and record it on a yes; whether one was recorded."""
    any_recorded = False
    for error in errors:
        detail = error.detail
        name = (str(detail["name"]), str(detail["fingerprint"]))
        if name in keys:
            continue
        key = HostKey(
            str(detail["server"]), str(detail["host"]), str(detail["algorithm"]), name[1], str(detail["file"])
        )
        keys[name] = key
        ways.key(key)
        if not options.dry_run and await _accepted(key, options, ways):
            _write(detail)
            keys[name] = replace(key, recorded=True)
            any_recorded = True
    return any_recorded


async def _accepted(key: HostKey, options: SetupOptions, ways: SetupWays) -> bool:
    if options.accept:
        if key.fingerprint in options.accept:
            return True
        raise RefusedError(
            f"{key.server}: its host key is {key.fingerprint}, and --accept-host-key names another one",
            hint="if the named one is from the server itself, somebody stands between; nothing was recorded",
            code="host-key-other",
        )
    if options.yes:
        return True
    answer = await ways.confirm(f"Is {key.fingerprint} the key of {key.server} ({key.host})? Record it?")
    if answer is None:
        raise RefusedError(
            f"{key.server}: its host key {key.fingerprint} is not known, and there is nobody to ask",
            hint="compare it with what `ssh-keygen -lf` says on the server, then: "
            f"lightship setup --accept-host-key {key.fingerprint} (or --yes, which takes what answers)",
            code="host-key-confirm",
        )
    return answer


def _write(detail: Mapping[str, Any]) -> None:
    from lightship.transport.host_keys import record  # noqa: PLC0415

    file = Path(str(detail["file"]))
    try:
        record(file, str(detail["name"]), str(detail["key"]), hashed=bool(detail["hash"]))
    except OSError as error:
        raise RefusedError(
            f"the host key cannot be written to {file}: {error}", hint="make the file writable", code="host-key-record"
        ) from error


# --- looking --------------------------------------------------------------------------


async def _look(servers: Sequence[Server], root: str) -> list[_Found]:
    shells = Shells()

    async def one(server: Server) -> _Found:
        try:
            shell = await shells.open(server)
            try:
                _, facts = await find_facts(shell, root)
            finally:
                await shell.close()
        except LightshipError as error:
            return _Found(server, error=error)
        return _Found(server, plan_setup(facts))

    return await at_most(one, servers)


async def find_facts(shell: Shell, root: str) -> tuple[list[str], dict[str, Any]]:
    """How to become root there, and what is found as root."""
    prefix, facts = await _become_root(shell)
    if facts["uid"] != 0:
        return prefix, facts
    said = await shell.run([*prefix, shell.python, "-I", "-S", "-c", _VERSION])
    if said.status != 0 or not re.fullmatch(r"\d+\.\d+", said.last):
        system = (await shell.run([*prefix, "sh", "-c", _SYSTEM])).last.split("|")
        known = {"id": system[0], "id_like": system[1], "pretty_name": system[0]} if len(system) > 3 else {}  # noqa: PLR2004
        facts |= {"python": None, "looked": False, "os": known, "apt": len(system) > 3 and system[2] == "apt"}  # noqa: PLR2004
        return prefix, facts
    if tuple(map(int, said.last.split("."))) < (3, 9):
        return prefix, facts | {"python": said.last, "looked": False}
    answer = await run_program(shell, prefix, {"do": "look", "root": root}, seconds=_LOOK_SECONDS)
    return prefix, {**answer["facts"], **facts}


async def _become_root(shell: Shell) -> tuple[list[str], dict[str, Any]]:
    """Root as it is, or by sudo: as the agent is started, later."""
    ask = ["sh", "-c", "echo; id -u"]
    wanted = shell.server.sudo
    facts: dict[str, Any] = {"user": shell.user, "sudo": False}
    if wanted or (wanted is None and shell.user != "root"):
        prefix = ["sudo", "-n", "--"]
        ran = await shell.run([*prefix, *ask])
        if ran.status == 0 and ran.last == "0":
            return prefix, facts | {"uid": 0, "sudo": True}
        if wanted:
            return [], facts | {"uid": -1, **_why(shell, ran.status, ran.out, ran.errors)}
        failed = _why(shell, ran.status, ran.out, ran.errors)
    else:
        failed = {}
    plain = await shell.run(ask)
    if plain.status == 0 and plain.last == "0":
        return [], facts | {"uid": 0}
    return [], facts | {"uid": -1, **failed}


def _why(shell: Shell, status: int | None, out: bytes, errors: str) -> dict[str, str]:
    if shell.server.local:
        return {"why": errors.splitlines()[-1][:300] if errors else "not root here", "hint": "run it as root"}
    from lightship.transport.ssh_errors import not_started  # noqa: PLC0415

    error = not_started(shell.server.name, shell.user, status, (out, errors), sudo=True)
    return {"why": error.message.partition(": ")[2] or error.message, "hint": error.hint}


# --- changing -------------------------------------------------------------------------


async def _change(found: _Found, root: str) -> ServerSetup:
    """Do one server's plan. Where Python was missing, the rest of what is missing is seen only after it is there."""
    if found.plan is None or not found.plan.changes:
        return found.result()
    try:
        shell = await Shells().open(found.server)
        try:
            return await bring_to_ready(shell, root, found.plan.items)
        finally:
            await shell.close()
    except LightshipError as error:
        return ServerSetup(found.server.name, found.plan.items, 0, error)


async def bring_to_ready(
    shell: Shell, root: str, items: tuple[Item, ...] = (), *, dry_run: bool = False
) -> ServerSetup:
    """Look at one server and change what it lacks; with ``dry_run`` only say what that is (``changed`` counts it)."""
    changed, name = 0, shell.server.name
    try:
        prefix, facts = await find_facts(shell, root)
        plan = plan_setup(facts)
        if dry_run:
            return ServerSetup(name, plan.items, plan.changes)
        if plan.changes and not facts.get("python"):
            await _install_python(shell, prefix)
            changed += plan.changes
            prefix, facts = await find_facts(shell, root)
            plan = plan_setup(facts)
        if plan.changes:
            items = plan.items
            answer = await run_program(shell, prefix, _request(plan, root), seconds=_CHANGE_SECONDS)
            changed += plan.changes
            user = {"user": facts.get("user"), "sudo": facts.get("sudo")}
            plan = plan_setup({**answer["facts"], **user})
        items = plan.items
        left = sum(one.state == "change" for one in items)
    except LightshipError as error:
        return ServerSetup(name, items, changed, error)
    return ServerSetup(name, items, max(0, changed - left))


def _request(plan: ServerPlan, root: str) -> dict[str, Any]:
    return {
        "do": "change",
        "root": root,
        "packages": list(plan.packages),
        "engine": plan.engine,
        "make_root": plan.make_root,
    }


async def _install_python(shell: Shell, prefix: list[str]) -> None:
    ran = await shell.run([*prefix, "sh", "-c", _INSTALL_PYTHON], seconds=_PYTHON_SECONDS)
    if ran.status != 0:
        output = f"{ran.out.decode('utf-8', 'replace')}\n{ran.errors}".strip()
        raise TransportError(
            f"{shell.server.name}: python3 could not be installed (exit status {ran.status})",
            hint="install it there: apt-get install python3",
            code="setup-step",
            detail={"output": output[-16000:]},
        )
