"""What the server's proxy is to do: the wishes of each service, and the configuration of HAProxy made of them. Pure.

Nothing gets into the text that did not pass an allow-list before (``requests.proxy_claim``), and the text is root's
alone to write; HAProxy itself checks it before it is used (``proxy.Proxy``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from lightship_agent import TYPE_CHECKING
from lightship_agent.errors import Refused
from lightship_agent.records import asdict, dataclass, replace

if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "CONF",
    "RUN",
    "Claim",
    "Entry",
    "backend",
    "binds",
    "digest",
    "refuse_conflicts",
    "render",
]

CONF = "/etc/lightship-proxy"
"""Where the proxy's container reads what is written here."""
RUN = "/run/lightship-proxy"
"""Where it has its sockets."""
DEFAULT_IMAGE = "haproxy:2.6"
RETRY_AFTER = 120
NOWHERE = 1
"""The port of a server that leads nowhere: nothing is ever asked of it."""
_NAME = r"[a-z0-9][a-z0-9-]{0,62}"


@dataclass(frozen=True)
class Claim:
    """What a service wants of the proxy. ``port`` is where it listens inside its container; 0 is "no such port"."""

    hosts: tuple[str, ...] = ()
    address: str = ""
    http: int = 80
    https: int = 0
    certificates: tuple[str, ...] = ()
    redirect: bool = False
    timeout: float = 120.0
    port: int = 8000
    image: str = DEFAULT_IMAGE
    acme_port: int = 0

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Claim:
        """From a file of our own."""
        lists = {name: tuple(map(str, found.get(name) or ())) for name in ("hosts", "certificates")}
        return cls(**{**found, **lists})

    @property
    def ports(self) -> tuple[int, ...]:
        """The server's ports that it wants."""
        return tuple(port for port in (self.http, self.https) if port)


@dataclass(frozen=True)
class Entry:
    """One service as the proxy serves it.

    Its backend has two servers, and ``slot`` says which one is asked: ``ports`` are the ports of this machine's
    loopback that they lead to. ``certificates`` are the copies in ``CONF``, ``page`` the maintenance page's digest.
    """

    service: str
    claim: Claim
    slot: int = 0
    ports: tuple[int, int] = (NOWHERE, NOWHERE)
    instance: int = 0
    certificates: tuple[str, ...] = ()
    maintenance: float | None = None
    page: str = ""

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Entry:
        """From a file of our own."""
        ports = tuple(int(port) for port in found["ports"])
        return cls(
            service=str(found["service"]),
            claim=Claim.from_dict(found["claim"]),
            slot=int(found["slot"]),
            ports=(ports[0], ports[1]),
            instance=int(found["instance"]),
            certificates=tuple(map(str, found["certificates"])),
            maintenance=found.get("maintenance"),
            page=str(found.get("page") or ""),
        )

    def as_dict(self) -> dict[str, Any]:
        """The file's content."""
        return asdict(self)

    @property
    def upstream(self) -> int:
        """The port that is asked."""
        return self.ports[self.slot]

    def leading_to(self, instance: int, port: int) -> Entry:
        """The same, with another container asked: by the server of the backend that is not in use."""
        if self.upstream == port:
            return replace(self, instance=instance)
        other = 1 - self.slot
        ports = (port, self.ports[1]) if other == 0 else (self.ports[0], port)
        return replace(self, slot=other, ports=ports, instance=instance)


def backend(service: str) -> str:
    """The name of a service's backend."""
    return f"service_{service}"


def binds(entries: Sequence[Entry]) -> dict[int, str]:
    """The ports that the proxy listens on, each with the address (empty: all)."""
    return {port: entry.claim.address for entry in entries for port in entry.claim.ports}


def refuse_conflicts(others: Sequence[Entry], service: str, claim: Claim) -> None:
    """Raise ``Refused`` when another service has what this one wants."""
    for other in others:
        if other.service == service:
            continue
        theirs = other.claim
        for port in set(claim.ports) & set(theirs.ports):
            if (port == claim.https) != (port == theirs.https):
                raise _conflict(other, f"port {port}, once with TLS and once without")
            if claim.address != theirs.address:
                raise _conflict(other, f"port {port} on another address ({theirs.address or 'all'})")
            both = set(claim.hosts) & set(theirs.hosts)
            if both:
                raise _conflict(other, f"the host name {sorted(both)[0]} on port {port}")
            if not claim.hosts and not theirs.hosts:
                raise _conflict(other, f"every other host name on port {port}: one of the two has to name its hosts")


def _conflict(other: Entry, what: str) -> Refused:
    return Refused(
        "proxy-conflict",
        f"the service {other.service} on this server has {what}",
        hint="change `proxy` in lightship.yml; nothing was changed here",
    )


def digest(entries: Sequence[Entry], *, ipv6: bool = False) -> str:
    """What a running proxy must have loaded; where its backends lead is told to it while it runs, and no part of it."""
    still = [replace(entry, slot=0, ports=(NOWHERE, NOWHERE), instance=0) for entry in entries]
    import hashlib  # noqa: PLC0415 - it loads OpenSSL, which takes a tenth of an agent's start

    return hashlib.sha256(_text(still, "", ipv6).encode("ascii")).hexdigest()[:16]


def render(entries: Sequence[Entry], *, ipv6: bool = False) -> str:
    """HAProxy's whole configuration."""
    return _text(entries, digest(entries, ipv6=ipv6), ipv6)


