"""The proxy of this server: one HAProxy in a container of the host's network, shared by all services under one root.

Its files say all there is to know, so it comes back as it was after a restart of itself, of the engine or of the
machine: ``conf/haproxy.cfg`` is written whole from what each service wants (``state/<service>.json``), one rename at a
time. Where a service's requests go is told to the running proxy by its socket as well, so that no reload is needed;
anything else is a reload, in which the listening sockets are handed on and no request is lost.

``sync`` brings what runs to what the files say; whoever died between the two is finished by whoever comes next.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from lightship_agent import TYPE_CHECKING, proxy_config
from lightship_agent.container import Container, Engine
from lightship_agent.errors import AgentFailure, Refused
from lightship_agent.failpoints import fail_point, register
from lightship_agent.paths import ServicePaths
from lightship_agent.proxy_config import CONF, Claim, Entry, backend
from lightship_agent.proxy_server import (
    LABEL_VERSION,
    container_name,
    create_proxy_command,
    has_ipv6,
    is_free,
    read_certificate,
)
from lightship_agent.proxy_socket import RuntimeSocket
from lightship_agent.records import asdict, dataclass, replace
from lightship_agent.reload import wait_until
from lightship_agent.system import atomic_write, clean_temporaries, make_directory, read_trusted

if TYPE_CHECKING:
    from typing import Any

__all__ = ["FIRST_PORT", "LAST_PORT", "Proxy"]

register(
    proxy__start="the proxy is about to be started",
    proxy__started="the proxy has been started",
    proxy__write="what a service wants of the proxy is about to be written",
    proxy__written="what a service wants of the proxy has been written",
    proxy__configure="the proxy's configuration is about to be put in place",
    proxy__configured="the proxy's configuration has been put in place",
    proxy__reload="the proxy is about to be reloaded",
    proxy__reloaded="the proxy has been reloaded",
    proxy__switch="the proxy is about to be told where a service's requests go",
    proxy__switched="the proxy has been told where a service's requests go",
    proxy__drain="the old container's requests are about to be waited for",
    proxy__drained="the old container's requests are done, or patience with them is",
)

#: Below the ports that Linux takes for outgoing connections (32768 and up).
FIRST_PORT, LAST_PORT = 18000, 19999
_MAX = 1024 * 1024
_READY_SECONDS = 15.0
_TRIES = 3
_PULL_SECONDS = 900.0


@dataclass(frozen=True)
class Proxy:
    """The proxy as one service's agent has it. ``guard`` refuses when the service's lock was taken over."""

    paths: ServicePaths
    engine: Engine
    guard: Callable[[], None]

    # --- files

    @property
    def home(self) -> Path:
        """The proxy's directory."""
        return self.paths.root / ".proxy"

    @property
    def name(self) -> str:
        """Its container."""
        return container_name(self.paths.root)

    @property
    def socket(self) -> RuntimeSocket:
        """Its own word."""
        return RuntimeSocket(self.home / "run")

    def _file(self, service: str) -> Path:
        return self.paths.proxied.with_name(f"{service}.json")

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """The services' agents change the proxy one after the other."""
        make_directory(self.paths.root, 0o755)
        make_directory(self.home, 0o700)
        for name in ("conf", "conf/certificates", "conf/pages", "run", "state"):
            make_directory(self.home / name, 0o700)
        descriptor = os.open(self.home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def entries(self) -> list[Entry]:
        """What each service has of the proxy."""
        folder = self.home / "state"
        names = sorted(path.stem for path in folder.glob("*.json")) if folder.is_dir() else []
        return [entry for entry in map(self._read, names) if entry]

    def entry(self) -> Entry | None:
        """What this service has of it, or None."""
        return self._read(self.paths.service)

    def _read(self, service: str) -> Entry | None:
        data = read_trusted(self._file(service), _MAX)
        if data is None:
            return None
        try:
            return Entry.from_dict(json.loads(data))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise AgentFailure(
                "state-damaged",
                f"{self._file(service)} cannot be read: {error}",
                hint="move it away: the next deploy of that service writes it anew",
            ) from None

    def _write(self, entry: Entry | None) -> None:
        """Keep what this service has of the proxy (None: nothing any more)."""
        self.guard()
        fail_point("proxy.write")
        if entry is None:
            self._file(self.paths.service).unlink(missing_ok=True)
        else:
            atomic_write(self._file(self.paths.service), json.dumps(entry.as_dict()).encode(), 0o600)
        fail_point("proxy.written")

    # --- before anything is changed

    def require(self, claim: Claim, held: Sequence[int] = ()) -> None:
        """Refuse what cannot be had, before anything is changed. ``held`` are ports of the service's own container."""
        entries = self.entries()
        proxy_config.refuse_conflicts(entries, self.paths.service, claim)
        has = set(proxy_config.binds(entries)) if self._running() else set()
        for port in claim.ports:
            if port not in has and port not in held and not is_free(claim.address, port):
                raise Refused(
                    "proxy-port",
                    f"port {port} of this server is taken by another program, and the proxy needs it",
                    hint=f"see which: ss -ltnp 'sport = :{port}'; stop it, or give the proxy other ports (proxy.http, "
                    "proxy.https)",
                )
        for path in claim.certificates:
            read_certificate(path)
        found = self.engine.container(self.name)
        if found is None and self.engine.image_id(claim.image) is None:
            self._pull(claim.image)

    def _pull(self, image: str) -> None:
        try:
            command = ["docker", "pull", "--quiet", "--", image]
            self.engine.command(command, f"pull {image}", timeout=_PULL_SECONDS, inherit=())
        except AgentFailure as error:
            raise Refused(
                "proxy-image",
                f"the proxy's image {image} is not on this server, and cannot be pulled: {error.message}",
                hint="build one of that name (docs/how-to/proxy.md has the four lines), or name another as proxy.image",
                detail=error.detail,
            ) from error

    def choose_port(self) -> int:
        """A port of the loopback for the next container: nobody has it, nor will when a stopped one starts."""
        taken = {port for entry in self.entries() for port in entry.ports} | self._published()
        # Each service begins at a place of its own: two that are deployed at once do not choose the same.
        count = LAST_PORT + 1 - FIRST_PORT
        start = int(hashlib.sha256(self.paths.service.encode()).hexdigest(), 16) % count
        for port in (FIRST_PORT + (start + offset) % count for offset in range(count)):
            if port not in taken and is_free("127.0.0.1", port):
                return port
        raise Refused("no-port", f"no port from {FIRST_PORT} to {LAST_PORT} is free on this server")

    def _published(self) -> set[int]:
        """What containers behind the proxy publish, those of stopped ones too."""
        listed = self.engine.command(
            ["docker", "ps", "--all", "--quiet", "--no-trunc", "--filter", "label=lightship.service"],
            "list the containers",
        ).out.split()
        found = (self.engine.container(name) for name in listed)
        return {port for port in (each.published() for each in found if each) if port}

    # --- changing

    def run(self, image: str) -> None:
        """Have the proxy run. Nothing of what it does is changed."""
        if self._running():
            return
        with self._alone():
            self._sync(image)

    def leads_to(self, port: int | None) -> bool:
        """Whether the running proxy asks that port for this service, and none else."""
        return port is not None and self.socket.asked_port(backend(self.paths.service)) == port

    def claim(self, claim: Claim, instance: int, port: int) -> None:
        """Give the service what it wants of the proxy, with its requests going to that container."""
        with self._alone():
            before = self._read(self.paths.service)
            proxy_config.refuse_conflicts(self.entries(), self.paths.service, claim)
            entry = before or Entry(self.paths.service, claim)
            names = tuple(self._keep_certificate(path) for path in claim.certificates)
            entry = replace(entry, claim=claim, certificates=names).leading_to(instance, port)
            if entry != before:
                self._write(entry)
            try:
                self._sync()
            except AgentFailure:
                # What the proxy does not take is not left for it, nor for the other services, to stumble over.
                self._write(before)
                with contextlib.suppress(AgentFailure):
                    self._sync()
                raise

    def lead(self, instance: int, port: int) -> None:
        """Have the service's requests go to that container."""
        with self._alone():
            before = self._read(self.paths.service)
            if before is None:
                raise AgentFailure("proxy-unknown", "the proxy knows nothing of this service", hint="deploy it again")
            entry = before.leading_to(instance, port)
            if entry != before:
                self._write(entry)
            self._sync()

    def put_back(self, found: Mapping[str, Any] | None) -> None:
        """What the service had of the proxy at an earlier time (None: nothing)."""
        with self._alone():
            now = self._read(self.paths.service)
            wanted = Entry.from_dict(found) if found else None
            if wanted is not None and now is not None:
                # Who turned maintenance on or off meanwhile meant it. The backend's servers stay where they are.
                same = replace(now, claim=wanted.claim, certificates=wanted.certificates)
                wanted = same.leading_to(wanted.instance, wanted.upstream)
            if wanted != now:
                self._write(wanted)
            if wanted is not None or (self.home / "conf" / "haproxy.cfg").exists():
                self._sync()

    def sync(self) -> None:
        """Bring what runs to what the files say."""
        with self._alone():
            self._sync()

    def restart(self, image: str) -> bool:
        """Replace the proxy's container when it is not as it should be; whether that was done. Visitors notice."""
        with self._alone():
            found = self.engine.container(self.name)
            wanted = create_proxy_command(self.paths.root, image)
            if found is None or f"{LABEL_VERSION}={found.labels.get(LABEL_VERSION)}" in wanted:
                return False
            if self.engine.image_id(image) is None:
                self._pull(image)
            self.guard()
            self.engine.remove(self.name)
            self._sync()
            return True

    def maintenance(self, since: float | None, page: str) -> None:
        """Turn every visitor away with a page, or (``since`` None) let them in again."""
        if self.entry() is None:
            raise Refused(
                "no-proxy",
                "the proxy does not serve this service yet, and without it there is nobody to show the page",
                hint="deploy it with `proxy` in lightship.yml first",
            )
        with self._alone():
            before = self._read(self.paths.service)
            if before is None:
                raise Refused("no-proxy", "the service has just left the proxy")
            mark = ""
            if since is not None:
                data = page.encode()
                mark = hashlib.sha256(data).hexdigest()[:16]
                atomic_write(self.home / "conf" / "pages" / f"{self.paths.service}.html", data, 0o600)
            self._write(replace(before, maintenance=since, page=mark))
            self._sync()

    def drain(self, entry_before: Mapping[str, Any] | None, patience: float) -> bool:
        """Wait until the server that was asked before has no request any more; False when patience ended first."""
        entry = self.entry()
        if entry_before is None or entry is None or entry.slot == Entry.from_dict(entry_before).slot:
            return True
        fail_point("proxy.drain")
        deadline = time.monotonic() + patience
        quiet = False
        while not quiet and time.monotonic() < deadline:
            quiet = not self.socket.requests_at(backend(self.paths.service), f"s{1 - entry.slot}")
            if not quiet:
                time.sleep(0.05)
        fail_point("proxy.drained")
        return quiet

    # --- files to what runs, always within _alone

    def _sync(self, image: str = "") -> None:
        entries = self.entries()
        text = proxy_config.render(entries, ipv6=has_ipv6())
        path = self.home / "conf" / "haproxy.cfg"
        before = read_trusted(path, _MAX)
        container = self.engine.container(self.name)
        running = container is not None and container.running
        wanted = _digest(entries)
        reload = not running or self.socket.loaded() != wanted
        if before != text.encode():
            if reload and running:
                self._check(text)
            self.guard()
            fail_point("proxy.configure")
            atomic_write(path, text.encode(), 0o600)
            fail_point("proxy.configured")
        if not entries and container is None and not image:
            return
        if not running:
            self._start(container, entries, before, image)
        elif reload:
            self._reload(wanted, before)
        self._lead(entries)
        self._tidy(entries)

    def _check(self, text: str) -> None:
        """Have HAProxy look at a configuration before it is put in place."""
        candidate = self.home / "conf" / "candidate.cfg"
        atomic_write(candidate, text.encode(), 0o600, durable=False)
        try:
            command = ["docker", "exec", self.name, "haproxy", "-c", "-f", f"{CONF}/candidate.cfg"]
            self.engine.command(command, "have HAProxy check its configuration")
        except AgentFailure as error:
            raise AgentFailure(
                "proxy-config",
                f"HAProxy does not take the configuration: {error.message}",
                hint="what is live was not touched; of a certificate see that it is whole and its key fits",
                detail=error.detail,
            ) from error
        finally:
            candidate.unlink(missing_ok=True)

    def _start(self, container: Container | None, entries: Sequence[Entry], before: bytes | None, image: str) -> None:
        self.guard()
        fail_point("proxy.start")
        if container is None:
            own = self.entry()
            image = image or (own or entries[0]).claim.image
            self.engine.command(create_proxy_command(self.paths.root, image), "create the proxy")
        self.engine.start(self.name)
        fail_point("proxy.started")
        self._await(_digest(entries), before)

    def _reload(self, wanted: str, before: bytes | None) -> None:
        self.guard()
        fail_point("proxy.reload")
        # Not by `docker kill --signal`: the engine takes any signal that is sent so for somebody's wish to end the
        # container, and does not start it again should it end later (moby: ``killWithSignal``, ``ExitOnNext``).
        for _ in range(_TRIES):
            self.socket.reload()
            if wait_until(lambda: self.socket.loaded() == wanted, _READY_SECONDS / _TRIES):
                break
        self._await(wanted, before, 0.0)
        fail_point("proxy.reloaded")

    def _await(self, wanted: str, before: bytes | None, seconds: float = _READY_SECONDS) -> None:
        """Wait until the proxy runs by the configuration that was written; the one before it is put back if not."""
        if not wait_until(lambda: self.socket.loaded() == wanted, seconds):
            log = self.engine.command(["docker", "logs", "--tail", "30", self.name], "read the proxy's log")
            lines = [line for line in (log.err + log.out).splitlines() if "ALERT" in line or "cannot" in line]
            if before is not None:
                atomic_write(self.home / "conf" / "haproxy.cfg", before, 0o600)
            raise AgentFailure(
                "proxy-config",
                f"the proxy does not take its configuration: {lines[-1][:300] if lines else 'it says nothing'}",
                hint=f"see what it says: docker logs {self.name}",
                detail={"log": (log.out + log.err)[-4000:]},
            )

    def _lead(self, entries: Sequence[Entry]) -> None:
        """Tell the running proxy where requests go, for each service where it is not so already."""
        for entry in entries:
            name = backend(entry.service)
            if self.socket.asked_port(name) == entry.upstream:
                continue
            self.guard()
            fail_point("proxy.switch")
            new, old = f"{name}/s{entry.slot}", f"{name}/s{1 - entry.slot}"
            self.socket.tell(
                f"set server {new} addr 127.0.0.1 port {entry.upstream}",
                f"set server {new} state ready",
                f"set server {old} state drain",
            )
            fail_point("proxy.switched")

    def _tidy(self, entries: Sequence[Entry]) -> None:
        """Remove certificates and pages that nobody needs, and what a killed agent left half written."""
        needed = {name for entry in entries for name in entry.certificates}
        needed |= {f"{entry.service}.html" for entry in entries if entry.maintenance is not None}
        for folder in (self.home / "conf" / "certificates", self.home / "conf" / "pages"):
            for path in folder.iterdir():
                if path.name not in needed:
                    path.unlink(missing_ok=True)
        for folder in (self.home / "conf", self.home / "state"):
            clean_temporaries(folder)

    def _keep_certificate(self, path: str) -> str:
        """Copy a certificate with its key to where the proxy reads it; the copy's name is that of its content."""
        data = read_certificate(path)
        name = f"{hashlib.sha256(data).hexdigest()[:20]}.pem"
        kept = self.home / "conf" / "certificates" / name
        if not kept.exists():
            atomic_write(kept, data, 0o600)
        return name

    def _running(self) -> bool:
        found = self.engine.container(self.name)
        return found is not None and found.running

    # --- looking

    def facts(self) -> dict[str, Any] | None:
        """What the proxy does for this service; None when that is nothing."""
        entry = self.entry()
        if entry is None:
            return None
        found = self.engine.container(self.name)
        running = found is not None and found.running
        loaded = self.socket.loaded() if running else None
        certificates = {one["file"]: one for one in self.socket.certificates()} if running and entry.claim.https else {}
        return {
            "container": self.name,
            "image": found.image if found else "",
            "running": running,
            "current": loaded == _digest(self.entries()),
            "leads_to": entry.instance,
            "leads": self.socket.asked_port(backend(entry.service)) == entry.upstream if running else False,
            "claim": {**_listed(entry.claim), "image": entry.claim.image},
            "maintenance": entry.maintenance,
            "certificates": [
                {"path": path, "until": certificates.get(name, {}).get("until", ""),
                 "names": certificates.get(name, {}).get("names", "")}
                for path, name in zip(entry.claim.certificates, entry.certificates)  # noqa: B905 - strict= is newer than 3.9
            ],
        }  # fmt: skip


def _digest(entries: Sequence[Entry]) -> str:
    return proxy_config.digest(entries, ipv6=has_ipv6())


def _listed(claim: Claim) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(asdict(claim)))
    return found
