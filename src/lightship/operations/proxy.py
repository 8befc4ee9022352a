"""The proxy on a service's servers: bring it in line with the configuration, and turn visitors away for a while."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightship.errors import ConfigurationError, LightshipError, RefusedError, UsageError
from lightship.model import ProxyFacts
from lightship.operations.context import Context
from lightship.operations.fleet import at_most
from lightship.operations.requests import proxy_args
from lightship.plan.setup import Item
from lightship.rollout import Session
from lightship_agent.records import dataclass, replace

if TYPE_CHECKING:
    from lightship.operations.setup import ServerSetup, SetupResult

__all__ = ["ProxyResult", "ServerProxy", "apply_proxy", "maintenance", "maintenance_page", "prepared", "read_page"]

MAX_PAGE = 200_000
_LOCK_SECONDS = 60.0
_PAGE = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex"><title>Back soon</title>
<style>body {{ font: 1.1rem/1.5 system-ui, sans-serif; max-width: 34rem; margin: 20vh auto 0; padding: 0 1rem;
color: #222; background: #fff }} @media (prefers-color-scheme: dark) {{ body {{ color: #ddd; background: #161616 }} }}
</style></head><body><h1>Back soon</h1><p>{message}</p></body></html>
"""
_MESSAGE = "We are working on this site. Please try again in a few minutes."


@dataclass(frozen=True, slots=True)
class ServerProxy:
    """The proxy on one server, and whether the command changed it."""

    server: str
    changed: bool = False
    restarted: bool = False
    proxy: ProxyFacts | None = None
    error: LightshipError | None = None


@dataclass(frozen=True, slots=True)
class ProxyResult:
    """The proxy on each server. ``maintenance`` is what it was to be, ``None`` when that was not the question."""

    service: str
    servers: tuple[ServerProxy, ...]
    maintenance: bool | None = None

    @property
    def exit_status(self) -> int:
        """0 when it is so on all servers, 3 when on none, else 5."""
        failed = sum(one.error is not None for one in self.servers)
        return 0 if not failed else 3 if failed == len(self.servers) else 5


def maintenance_page(message: str = "") -> str:
    """The page that is shown when nobody has one of their own."""
    return _PAGE.format(message=html.escape(message or _MESSAGE))


def read_page(path: Path) -> str:
    """A page of one's own, from a file on this machine."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(f"the page {path} cannot be read: {reason}", code="page") from error
    if not text.strip() or len(text) > MAX_PAGE:
        what = "is empty" if not text.strip() else f"has more than {MAX_PAGE} characters"
        raise UsageError(f"the page {path} {what}", hint="one HTML file; its images and styles go into it", code="page")
    return text


async def maintenance(context: Context, on: bool, page: str) -> ProxyResult:
    """Turn visitors away with a page on each server, or let them in again. Deploys go on behind it."""
    _require_proxy(context, "there is nobody to show the page to visitors")
    args = {"on": on, "page": page if on else ""}
    servers = await at_most(lambda name: _one(context, name, "maintenance", args, lock=False), _behind(context))
    return ProxyResult(context.service.name, tuple(servers), on)


async def apply_proxy(context: Context) -> ProxyResult:
    """Bring the proxy on each server in line with lightship.yml: its names, ports, certificates and image."""
    _require_proxy(context, "there is no proxy to bring in line")
    args = {"claim": proxy_args(context.service)}
    servers = await at_most(lambda name: _one(context, name, "proxy", args, lock=True), _behind(context))
    return ProxyResult(context.service.name, tuple(servers))


async def prepared(context: Context, result: SetupResult) -> SetupResult:
    """What ``setup`` did, and after it the proxy on the servers that are ready, when the service has one."""
    if context.service.behind is None or result.dry_run or not any(one.ready for one in result.servers):
        return result
    args = {"claim": proxy_args(context.service)}

    async def one(server: ServerSetup) -> ServerSetup:
        if not server.ready or server.server not in _behind(context):
            return server
        done = await _one(context, server.server, "proxy", args, lock=True)
        if done.error is not None:
            item = Item("proxy", "person", done.error.message, done.error.hint)
        else:
            item = Item("proxy", "ok", "runs")
        return replace(server, items=(*server.items, item), changed=server.changed + done.changed)

    servers = await at_most(one, result.servers)
    more = sum(one.changed for one in servers) - sum(one.changed for one in result.servers)
    return replace(result, servers=tuple(servers), changed=result.changed + more)


def _behind(context: Context) -> list[str]:
    """The servers that play the web role: on others there is nobody to lead visitors to."""
    return [name for name in context.names if context.service_on(name).behind is not None]


def _require_proxy(context: Context, consequence: str) -> None:
    if context.service.behind is None:
        raise RefusedError(
            f"{context.service.name} has no proxy (`proxy: none`): {consequence}",
            hint="docs/how-to/proxy.md says how to have one; nothing was changed",
            code="no-proxy",
        )


async def _one(context: Context, server: str, op: str, args: Mapping[str, Any], *, lock: bool) -> ServerProxy:
    hello = context.hello(why=op, lock=lock, wait=_LOCK_SECONDS if lock else 0.0)
    session = Session(context.connect(server), hello, context.emit)
    try:
        await session.open()
        try:
            answer = await session.call(op, args)
            await session.bye()
        finally:
            await session.close()
    except ConfigurationError:
        raise
    except LightshipError as error:
        return ServerProxy(server, error=error)
    found = answer.get("proxy")
    return ServerProxy(
        server,
        bool(answer.get("changed")),
        bool(answer.get("restarted")),
        None if found is None else ProxyFacts.from_json(found),
    )
