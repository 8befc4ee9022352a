"""One image for all servers: built or pulled on one of them, which leads; the others get exactly that one.

    look everywhere -> the leader has it, pulls it or builds (and pushes) it -> the others pull it by digest, at once

What the registry does not give goes from the leader to the others through the conversations, without the layers
that they have already. Nothing of what serves is touched.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import tempfile
import zlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import IO, Any, Protocol

from lightship.errors import LightshipError, RefusedError, TransportError
from lightship.image.names import Wanted
from lightship_agent.records import dataclass

__all__ = ["CHUNK", "Distribution", "Look", "Place", "Ready"]

#: So many bytes of an image go in one request; what the agent takes at most.
CHUNK = 3 * 1024 * 1024
#: An image is sent to so many servers at once: they share the controller's own line.
SENDING = 5
#: So many servers are looked at, or pull, at once.
PULLING = 100
#: What a registry did not do says nothing against an image that is here.
_REGISTRY = frozenset(
    {
        *("registry-unreachable", "registry-denied", "registry-certificate"),
        *("image-not-found", "image-corrupt", "docker-failed"),
    }
)
OnData = Callable[[bytes], None]
Secrets = Callable[[], Awaitable[Mapping[str, str]]]


class Place(Protocol):
    """A server, as this needs it."""

    @property
    def server(self) -> str:
        """Its name."""

    async def ask(self, op: str, args: Mapping[str, Any], on_data: OnData | None = None) -> Mapping[str, Any]:
        """Ask its agent; ``on_data`` gets the parts of an image."""

    def warn(self, text: str) -> None:
        """Tell that something did not go as it should, and was got round."""

    def sending(self, text: str) -> Any:
        """An asynchronous context: the image is being sent to this server."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a server has under the image's name."""

    id: str = ""
    digest: str = ""
    layers: tuple[str, ...] = ()
    architecture: str = ""
    engine: str = ""

    @classmethod
    def from_json(cls, answer: Mapping[str, Any]) -> Look:
        """Read the answer of ``image``."""
        layers = answer.get("layers")
        return cls(
            id=_text(answer, "id"),
            digest=_text(answer, "digest"),
            layers=tuple(map(str, layers)) if isinstance(layers, list) else (),
            architecture=_text(answer, "architecture"),
            engine=_text(answer, "engine"),
        )


@dataclass(frozen=True, slots=True)
class Ready:
    """A server has the image: what its containers are made of, and the id that this stands for there."""

    reference: str
    id: str
    built: bool = False
    pushed: bool = False


def _text(answer: Mapping[str, Any], key: str) -> str:
    value = answer.get(key)
    return value if isinstance(value, str) else ""


