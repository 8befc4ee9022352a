"""A conversation with peers that keep the protocol, and with peers that break it in every way."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightship.errors import DegradedError, LightshipError, LockedError, RefusedError, TransportError
from lightship.transport.conversation import Conversation
from lightship.transport.launch import agent_environment
from lightship.transport.local import LocalTransport

HEAD = """\
import json, os, sys, time
ask = lambda: json.loads(sys.stdin.readline())
say = lambda *messages: [print(json.dumps(one), flush=True) for one in messages]
"""
Run = Callable[..., Any]


@pytest.fixture
def talk(tmp_path: Path) -> Run:
    def run(script: str, *, timeout: float | None = None, events: list[Any] | None = None) -> Any:
        peer = tmp_path / "peer.py"
        peer.write_text(HEAD + script)

        async def go() -> Any:
            async with await Conversation.open(LocalTransport(peer)) as conversation:
                return await conversation.call("ping", on_event=(events or []).append, timeout=timeout)

        return asyncio.run(go())

    return run


def test_a_result_and_its_events(talk: Run) -> None:
    events: list[Any] = []
    events.append("sentinel")
    script = "r = ask()\nsay({'id': r['id'], 'event': 'log', 'text': 'x'}, {'id': r['id'], 'result': {'op': r['op']}})"
    assert talk(script, events=events) == {"op": "ping"}
    assert events[1]["text"] == "x"


@pytest.mark.parametrize(
    ("outcome", "cls"),
    [("refused", RefusedError), ("locked", LockedError), ("degraded", DegradedError), ("?", LightshipError)],
)
def test_an_error_becomes_its_exception(talk: Run, outcome: str, cls: type[LightshipError]) -> None:
    error = {"outcome": outcome, "code": "c", "message": "m", "hint": "h"}
    script = f"r = ask(); say({{'id': r['id'], 'error': {error!r}}})"
    with pytest.raises(cls) as caught:
        talk(script)
    assert (caught.value.code, caught.value.message, caught.value.hint) == ("c", "m", "h")


BROKEN = {
    "no JSON": "ask(); print('hello', flush=True)",
    "no object": "ask(); print('[1]', flush=True)",
    "no number": "ask(); say({'result': {}})",
    "a truth for a number": "ask(); say({'id': True, 'result': {}})",
    "an answer to nothing": "ask(); say({'id': 99, 'result': {}})",
    "neither event nor result": "r = ask(); say({'id': r['id']})",
    "a result that is no object": "r = ask(); say({'id': r['id'], 'result': 3})",
    "deep nesting": "ask(); print('[' * 100000, flush=True)",
    "bytes that are no UTF-8": "ask(); sys.stdout.buffer.write(b'\\xff\\xfe\\n'); sys.stdout.flush()",
    "a line without end": "ask(); sys.stdout.write('x' * (9 * 1024 * 1024)); sys.stdout.flush(); time.sleep(1)",
    "nothing at all": "ask()",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_peer_that_breaks_the_protocol_ends_the_conversation(talk: Run, name: str) -> None:
    with pytest.raises(TransportError):
        talk(BROKEN[name])


def test_the_end_of_the_stream_tells_the_last_words(talk: Run) -> None:
    with pytest.raises(TransportError, match="last words: OSError: no space left"):
        talk("ask(); sys.stderr.write('Traceback\\nOSError: no space left\\n'); sys.exit(1)")


def test_a_peer_that_never_starts(tmp_path: Path) -> None:
    async def go() -> None:
        await Conversation.open(LocalTransport(tmp_path / "none", python=str(tmp_path / "no-python")))

    with pytest.raises(TransportError, match="cannot start"):
        asyncio.run(go())


def test_silence_is_a_timeout(talk: Run) -> None:
    with pytest.raises(TransportError) as caught:
        talk("ask(); sys.stdin.read()", timeout=0.2)
    assert caught.value.code == "timeout"


def test_a_request_that_was_given_up_is_answered_in_vain(tmp_path: Path) -> None:
    peer = tmp_path / "peer.py"
    script = (
        "a = ask(); b = ask(); say({'id': a['id'], 'result': {}}, {'id': b['id'], 'result': {'op': b['op']}}); ask()"
    )
    peer.write_text(HEAD + script)

    async def go() -> Any:
        async with await Conversation.open(LocalTransport(peer)) as conversation:
            first = asyncio.create_task(conversation.call("one"))
            await asyncio.sleep(0.05)
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            return await conversation.call("two")

    assert asyncio.run(go()) == {"op": "two"}


def test_an_agent_that_needs_longer_is_left_to_finish(tmp_path: Path) -> None:
    peer, may, done = tmp_path / "peer.py", tmp_path / "may", tmp_path / "done"
    script = "r = ask(); say({'id': r['id'], 'result': {}})\nsys.stdin.read()\n"
    wait = f"while not os.path.exists({str(may)!r}): time.sleep(0.02)\n"
    peer.write_text(f"{HEAD}{script}{wait}open({str(done)!r}, 'w')")

    async def go() -> None:
        conversation = await Conversation.open(LocalTransport(peer))
        await conversation.call("ping")
        assert await conversation.close(patience=0.05) is None

    asyncio.run(go())
    assert not done.exists()
    may.touch()
    deadline = time.monotonic() + 10
    while not done.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert done.exists()


def test_the_agent_has_a_session_of_its_own(talk: Run) -> None:
    answer = talk(
        "r = ask(); say({'id': r['id'], 'result': {'leader': os.getsid(0) == os.getpid(), 'cwd': os.getcwd()}})"
    )
    assert answer == {"leader": True, "cwd": "/"}


def test_a_git_hook_does_not_choose_the_agents_repository() -> None:
    environment = agent_environment(
        {"GIT_DIR": "/x", "GIT_INDEX_FILE": "/y", "GIT_SSH_COMMAND": "ssh", "PATH": os.defpath}
    )
    assert set(environment) == {"GIT_SSH_COMMAND", "PATH"}
