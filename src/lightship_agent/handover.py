"""One container takes the place of another behind the proxy: there is no moment in which nobody serves.

The new container serves beside the old one (``opened-<n>`` opens the gate of either, whatever ``current`` names), is
proven by a request of its own, and only then does the proxy lead to it. The old one finishes what it has; it goes when
the release is stable, so the way back is the same switch the other way.

A service that comes to the proxy, or leaves it, changes who owns its ports: there the old container (or the proxy) has
to let go before the other can take over, and for that long nobody serves.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from lightship_agent import TYPE_CHECKING
from lightship_agent import release as releases
from lightship_agent.container import Container
from lightship_agent.errors import AgentFailure, Refused
from lightship_agent.failpoints import fail_point, register
from lightship_agent.health import wait_healthy
from lightship_agent.instance import require
from lightship_agent.proxy_config import Claim
from lightship_agent.records import asdict
from lightship_agent.reload import wait_until
from lightship_agent.system import detached

if TYPE_CHECKING:
    from typing import Any

    from lightship_agent.proxy import Proxy
    from lightship_agent.proxy_config import Entry
    from lightship_agent.rollout_base import RolloutBase
    from lightship_agent.situation import Situation, Tools

__all__ = [
    "decide_proxy", "go_back", "heal", "involved", "prepare", "published_ports", "release_old", "renew",
    "renew_back", "switch", "verify", "without_gap",
]  # fmt: skip

register(
    handover__proven="the new container is proven and gets no requests yet",
    handover__led="the proxy leads to the new container, and current names the release before",
    handover__back="the proxy leads to the old container again",
)


PROXY_SECONDS = 10.0


def decide_proxy(tools: Tools, claim: Claim | None, settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a rollout's situation keeps of the proxy, and the container's settings with the port it is reached at."""
    before = _entry(tools)
    if settings is not None and claim is not None:
        settings = {**settings, "ports": [], "upstream": f"{proxy_of(tools).choose_port()}:{claim.port}"}
    elif settings is not None and settings.get("upstream"):
        raise Refused(
            "was-proxied",
            "that release ran behind the proxy, and lightship.yml says `proxy: none`: it is not known which ports "
            "its container is to have",
            hint="deploy its commit instead: lightship deploy --commit",
        )
    return {
        "proxy": None if claim is None else _plain(claim),
        "old_proxy": None if before is None else before.as_dict(),
        "settings": settings,
    }


def proxy_of(tools: Tools) -> Proxy:
    """The server's proxy, for this rollout."""
    from lightship_agent.proxy import Proxy  # noqa: PLC0415 - few services have one

    return Proxy(tools.paths, tools.instances.engine, tools.guard)


def _entry(tools: Tools) -> Entry | None:
    """What the service has of the proxy now."""
    return proxy_of(tools).entry() if os.path.lexists(tools.paths.proxied) else None


def involved(situation: Situation) -> bool:
    """Whether the proxy has a part in this rollout."""
    return situation.proxy is not None or situation.old_proxy is not None


def without_gap(situation: Situation) -> bool:
    """Whether one container takes the place of the other without either having to let go of a port first."""
    return (
        situation.replaces
        and situation.proxy is not None
        and (situation.old_proxy is not None or not situation.old_instance)
    )


def prepare(rollout: RolloutBase) -> None:
    """Refuse what the proxy cannot do before anything happens, and have it run; nobody is led anywhere else yet."""
    situation = rollout.situation
    if situation.proxy is None:
        return
    claim, proxy = Claim.from_dict(situation.proxy), proxy_of(rollout.tools)
    old = rollout.tools.instances.find(situation.old_instance)
    with rollout.tools.step("proxy"):
        proxy.require(claim, published_ports(old) if old is not None and situation.old_proxy is None else ())
        proxy.run(claim.image)


def published_ports(container: Container) -> tuple[int, ...]:
    """The server's ports that a container publishes."""
    bindings = (binding for found in container.ports.values() for binding in found or ())
    return tuple(int(port) for port in (str(each.get("HostPort", "")) for each in bindings) if port.isdigit())


def switch(rollout: RolloutBase) -> None:
    """Have the new container take the old one's place. Doing it twice changes nothing."""
    situation = rollout.situation
    if without_gap(situation):
        _prove(rollout)
        lead(rollout)
        _flip(rollout)
    elif situation.proxy is not None:
        _prove(rollout)
        # From here on until the proxy has the ports nobody serves: this must go on even if this process is killed.
        detached(lambda: _to_proxy(rollout))
    else:
        detached(lambda: _from_proxy(rollout))


def _prove(rollout: RolloutBase) -> None:
    """Have the new container serve beside the old one, and ask it; nobody is led to it yet."""
    tools, situation = rollout.tools, rollout.situation
    instances = tools.instances
    if situation.way == "swap":
        if situation.old_instance and situation.previous:
            instances.open_beside(situation.old_instance, situation.previous)
        instances.open_beside(situation.instance, situation.commit)
    else:
        # An image with one uWSGI loads what `current` names when it starts; the old one has long loaded its own.
        releases.flip(tools.paths, situation.commit, tools.guard)
    new = rollout.container()
    instances.keep_up(new)
    if not new.running:
        instances.start(new.name)
        new = rollout.container()
    rollout.wait_serving(new, situation.commit, situation.slot)
    check, port = situation.health_check, new.published()
    if check is not None and port is not None:
        answer = wait_healthy(check, port, situation.commit)
        if answer.problem:
            raise AgentFailure("unhealthy", f"release {situation.commit[:7]} is not healthy: {answer.problem}")
    fail_point("handover.proven")


def _flip(rollout: RolloutBase) -> None:
    fail_point("handover.led")
    releases.flip(rollout.tools.paths, rollout.situation.commit, rollout.tools.guard)