def _text(entries: Sequence[Entry], mark: str, ipv6: bool) -> str:
    entries = sorted(entries, key=lambda entry: entry.service)
    for entry in entries:
        if not re.fullmatch(_NAME, entry.service):
            raise ValueError(entry.service)
    lines = ["# Written by lightship from state/ beside this file: changes made here are lost.", *_global(mark)]
    for port in sorted(binds(entries)):
        lines += ["", *_frontend(port, [entry for entry in entries if port in entry.claim.ports], ipv6)]
    for entry in entries:
        lines += ["", *_backend(entry)]
    return "\n".join(lines) + "\n"


def _global(mark: str) -> list[str]:
    return [
        "global",
        f"  description lightship-{mark}",
        "  log stdout format raw local0 notice",
        "  maxconn 4000",
        # Two proxies that listen on one port would share its visitors between them, and nobody would be told.
        "  noreuseport",
        "  user haproxy",
        "  group haproxy",
        f"  stats socket {RUN}/haproxy.sock mode 600 level admin expose-fd listeners",
        "  ssl-default-bind-options ssl-min-ver TLSv1.2",
        "  hard-stop-after 15m",
        "",
        "defaults",
        "  mode http",
        "  timeout connect 5s",
        "  timeout client 60s",
        "  timeout http-request 30s",
        "  timeout http-keep-alive 60s",
        "  timeout queue 30s",
        "  timeout server 120s",
        "  timeout tunnel 1h",
        # A reload closes a visitor's connection with the answer to its next request, and not while it is idle.
        "  option idle-close-on-response",
        # A container that is started again is waited for, a second at a time.
        "  retries 10",
        "",
        # A proxy without any frontend does not start.
        "frontend lightship",
        f"  bind unix@{RUN}/http.sock mode 600",
        "  http-request return status 200 content-type text/plain string lightship",
        "",
        "backend unknown",
        '  http-request return status 404 content-type text/plain string "no service of that name here"',
    ]


def _frontend(port: int, entries: Sequence[Entry], ipv6: bool) -> list[str]:
    secure = any(entry.claim.https == port for entry in entries)
    address = entries[0].claim.address
    where = f"[{address}]" if ":" in address else address
    tls = ""
    if secure:
        files = dict.fromkeys(name for entry in entries for name in entry.certificates)
        tls = " ssl " + " ".join(f"crt {CONF}/certificates/{name}" for name in files) + " alpn h2,http/1.1"
    lines = [f"frontend port_{port}", f"  bind {where}:{port}{tls}"]
    if ipv6 and not address:
        lines.append(f"  bind [::]:{port} v6only{tls}")
    named = sorted({host for entry in entries for host in entry.claim.hosts})
    rules, routes, rest = [], [], "unknown"
    for entry in entries:
        asked = _hosts(entry.claim.hosts) if entry.claim.hosts else (f"!{_hosts(named)}" if named else "")
        if not secure and entry.claim.redirect:
            rules.append(_redirect(entry.claim, asked))
        if not secure and entry.claim.acme_port:
            routes.append(f"  use_backend acme_{entry.service} if {_CHALLENGE} {asked}".rstrip())
        if entry.claim.hosts:
            routes.append(f"  use_backend {backend(entry.service)} if {asked}")
        else:
            rest = backend(entry.service)
    host = "  http-request set-var(txn.host) req.hdr(host),field(1,:),lower"
    return [*lines, host, *rules, *routes, f"  default_backend {rest}"]


_CHALLENGE = "{ path_beg /.well-known/acme-challenge/ }"


def _hosts(names: Sequence[str]) -> str:
    return f"{{ var(txn.host) -m str {' '.join(names)} }}"


def _redirect(claim: Claim, asked: str) -> str:
    """To https, but for what a certificate authority asks for."""
    port = "" if claim.https == 443 else f":{claim.https}"  # noqa: PLR2004 - the one that https has unasked
    target = f"https://%[var(txn.host)]{port}%[pathq]"
    return f"  http-request redirect code 308 location {target} if !{_CHALLENGE} {asked}".rstrip()


def _backend(entry: Entry) -> list[str]:
    claim = entry.claim
    lines = [f"backend {backend(entry.service)}", f"  timeout server {int(claim.timeout * 1000)}ms"]
    if entry.maintenance is None:
        lines += _forwarded()
    else:
        lines.append(
            '  http-request return status 503 content-type "text/html; charset=utf-8" '
            f"file {CONF}/pages/{entry.service}.html hdr Retry-After {RETRY_AFTER} hdr Cache-Control no-store"
        )
        lines.append(f"  # the page {entry.page}")
    for slot in (0, 1):
        disabled = "" if slot == entry.slot else " disabled"
        lines.append(f"  server s{slot} 127.0.0.1:{entry.ports[slot]}{disabled}")
    if claim.acme_port:
        lines += ["", f"backend acme_{entry.service}", f"  server acme 127.0.0.1:{claim.acme_port}"]
    return lines


def _forwarded() -> list[str]:
    return [
        "  http-request set-header X-Forwarded-Proto https if { ssl_fc }",
        "  http-request set-header X-Forwarded-Proto http if !{ ssl_fc }",
        "  http-request set-header X-Forwarded-For %[src]",
        # A request that got no answer because its worker or container ended is sent again, if nothing can come of that.
        "  retry-on conn-failure empty-response",
        "  http-request disable-l7-retry if !METH_GET !{ method HEAD }",
    ]
