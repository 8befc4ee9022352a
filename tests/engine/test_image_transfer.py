"""An image goes from one server to another: real agents and a real engine, which is both servers' here."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
import subprocess
import zlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from lightship.errors import LightshipError
from lightship.image.distribute import CHUNK
from lightship.transport.conversation import PROTOCOL, Conversation
from lightship.transport.local import LocalTransport
from lightship.transport.zipapp import agent_file
from support.engine import Engine

POINTS = ("load.chunk", "load.start", "load.done", "image.tag")


@contextlib.asynccontextmanager
async def agent(root: Path, service: str) -> AsyncIterator[Conversation]:
    """A conversation with the agent of a server whose files are under ``root``."""
    hello = {"protocol": PROTOCOL, "service": service, "root": str(root), "container": service, "lock": True}
    async with await Conversation.open(LocalTransport(agent_file())) as conversation:
        await conversation.call("hello", hello)
        yield conversation


async def saved(conversation: Conversation, image: str, known: int) -> bytes:
    """The archive that an agent gives."""
    parts: list[bytes] = []

    def hear(message: Any) -> None:
        if message.get("event") == "data":
            parts.append(zlib.decompress(base64.b64decode(message["data"])))

    answer = await conversation.call("save", {"image": image, "known": known}, on_event=hear)
    assert max(map(len, parts)) <= CHUNK
    data = b"".join(parts)
    assert (answer["size"], answer["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    return data


async def send(conversation: Conversation, data: bytes, image: str, tag: str) -> Any:
    """Send an archive to an agent, in parts."""
    answer: Any = None
    for offset in range(0, len(data), CHUNK):
        part = base64.b64encode(zlib.compress(data[offset : offset + CHUNK], 1)).decode()
        last = {"sha256": hashlib.sha256(data).hexdigest(), "image_id": image, "tag": tag}
        ends = offset + CHUNK >= len(data)
        request = {"size": len(data), "offset": offset, "data": part, **({"last": last} if ends else {})}
        answer = await conversation.call("load", request)
    return answer


def leftovers(root: Path) -> list[str]:
    return [path.name for path in root.glob("*/state/build-*")]


@pytest.fixture
def made(engine: Engine, tmp_path: Path) -> tuple[str, str]:
    """An image with two layers over the base image, the lower of them of 4 MB: its name and id."""
    (tmp_path / "big").write_bytes(os.urandom(4_000_000))
    (tmp_path / "small").write_bytes(os.urandom(100))
    (tmp_path / "Dockerfile").write_text("ARG BASE_IMAGE\nFROM ${BASE_IMAGE}\nCOPY big /\nCOPY small /\n")
    name = engine.build(tmp_path, f"{engine.name('transfer')}:1")
    return name, engine.docker("image", "inspect", "--format", "{{.Id}}", name)


@pytest.fixture
def forget(engine: Engine, made: tuple[str, str]) -> Callable[[], None]:
    """Remove the image, and what a build may keep of it."""
    return lambda: engine.docker("image", "rm", "--force", made[1], check=False) and None


def test_only_the_layers_that_are_lacking_are_sent(
    engine: Engine, made: tuple[str, str], forget: Callable[[], None], tmp_path: Path
) -> None:
    name, image = made
    giver, taker = tmp_path / "giver", tmp_path / "taker"

    async def go() -> dict[str, int]:
        sizes = {}
        async with agent(giver, "shop") as one, agent(taker, "shop") as other:
            look = await one.call("image", {"image": name})
            layers = look["layers"]
            assert (look["id"], look["digest"]) == (image, "")
            assert look["architecture"] == look["engine"] != ""
            archives = {known: await saved(one, image, known) for known in (len(layers) - 2, len(layers) - 1)}
            sizes = {str(len(layers) - known): len(data) for known, data in archives.items()}
            forget()
            # All of the base image is there, and is not asked for.
            look = await other.call("image", {"image": name, "layers": layers})
            assert (look["id"], look["known"]) == ("", len(layers) - 2)
            # Too little: the engine says so, which the controller answers with more.
            with pytest.raises(LightshipError) as caught:
                await send(other, archives[len(layers) - 1], image, "lightship/transfer:1")
            assert caught.value.code == "layers-missing"
            answer = await send(other, archives[len(layers) - 2], image, "lightship/transfer:1")
            assert answer["image_id"] == image
            # Something that changed on the way is not even tried.
            forget()
            damaged = bytearray(archives[len(layers) - 2])
            damaged[2_000_000] ^= 1
            part = base64.b64encode(zlib.compress(bytes(damaged[:CHUNK]), 1)).decode()
            await other.call("load", {"size": len(damaged), "offset": 0, "data": part})
            rest = base64.b64encode(zlib.compress(bytes(damaged[CHUNK:]), 1)).decode()
            last = {"sha256": hashlib.sha256(archives[len(layers) - 2]).hexdigest(), "image_id": image, "tag": ""}
            with pytest.raises(LightshipError) as caught:
                await other.call("load", {"size": len(damaged), "offset": CHUNK, "data": rest, "last": last})
            assert caught.value.code == "image-damaged"
            await send(other, archives[len(layers) - 2], image, "lightship/transfer:1")
        return sizes

    sizes = asyncio.run(go())
    try:
        shown = engine.docker("image", "inspect", "--format", "{{.Id}}", "lightship/transfer:1")
        assert shown == image
        assert engine.docker("run", "--rm", "--label", engine.label, image, "stat", "-c", "%s", "/big") == "4000000"
        # The base image alone has some 400 MB.
        assert sizes["2"] < 4_200_000
        assert sizes["1"] < 100_000
        assert leftovers(giver) == leftovers(taker) == []
    finally:
        engine.docker("image", "rm", "--force", image, check=False)


def test_a_transfer_that_is_cut_off_leaves_nothing_and_works_the_next_time(
    engine: Engine, made: tuple[str, str], forget: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, image = made
    giver, taker = tmp_path / "giver", tmp_path / "taker"
    tag = "lightship/transfer:2"

    async def cut_off(point: str) -> bytes:
        monkeypatch.delenv("LIGHTSHIP_TESTING", raising=False)
        async with agent(giver, "shop") as one:
            layers = (await one.call("image", {"image": name}))["layers"]
            data = await saved(one, image, len(layers) - 2)
        monkeypatch.setenv("LIGHTSHIP_TESTING", "1")
        monkeypatch.setenv("LIGHTSHIP_FAILPOINTS", f"{point}=kill")
        with pytest.raises(LightshipError):
            if point == "save.start":
                async with agent(giver, "shop") as one:
                    await saved(one, image, 0)
            forget()
            async with agent(taker, "shop") as other:
                await send(other, data, image, tag)
        monkeypatch.delenv("LIGHTSHIP_TESTING")
        return data

    async def again(data: bytes) -> None:
        async with agent(giver, "shop"), agent(taker, "shop") as other:
            # What was left is gone before anything is asked.
            assert leftovers(giver) == leftovers(taker) == []
            assert (await send(other, data, image, tag))["image_id"] == image

    try:
        for point in ("save.start", *POINTS):
            data = asyncio.run(cut_off(point))
            assert leftovers(giver if point == "save.start" else taker), point
            asyncio.run(again(data))
            assert engine.docker("image", "inspect", "--format", "{{.Id}}", tag) == image, point
            engine.docker("tag", image, name)
            engine.docker("image", "rm", tag)
    finally:
        subprocess.run(["docker", "image", "rm", "--force", image], capture_output=True, check=False)