def _to_proxy(rollout: RolloutBase) -> None:
    """The old container lets go of its ports, and the proxy takes them."""
    instances, situation = rollout.tools.instances, rollout.situation
    old = instances.find(situation.old_instance)
    if old is not None:
        instances.let_down(old)
        if old.running:
            instances.stop(old.name, 0.0 if rollout.drained(old) else situation.patience)
    lead(rollout)
    _flip(rollout)


def _from_proxy(rollout: RolloutBase) -> None:
    """The proxy lets go of the service's ports, and the new container takes them; the old one finishes its requests."""
    tools, situation = rollout.tools, rollout.situation
    if situation.way == "swap" and situation.previous:
        tools.instances.open_beside(situation.old_instance, situation.previous)
    proxy_of(tools).put_back(None)
    _flip(rollout)
    new = rollout.container()
    tools.instances.keep_up(new)
    tools.instances.start(new.name)


def renew(rollout: RolloutBase) -> None:
    """A code deploy: give the service what it wants of the proxy now, if that is something else than before."""
    situation = rollout.situation
    if not situation.replaces and situation.proxy is not None and rollout.container().behind_proxy:
        lead(rollout)


def renew_back(rollout: RolloutBase) -> None:
    """A code deploy that is taken back: what the service had of the proxy before it."""
    situation = rollout.situation
    if not situation.replaces and situation.proxy is not None and situation.old_proxy is not None:
        proxy_of(rollout.tools).put_back(situation.old_proxy)


def verify(rollout: RolloutBase) -> None:
    """See the proxy lead to the container that was proven; one that has just been started again is waited for."""
    situation = rollout.situation
    container = rollout.container()
    if situation.proxy is None or not container.behind_proxy:
        return
    proxy, port = proxy_of(rollout.tools), container.published()
    if not wait_until(lambda: proxy.leads_to(port), PROXY_SECONDS):
        raise AgentFailure(
            "proxy-elsewhere", "the proxy does not lead to the new container", hint=f"docker logs {proxy.name}"
        )


def lead(rollout: RolloutBase) -> None:
    """Give the service what it wants of the proxy, with its requests going to the new container."""
    situation, container = rollout.situation, rollout.container()
    port = container.published()
    if situation.proxy is None or port is None:
        raise AgentFailure("no-upstream", f"{container.name} listens on no port of this machine")
    proxy_of(rollout.tools).claim(Claim.from_dict(situation.proxy), container.instance, port)


def go_back(rollout: RolloutBase) -> None:
    """Have the old container serve again, which mostly runs still, and remove the new one."""
    tools, situation = rollout.tools, rollout.situation
    instances, proxy = tools.instances, proxy_of(tools)
    old = instances.find(situation.old_instance)
    if old is None and situation.old_instance:
        # What serves now is better than nothing.
        raise AgentFailure("container-missing", "the old container is gone")
    if situation.proxy is None:  # the new container has the ports that the proxy needs again
        _remove_new(rollout)
    if situation.old_proxy is None:  # and here the old one needs those of the proxy
        proxy.put_back(None)
    if old is None:
        _remove_new(rollout)
        tools.paths.current.unlink(missing_ok=True)
        return
    _serve_again(rollout, old)
    led = proxy.entry()
    if situation.old_proxy is not None:
        proxy.put_back(situation.old_proxy)
    fail_point("handover.back")
    if situation.previous:
        rollout.flip_back(situation.previous)
    instances.no_longer_beside(situation.old_instance)
    if situation.proxy is not None and led is not None:
        proxy.drain(led.as_dict(), situation.patience)
    _remove_new(rollout)


def _serve_again(rollout: RolloutBase, old: Container) -> None:
    tools, situation = rollout.tools, rollout.situation
    tools.instances.keep_up(old)
    tools.instances.open_gate(situation.old_instance)
    if situation.previous and situation.way == "swap":
        tools.instances.open_beside(situation.old_instance, situation.previous)
    elif situation.previous:
        rollout.flip_back(situation.previous)
    if not old.running:
        tools.instances.start(old.name)
        old = require(tools.instances.find(situation.old_instance), old.name)
    if situation.previous:
        rollout.wait_serving(old, situation.previous, situation.old_slot)


def _remove_new(rollout: RolloutBase) -> None:
    instances, number = rollout.tools.instances, rollout.situation.instance
    instances.remove(instances.name(number))
    instances.forget(number)


def release_old(rollout: RolloutBase) -> None:
    """The release is stable: the old container finishes its requests, and the gates obey `current` alone again."""
    tools, situation = rollout.tools, rollout.situation
    if not situation.replaces or not involved(situation):
        return
    old = tools.instances.find(situation.old_instance)
    if old is not None and old.running and situation.old_proxy is not None:
        with tools.step("drain") as detail:
            if situation.proxy is not None:
                detail.update(finished=proxy_of(tools).drain(situation.old_proxy, situation.patience))
            elif old.reload == "swap" and situation.old_slot:
                tools.instances.no_longer_beside(situation.old_instance)
                detail.update(finished=rollout.slot_reload(old).wait_drained(situation.old_slot))
    tools.instances.no_longer_beside(situation.instance)


def heal(tools: Tools, instance: int) -> None:
    """Bring the proxy to what its files say, and to the container that serves, before anything else begins."""
    entry = _entry(tools)
    if entry is None:
        return
    proxy = proxy_of(tools)
    container = tools.instances.find(instance)
    port = container.published() if container is not None else None
    if container is not None and port is not None and port != entry.upstream:
        proxy.lead(instance, port)
    else:
        proxy.sync()


def _plain(claim: Claim) -> dict[str, Any]:
    return {**asdict(claim), "hosts": list(claim.hosts), "certificates": list(claim.certificates)}
