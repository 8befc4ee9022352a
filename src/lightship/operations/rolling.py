"""What deploy and rollback have in common: how they go over the servers, the way back, and how it is summed up."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightship.config.rules import BATCH, FAILURES, RuleError
from lightship.errors import LightshipError, UsageError
from lightship.model import Kind, Plan, ServerResult
from lightship.operations.requests import planned_shape, prepare_args
from lightship.plan import make_rollback_plan
from lightship.rollout import Amount, Images, OnFailure, Order, Rollout, RolloutResult, Session, Strategy, overall
from lightship.rollout.events import Ended
from lightship.rollout.result import fleet_error
from lightship_agent.records import asdict, dataclass, replace

if TYPE_CHECKING:
    from lightship.config.schema import Service
    from lightship.operations.context import Context
    from lightship.source.remote import Resolved

__all__ = [
    "KINDS",
    "Rolling",
    "back_args",
    "canary_soak",
    "finish",
    "finishing_seconds",
    "gravest_kind",
    "skipped",
    "strategy_of",
    "watched_for",
]

KINDS: tuple[Kind, ...] = ("nothing", "code", "container", "full")
#: Beside what the configuration allows an agent: its own work, and a slow machine.
_SPARE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Rolling:
    """What the command line says of the way over the servers; what it leaves out is as configured."""

    canary: int | None = None
    canary_soak: float | None = None
    batch: str | None = None
    max_failures: str | None = None
    on_failure: OnFailure | None = None
    skip_unreachable: bool = False

    def check(self) -> None:
        """Refuse what cannot be, before a server hears of anything."""
        for option, rule, value in (("--batch", BATCH, self.batch), ("--max-failures", FAILURES, self.max_failures)):
            try:
                if value is not None:
                    rule(value)
            except RuleError as error:
                raise UsageError(f"{option} {str(value)[:100]!r} {error.rule}", code="bad-value") from error


def strategy_of(service: Service, rolling: Rolling) -> Strategy:
    """The configuration, and over it what was said with the command."""
    policy = service.rollout
    return Strategy(
        canary=policy.canary if rolling.canary is None else rolling.canary,
        batch=Amount.parse(rolling.batch or policy.batch),
        max_failures=Amount.parse(policy.max_failures if rolling.max_failures is None else rolling.max_failures),
        on_failure=rolling.on_failure or policy.on_failure,
    )


def canary_soak(service: Service, rolling: Rolling) -> float:
    """Seconds for which a canary is watched."""
    policy = service.rollout
    asked = policy.canary_soak if rolling.canary_soak is None else rolling.canary_soak
    return service.soak if asked is None else asked


def back_args(service: Service, session: Session, plan: Plan) -> Mapping[str, Any] | None:
    """The ``prepare`` that leads a server which has committed back to what runs there now."""
    before = session.facts.current
    if before is None:
        return None
    # The container that ran it is gone by then; its settings lie on the server.
    stored = {"stored": True} if plan.replaces_container else None
    kind: Kind = "container" if plan.replaces_container else "code"
    back = replace(make_rollback_plan(planned_shape(service), session.facts, before), kind=kind)
    args = prepare_args(service, back, retry=True, why="the rollout went back", container=stored)
    proxy = session.facts.proxy
    return {**args, "proxy": None if proxy is None else asdict(proxy.claim)}


def finishing_seconds(service: Service, soak: float) -> float:
    """How long an agent that is left alone after the flip may need to finish or to go back."""
    roles = max((role.patience + role.settle for role in service.roles.values()), default=0.0)
    return _SPARE_SECONDS + service.boot_timeout + service.patience + service.health.timeout + soak + 2 * roles


def gravest_kind(plans: Sequence[Plan]) -> Kind:
    """The kind that does most."""
    return max((one.kind for one in plans), key=KINDS.index)


def with_canary_soak(orders: Sequence[Order], strategy: Strategy, service: Service, rolling: Rolling) -> list[Order]:
    """The orders, with the soak of their own for those servers that go first: the agent itself watches that long."""
    todo = [order for order in orders if not order.plan.nothing_to_do]
    first = {order.session.server for order in todo[: strategy.canaries(len(todo))]}
    soak = canary_soak(service, rolling)
    return [watched_for(one, soak, service) if one.session.server in first else one for one in orders]


def watched_for(order: Order, soak: float, service: Service) -> Order:
    """The order with a soak of its own."""
    return replace(order, prepare={**order.prepare, "soak": soak}, finishes=finishing_seconds(service, soak))


def skipped(server: str, commit: str, error: LightshipError) -> ServerResult:
    """A server that was left out."""
    return ServerResult(server, "skipped", "nothing", commit, None, None, error=error)


async def finish(
    context: Context,
    orders: Sequence[Order],
    resolved: Resolved,
    started: float,
    rolling: Rolling,
    unreachable: Mapping[str, LightshipError],
    images: Images | None = None,
) -> RolloutResult:
    """Run the rollout and sum it up."""
    strategy = strategy_of(context.service, rolling)
    orders = with_canary_soak(orders, strategy, context.service, rolling)
    rollout = Rollout(orders, context.emit, strategy, skip_unreachable=rolling.skip_unreachable, images=images)
    found = {one.server: one for one in await rollout.run()}
    found.update({server: skipped(server, resolved.commit, error) for server, error in unreachable.items()})
    servers = tuple(found[name] for name in context.names if name in found)
    outcome = overall([one.outcome for one in servers], [one.running for one in servers if one.outcome != "skipped"])
    plans = [order.plan for order in orders]
    shown = max(plans, key=lambda one: KINDS.index(one.kind))
    context.emit(
        Ended(
            "",
            kind=shown.kind,
            ref=resolved.ref,
            commit=resolved.commit,
            previous=shown.change.live,
            outcome=outcome,
            outcomes={one.server: one.outcome for one in servers},
        )
    )
    return RolloutResult(
        service=context.service.name,
        ref=resolved.ref,
        kind=shown.kind,
        commit=resolved.commit,
        subject=shown.change.subject,
        previous=shown.change.live,
        outcome=outcome,
        why=shown.why,
        servers=servers,
        plans=tuple((order.session.server, order.plan) for order in orders),
        error=fleet_error(resolved.commit, servers, outcome),
        interrupted=rollout.cancelled,
        seconds=time.perf_counter() - started,
    )
