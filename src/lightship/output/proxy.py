"""The proxy as lines of text."""

from __future__ import annotations

import time

from lightship.model import ProxyFacts
from lightship.operations.proxy import ProxyResult, ServerProxy
from lightship.output.text import printable
from lightship.output.words import Line, error_lines

__all__ = ["proxy_lines", "proxy_words"]


def proxy_words(proxy: ProxyFacts) -> str:
    """Where visitors reach the service, in one line."""
    claim = proxy.claim
    where = [f"http {claim.http}"] if claim.http else []
    where += [f"https {claim.https}"] if claim.https else []
    hosts = ", ".join(claim.hosts) or "any host name"
    return printable(f"{proxy.container}: {hosts} on {', '.join(where)}", 300)


def since_words(since: float) -> str:
    """A time as people read it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(since))


def proxy_lines(result: ProxyResult) -> list[Line]:
    """How it is on each server now."""
    lines: list[Line] = []
    for one in result.servers:
        lines += _server(result, one)
    return lines


def _server(result: ProxyResult, one: ServerProxy) -> list[Line]:
    head: Line = [(result.service, "name"), (f" on {printable(one.server, 100)}: ", "")]
    if one.error is not None:
        first, *more = error_lines(one.error)
        return [[*head, *first], *more]
    if result.maintenance is not None:
        on = one.proxy is not None and one.proxy.maintenance is not None
        what = "visitors are turned away (503) with the page" if on else "visitors are let in"
        return [[*head, (what, "warn" if on else "good"), ("" if one.changed else ", as before", "dim")]]
    if one.proxy is None:
        return [[*head, ("the proxy runs; the first deploy leads it to the service", "good")]]
    lines: list[Line] = [[*head, (one.proxy.problem, "bad") if one.proxy.problem else (proxy_words(one.proxy), "")]]
    if one.restarted:
        lines.append([("  the proxy was started anew", "warn")])
    lines += [
        [(f"  {printable(found.path, 200)}: ", ""), (f"until {printable(found.until, 60)}", "dim")]
        for found in one.proxy.certificates
    ]
    return lines
