"""The image of a service: what it is called, and its way to the servers of a rollout."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from lightship.errors import LightshipError
from lightship.image import Distribution, Ready, Wanted
from lightship.rollout import Images, Order, Session, is_unreachable
from lightship.rollout.events import Emit, Note, StepStarted
from lightship_agent.records import dataclass

if TYPE_CHECKING:
    from lightship.image.distribute import Secrets

__all__ = ["SessionPlace", "images_for"]


@dataclass(frozen=True)
class SessionPlace:
    """A server as the image's way to it sees it."""

    session: Session
    emit: Emit

    @property
    def server(self) -> str:
        """Its name."""
        return self.session.server

    async def ask(
        self, op: str, args: Mapping[str, Any], on_data: Callable[[bytes], None] | None = None
    ) -> Mapping[str, Any]:
        """Ask its agent."""
        answer: Mapping[str, Any] = await self.session.call(op, args, on_data=on_data)
        return answer

    def warn(self, text: str) -> None:
        """Tell it now, and once more in the result."""
        self.session.warnings.append(text)
        self.emit(Note(self.server, f"warning: {text}"))

    @asynccontextmanager
    async def sending(self, text: str) -> AsyncIterator[None]:
        """A step for as long as the image is sent."""
        clock = asyncio.get_running_loop().time
        began = clock()
        self.emit(StepStarted(self.server, "send"))
        self.emit(Note(self.server, f"getting the image ({text})"))
        yield
        self.session.told("send", clock() - began)


def images_for(wanted: Wanted, secrets: Secrets, emit: Emit, *, skip: bool) -> Images:
    """What has the image ready on the servers of a rollout; ``secrets`` gives the values that a build needs."""

    async def ready(orders: Sequence[Order]) -> Mapping[str, Order | LightshipError]:
        places = [SessionPlace(order.session, emit) for order in orders]
        passes_over = partial(_passes_over, skip)
        found = await Distribution(wanted, places, secrets=secrets, passes_over=passes_over).run()
        there = ((order, found.get(order.session.server)) for order in orders)
        return {order.session.server: _result(order, one) for order, one in there if one is not None}

    return ready


def _result(order: Order, found: Ready | LightshipError) -> Order | LightshipError:
    return found if isinstance(found, LightshipError) else order.with_image(found.reference, found.id)


def _passes_over(skip: bool, error: LightshipError) -> bool:
    return skip and is_unreachable(error)