class Distribution:
    """Brings one image to servers.

    ``secrets`` is asked for the values of the build's secrets when it comes to a build. ``passes_over`` says of a
    leader's error that another server is to lead. With ``certain`` the registry is asked even for what the leader has.
    """

    def __init__(
        self,
        wanted: Wanted,
        places: Sequence[Place],
        *,
        secrets: Secrets | None = None,
        passes_over: Callable[[LightshipError], bool] = lambda error: False,  # noqa: ARG005
        certain: bool = False,
    ) -> None:
        self._wanted = wanted
        self._places = list(places)
        self._secrets = secrets
        self._passes_over = passes_over
        self._certain = certain
        self._looks: dict[str, Look] = {}
        self._found: dict[str, Ready | LightshipError] = {}
        self._sending = asyncio.Semaphore(SENDING)
        self._pulling = asyncio.Semaphore(PULLING)

    async def run(self) -> Mapping[str, Ready | LightshipError]:
        """What became of it on each server; none stands for a server whose turn did not come."""
        await self._each(self._places, self._look)
        if any(not self._passes_over(one) for one in self._found.values() if isinstance(one, LightshipError)):
            return self._found
        left = self._in_order(one for one in self._places if one.server in self._looks)
        while left:
            leader, *others = left
            try:
                ready = await self._lead(leader)
                if others:
                    await self._follow(leader, ready, others)
                self._found[leader.server] = ready
                break
            except LightshipError as error:
                self._found[leader.server] = error
                if not self._passes_over(error):
                    break
                left = others
        return self._found

    async def lead_apart(self, look: Look) -> tuple[Ready, Look]:
        """The part of the server that leads, on the first place, when each server's turn comes in a process of its own.

        ``look`` is what it had; what it has now comes back with the image.
        """
        leader = self._places[0]
        self._looks[leader.server] = look
        return await self._lead(leader), self._looks[leader.server]

    async def bring_apart(self, ready: Ready, looks: Mapping[str, Look]) -> Ready | int:
        """The part of another, the second place; the first stands for the one that leads.

        The image from the registry, or how many of its layers are here already when it has to be sent.
        """
        self._looks.update(looks)
        leader, place = self._places
        found = await self._bring(leader, ready, place)
        if found is not None:
            return found
        layers = list(self._looks[leader.server].layers)
        return _known(await place.ask("image", {"image": self._wanted.name, "layers": layers}), len(layers))

    async def send_apart(self, ready: Ready, known: int) -> Ready:
        """To the second place what the first gives, which is the image without its first ``known`` layers."""
        leader, place = self._places
        await self._send_group(leader, ready, [place], known, None)
        found = self._found[place.server]
        if isinstance(found, LightshipError):
            raise found
        return found

    async def _each(self, places: Iterable[Place], work: Callable[[Place], Any]) -> None:
        """The same for each, side by side; an error is that server's own."""

        async def one(place: Place) -> None:
            async with self._pulling:
                try:
                    await work(place)
                except LightshipError as error:
                    self._found[place.server] = error

        async with asyncio.TaskGroup() as group:
            for place in places:
                group.create_task(one(place))

    async def _look(self, place: Place) -> None:
        self._looks[place.server] = Look.from_json(await place.ask("image", {"image": self._wanted.name}))

    def _in_order(self, places: Iterable[Place]) -> list[Place]:
        """Of a built image the server leads that has it, best with its digest; else the first of the rollout."""
        if self._wanted.build is None:
            return list(places)
        looks = self._looks
        return sorted(places, key=lambda one: (not looks[one.server].id, not looks[one.server].digest))

    # --- the server that leads ---------------------------------------------------------

    async def _lead(self, leader: Place) -> Ready:
        look = self._looks[leader.server]
        ready = await (self._build(leader, look) if self._wanted.build is not None else self._fetch(leader, look))
        if look.id != ready.id:
            again = Look.from_json(await leader.ask("image", {"image": ready.id}))
            self._looks[leader.server] = again
        return ready

    async def _build(self, leader: Place, look: Look) -> Ready:
        """Of a built image: the one that is here, or in the registry; or else it is built, once."""
        wanted, name, built = self._wanted, self._wanted.name, False
        if look.id and not wanted.pushed:
            return Ready(name, look.id)
        if look.id and look.digest and not (self._certain and await self._is_gone(leader)):
            return Ready(look.digest, look.id)
        image = look.id
        if not image and wanted.pushed and (ready := await self._from_registry(leader)) is not None:
            return ready
        if not image:
            secrets = await self._secrets() if self._secrets is not None else {}
            answer = await leader.ask("build", {**(wanted.build or {}), "secrets": dict(secrets)})
            image, built = _text(answer, "image_id"), bool(answer.get("built"))
        if not wanted.pushed:
            return Ready(name, image, built)
        try:
            answer = await leader.ask("push", {"image": name})
        except LightshipError as error:
            if error.code != "registry-unreachable":
                raise
            leader.warn(f"{error.message}; it is pushed by the next deploy")
            return Ready(name, image, built)
        return Ready(_text(answer, "digest") or name, image, built, pushed=True)

    async def _is_gone(self, leader: Place) -> bool:
        """Whether the registry says that it has not any more what it was given.

        Asked by the tag: of a digest that it knows an engine asks no registry.
        """
        try:
            await leader.ask("pull", {"image": self._wanted.name})
        except LightshipError as error:
            if error.code == "image-not-found":
                return True
            if error.code not in _REGISTRY:
                raise
            leader.warn(error.message)
        return False

    async def _from_registry(self, leader: Place) -> Ready | None:
        """A built image that the registry has; ``None`` when it has it not (or says only to those who may push)."""
        try:
            answer = await leader.ask("pull", {"image": self._wanted.name})
        except LightshipError as error:
            if error.code == "image-not-found" or (error.code == "registry-denied" and not error.detail.get("login")):
                return None
            raise
        return Ready(_text(answer, "digest") or self._wanted.name, _text(answer, "image_id"))

    async def _fetch(self, leader: Place, look: Look) -> Ready:
        """Of an image that was built elsewhere: what its name stands for now, pinned by digest."""
        name = self._wanted.name
        if look.id and self._wanted.pinned:
            return Ready(name, look.id)
        try:
            answer = await leader.ask("pull", {"image": name})
        except LightshipError as error:
            if not look.id or error.code not in _REGISTRY:
                raise
            leader.warn(f"{error.message}; the one that this server has is used")
            return Ready(look.digest or name, look.id)
        return Ready(_text(answer, "digest") or name, _text(answer, "image_id"))

    # --- the servers that follow -------------------------------------------------------

    async def _follow(self, leader: Place, ready: Ready, others: Sequence[Place]) -> None:
        lacking: list[Place] = []

        async def bring(place: Place) -> None:
            found = await self._bring(leader, ready, place)
            if found is None:
                lacking.append(place)
            else:
                self._found[place.server] = found

        await self._each(others, bring)
        if lacking:
            await self._send_all(leader, ready, lacking)

    async def _bring(self, leader: Place, ready: Ready, place: Place) -> Ready | None:
        """The image that the leader has, from the registry; ``None`` when it has to come from the leader itself."""
        look, name = self._looks[place.server], self._wanted.name
        pinned = "@sha256:" in ready.reference
        if look.id == ready.id:
            return Ready(ready.reference if look.digest == ready.reference else name, look.id)
        if not pinned or self._wanted.build is not None:
            self._fits(leader, place)
        if not pinned:
            return None
        args = {"image": ready.reference, "tag": name if self._wanted.build is not None else ""}
        try:
            answer = await place.ask("pull", args)
        except LightshipError as error:
            if error.code not in _REGISTRY:
                raise
            self._fits(leader, place)
            place.warn(f"{error.message}; it is sent from {leader.server} instead")
            return None
        return Ready(ready.reference, _text(answer, "image_id"))

    def _fits(self, leader: Place, place: Place) -> None:
        """What was built on a machine, or is sent from it, runs on machines of its kind only."""
        made, engine = self._looks[leader.server].architecture, self._looks[place.server].engine
        if made and engine and made != engine:
            raise RefusedError(
                f"{place.server} is {engine}, and the image that {leader.server} has is for {made}",
                hint="build an image for all kinds of servers elsewhere, and name it: `image: name:tag`",
                code="architecture",
            )

    async def _send_all(self, leader: Place, ready: Ready, places: Sequence[Place]) -> None:
        """From the leader to the others, through this machine; those that lack the same layers share one archive."""
        layers = self._looks[leader.server].layers
        groups: dict[int, list[Place]] = {}

        async def ask(place: Place) -> None:
            answer = await place.ask("image", {"image": self._wanted.name, "layers": list(layers)})
            groups.setdefault(_known(answer, len(layers)), []).append(place)

        await self._each(places, ask)
        whole: list[Place] = []
        for known, group in sorted(groups.items()):
            await self._send_group(leader, ready, group, known, whole)
        if whole:
            await self._send_group(leader, ready, whole, 0, None)

    async def _send_group(
        self, leader: Place, ready: Ready, group: Sequence[Place], known: int, whole: list[Place] | None
    ) -> None:
        """Send an archive to these; those whose engine could not use one without all layers go to ``whole``."""
        with tempfile.TemporaryFile(prefix="lightship-image-") as file:
            packed = await _packed(leader, ready.id, known, file)

            async def send(place: Place) -> None:
                try:
                    self._found[place.server] = await self._send(place, ready, packed, file)
                except LightshipError as error:
                    if whole is None or known == 0 or error.code != "layers-missing":
                        raise
                    place.warn("its Docker engine wants all layers of the image: it is sent whole")
                    whole.append(place)

            await self._each(group, send)

    async def _send(self, place: Place, ready: Ready, packed: _Packed, file: IO[bytes]) -> Ready:
        name = "" if self._wanted.pinned else self._wanted.name
        last = {"sha256": packed.sha256, "image_id": ready.id, "tag": name}
        async with self._sending, place.sending(f"{packed.size / 1e6:.1f} MB"):
            offset = 0
            while True:
                # Read by place and not in turn: the same file goes to several servers at once.
                file.seek(offset)
                part = file.read(CHUNK)
                at_end = offset + len(part) >= packed.size
                data = base64.b64encode(zlib.compress(part, 1)).decode("ascii")
                request = {"size": packed.size, "offset": offset, "data": data, **({"last": last} if at_end else {})}
                await place.ask("load", request)
                offset += len(part)
                if at_end:
                    return Ready(name or ready.id, ready.id)


def _known(answer: Mapping[str, Any], most: int) -> int:
    """How many of an image's first layers a server has."""
    known = answer.get("known")
    return min(known, most) if isinstance(known, int) else 0


@dataclass(frozen=True, slots=True)
class _Packed:
    size: int
    sha256: str


async def _packed(leader: Place, image: str, known: int, file: IO[bytes]) -> _Packed:
    """The image's archive in ``file``, as the leader gives it."""
    digest, size = hashlib.sha256(), 0

    def take(part: bytes) -> None:
        nonlocal size
        file.write(part)
        digest.update(part)
        size += len(part)

    answer = await leader.ask("save", {"image": image, "known": known}, take)
    if answer.get("sha256") != digest.hexdigest() or not size:
        raise TransportError(
            f"{leader.server}: the image did not come whole", code="image-damaged", hint="deploy again"
        )
    return _Packed(size, digest.hexdigest())
