"""One image for all servers: who builds, who pulls, who is sent it, and what happens when the registry is no help."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from lightship.errors import AgentError, LightshipError, RefusedError, TransportError
from lightship.image import Distribution, Ready, Wanted, built_name
from lightship.image.distribute import CHUNK

NAME = "registry.example/team/shop:0123456789abcdef"
LAYERS = [f"sha256:{number:064x}" for number in range(4)]
BUILT = "sha256:" + "b" * 64


@dataclass
class World:
    """A registry, what it knows by name, and all that was asked of anybody, in turn."""

    known: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    error: LightshipError | None = None

    def count(self, op: str) -> int:
        return sum(one == op for _, one in self.asked)


@dataclass
class Server:
    """A server: its images by name, the layers that it has, and errors by operation."""

    server: str
    world: World
    images: dict[str, str] = field(default_factory=dict)
    known: int = 0
    engine: str = "amd64"
    errors: dict[str, LightshipError] = field(default_factory=dict)
    digest: str = ""
    warnings: list[str] = field(default_factory=list)
    received: bytearray = field(default_factory=bytearray)
    archive: bytes = b"an archive" * 1000
    sent: list[int] = field(default_factory=list)

    async def ask(
        self, op: str, args: Mapping[str, Any], on_data: Callable[[bytes], None] | None = None
    ) -> Mapping[str, Any]:
        await asyncio.sleep(0)
        self.world.asked.append((self.server, op))
        if op in self.errors:
            raise self.errors[op]
        answer: Mapping[str, Any] = getattr(self, f"_{op}")(args, on_data)
        return answer

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    @contextlib.asynccontextmanager
    async def sending(self, text: str) -> AsyncIterator[None]:
        yield

    def _image(self, args: Mapping[str, Any], _: Any) -> Mapping[str, Any]:
        name = args["image"]
        found = name if name in self.images.values() else self.images.get(name, "")
        return {
            "id": found, "digest": self.digest if found else "", "layers": LAYERS if found else [],
            "architecture": "amd64" if found else "", "engine": self.engine,
            "known": self.known if args.get("layers") else 0,
        }  # fmt: skip

    def _build(self, args: Mapping[str, Any], _: Any) -> Mapping[str, Any]:
        self.secrets = args["secrets"]
        self.images[args["tag"]] = BUILT
        return {"image_id": BUILT, "built": True}

    def _push(self, args: Mapping[str, Any], _: Any) -> Mapping[str, Any]:
        if self.world.error:
            raise self.world.error
        name = args["image"]
        self.digest = f"{name.partition(':')[0]}@sha256:{self.images[name][-1] * 64}"
        self.world.known |= {name: self.images[name], self.digest: self.images[name]}
        return {"digest": self.digest}

    def _pull(self, args: Mapping[str, Any], _: Any) -> Mapping[str, Any]:
        name = args["image"]
        if self.world.error:
            raise self.world.error
        if name not in self.world.known:
            raise AgentError("it is not there", code="image-not-found")
        found = self.world.known[name]
        self.digest = next(one for one, image in self.world.known.items() if "@" in one and image == found)
        self.images |= {self.digest: found, **({args["tag"]: found} if args.get("tag") else {name: found})}
        return {"image_id": found, "digest": self.digest}

    def _save(self, args: Mapping[str, Any], on_data: Any) -> Mapping[str, Any]:
        data = self.archive[args["known"] :]
        self.sent.append(args["known"])
        on_data(data)
        return {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}

    def _load(self, args: Mapping[str, Any], _: Any) -> Mapping[str, Any]:
        assert args["offset"] == len(self.received)
        self.received += zlib.decompress(base64.b64decode(args["data"]))
        assert len(self.received) <= args["size"]
        last = args.get("last")
        if last:
            assert hashlib.sha256(self.received).hexdigest() == last["sha256"]
            self.images |= {last["tag"] or last["image_id"]: last["image_id"]}
        return {}


def servers(world: World, count: int = 3, **special: Any) -> list[Server]:
    return [Server(f"web{number}", world, **special.get(f"web{number}", {})) for number in range(count)]


def wanted(*, pushed: bool = True) -> Wanted:
    return Wanted(NAME, {"tag": NAME}, pushed=pushed)


def distribute(what: Wanted, places: list[Server], **options: Any) -> Mapping[str, Ready | LightshipError]:
    return asyncio.run(Distribution(what, places, **options).run())


def ready(found: Mapping[str, Ready | LightshipError]) -> dict[str, Ready]:
    assert all(isinstance(one, Ready) for one in found.values()), found
    return {name: one for name, one in found.items() if isinstance(one, Ready)}


DOWN = AgentError("registry.example cannot be reached", code="registry-unreachable")


def test_built_once_pushed_once_and_pulled_by_digest() -> None:
    world = World()
    found = ready(distribute(wanted(), servers(world, 20)))
    assert (world.count("build"), world.count("push"), world.count("pull")) == (1, 1, 20)  # one asked and found none
    assert {one.reference for one in found.values()} == {f"{NAME.partition(':')[0]}@sha256:{'b' * 64}"}
    assert {one.id for one in found.values()} == {BUILT}
    assert len(found) == 20
    assert (found["web0"].built, found["web0"].pushed) == (True, True)
    # What others pull is in the registry before the first of them asks.
    assert [op for _, op in world.asked if op in ("build", "push")] == ["build", "push"]
    # The next time nobody asks the registry for anything.
    world.asked.clear()
    fleet = servers(world, 2)
    distribute(wanted(), fleet)
    world.asked.clear()
    world.error = DOWN
    assert len(ready(distribute(wanted(), fleet))) == 2
    assert {op for _, op in world.asked} == {"image"}


def test_an_image_that_the_registry_has_is_not_built() -> None:
    world = World({NAME: BUILT, "registry.example/team/shop@sha256:" + "b" * 64: BUILT})
    found = ready(distribute(wanted(), servers(world)))
    assert (world.count("build"), world.count("push")) == (0, 0)
    assert not found["web0"].built
    assert {one.reference for one in found.values()} == {"registry.example/team/shop@sha256:" + "b" * 64}


def test_a_server_that_has_the_image_leads() -> None:
    world = World()
    fleet = servers(world, web1={"images": {NAME: BUILT}})
    distribute(wanted(pushed=False), fleet)
    assert ("web1", "save") in world.asked
    assert world.count("build") == 0
    assert fleet[0].images[NAME] == fleet[2].images[NAME] == BUILT


def test_a_registry_that_does_not_answer_ends_it_before_anything_is_built() -> None:
    world = World(error=DOWN)
    found = distribute(wanted(), servers(world))
    assert found == {"web0": DOWN}
    assert world.count("build") == 0


def test_a_denial_is_only_believed_when_it_is_about_the_login() -> None:
    """Docker Hub denies access to a repository that is only not there yet: the push makes it."""
    for detail, built in (({"login": False}, 1), ({"login": True}, 0)):
        world = World()
        denied = AgentError("denied", code="registry-denied", detail=detail)
        distribute(wanted(), servers(world, 1, web0={"errors": {"pull": denied}}))
        assert world.count("build") == built


def test_what_was_built_and_not_pushed_is_pushed_and_if_that_cannot_be_is_sent() -> None:
    world = World()
    fleet = servers(world, 2, web0={"images": {NAME: BUILT}})
    found = ready(distribute(wanted(), fleet))
    assert (world.count("build"), world.count("push"), world.count("load")) == (0, 1, 0)
    world = World(error=DOWN)
    fleet = servers(world, 2, web0={"images": {NAME: BUILT}})
    found = ready(distribute(wanted(), fleet))
    assert {one.reference for one in found.values()} == {NAME}
    assert world.count("build") == 0
    assert "cannot be reached" in fleet[0].warnings[0]
    assert fleet[1].images[NAME] == BUILT
    # But a login that is wrong is told.
    denied = AgentError("denied", code="registry-denied")
    found = distribute(wanted(), servers(World(), 2, web0={"images": {NAME: BUILT}, "errors": {"push": denied}}))
    assert found == {"web0": denied}


def test_who_wants_to_be_certain_has_the_registry_asked_and_what_it_lost_pushed_again() -> None:
    world = World()
    fleet = servers(world, 1)
    distribute(wanted(), fleet)
    assert not ready(distribute(wanted(), fleet, certain=True))["web0"].pushed
    world.known.clear()
    assert not ready(distribute(wanted(), fleet))["web0"].pushed, "a deploy does not ask"
    assert ready(distribute(wanted(), fleet, certain=True))["web0"].pushed
    assert world.count("build") == 1
    world.error = DOWN
    assert not ready(distribute(wanted(), fleet, certain=True))["web0"].pushed
    assert "cannot be reached" in fleet[0].warnings[0]


def test_what_the_registry_does_not_give_a_server_the_first_one_sends() -> None:
    """Deleted meanwhile, damaged, or a server that is not logged in: the image is there, and the deploy goes on."""
    for code in ("image-corrupt", "image-not-found", "registry-denied"):
        fleet = servers(World(), web2={"errors": {"pull": AgentError("no", code=code)}})
        found = ready(distribute(wanted(), fleet))
        assert fleet[2].images[NAME] == BUILT
        assert found["web2"].reference == NAME, "it knows it by no digest"
        assert "sent from web0" in fleet[2].warnings[0]
        assert not fleet[1].warnings


def test_without_a_registry_it_goes_to_the_others_with_the_layers_that_they_lack() -> None:
    world = World()
    fleet = servers(world, 4, web1={"known": 3}, web2={"known": 3}, web3={"known": 1})
    found = ready(distribute(wanted(pushed=False), fleet))
    assert {one.reference for one in found.values()} == {NAME}
    assert (world.count("build"), world.count("pull"), world.count("push")) == (1, 0, 0)
    # Those that lack the same share one archive.
    assert sorted(fleet[0].sent) == [1, 3]
    assert fleet[1].received == fleet[2].received == fleet[0].archive[3:]
    assert fleet[3].received == fleet[0].archive[1:]


def test_a_big_image_goes_in_parts() -> None:
    world = World()
    fleet = servers(world, 2, web0={"archive": bytes(range(256)) * (5 * CHUNK // 512)})
    ready(distribute(wanted(pushed=False), fleet))
    assert fleet[1].received == fleet[0].archive
    assert world.count("load") == 3


def test_an_engine_that_wants_all_layers_gets_them() -> None:
    class Picky(Server):
        def _load(self, args: Mapping[str, Any], _: Any) -> Mapping[str, Any]:
            if args.get("last") and args["size"] < len(self.archive):
                self.received.clear()
                raise AgentError("no such file", code="layers-missing")
            return super()._load(args, _)

    world = World()
    fleet = [Server("web0", world), Picky("web1", world, known=2), Server("web2", world, known=2)]
    ready(distribute(wanted(pushed=False), fleet))
    assert fleet[0].sent == [2, 0]
    assert fleet[1].received == fleet[0].archive
    assert fleet[2].received == fleet[0].archive[2:]


def test_an_image_that_changed_on_the_way_is_not_loaded() -> None:
    class Liar(Server):
        def _save(self, args: Mapping[str, Any], on_data: Any) -> Mapping[str, Any]:
            on_data(b"something else")
            return {"sha256": "0" * 64}

    found = distribute(wanted(pushed=False), [Liar("web0", world := World()), Server("web1", world)])
    assert isinstance(found["web0"], TransportError)
    assert world.count("load") == 0


def test_what_is_built_on_one_kind_of_machine_is_not_sent_to_another() -> None:
    world = World()
    found = distribute(wanted(), servers(world, web2={"engine": "arm64"}))
    error = found["web2"]
    assert isinstance(error, RefusedError)
    assert "web2 is arm64" in error.message
    assert "amd64" in error.message
    assert error.hint


def test_an_image_that_is_built_elsewhere_is_asked_for_once_and_pinned() -> None:
    old, new = BUILT, "sha256:" + "c" * 64
    pinned = "hub.example/shop@sha256:" + "c" * 64
    world = World({"hub.example/shop:1": new, pinned: new})
    fleet = servers(world, web0={"images": {"hub.example/shop:1": old}}, web2={"images": {"hub.example/shop:1": old}})
    found = ready(distribute(Wanted("hub.example/shop:1"), fleet))
    assert {one.reference for one in found.values()} == {pinned}
    assert {one.id for one in found.values()} == {new}
    # Pinned already, and there: nobody is asked.
    world.asked.clear()
    ready(distribute(Wanted(pinned), fleet))
    assert world.count("pull") == 0


def test_an_image_that_no_registry_has_is_taken_from_the_first_server() -> None:
    world = World()
    fleet = servers(world, 2, web0={"images": {"shop:1": BUILT}}, web1={"images": {"shop:1": "sha256:" + "d" * 64}})
    found = ready(distribute(Wanted("shop:1"), fleet))
    assert "is used" in fleet[0].warnings[0]
    assert {one.id for one in found.values()} == {BUILT}
    assert fleet[1].images["shop:1"] == BUILT
    assert distribute(Wanted("shop:1"), servers(World(), 2)).keys() == {"web0"}, "and if the first has none, it ends"


def test_another_server_leads_when_the_first_is_lost_and_may_be_passed_over() -> None:
    lost = TransportError("the connection broke")
    world = World()
    fleet = servers(world, web0={"errors": {"build": lost}})
    found = distribute(wanted(), fleet, passes_over=lambda error: error is lost)
    assert found.pop("web0") is lost
    assert ready(found)["web1"].built
    assert distribute(wanted(), servers(World(), web0={"errors": {"build": lost}})) == {"web0": lost}


def test_the_values_of_secrets_are_asked_for_only_when_it_comes_to_a_build() -> None:
    asked = []

    async def secrets() -> Mapping[str, str]:
        asked.append(1)
        return {"TOKEN": "x"}

    world = World()
    fleet = servers(world, 1)
    distribute(wanted(), fleet, secrets=secrets)
    assert fleet[0].secrets == {"TOKEN": "x"}
    distribute(wanted(), fleet, secrets=secrets)
    assert asked == [1]


@pytest.mark.parametrize(
    ("registry", "name"),
    [(None, "lightship/shop:0123456789abcdef"), ("r.example:5000/a", "r.example:5000/a/shop:0123456789abcdef")],
)
def test_the_name_follows_from_the_fingerprint(registry: str | None, name: str) -> None:
    assert built_name("shop", "0123456789abcdef" + "f" * 48, registry) == name
