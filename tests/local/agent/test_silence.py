"""The agent notices a controller that is gone without a word, and only one that had said that it is there."""

from __future__ import annotations

import io
import os
import threading
import time

import pytest

from lightship_agent import __main__ as agent
from lightship_agent.protocol import ALIVE


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    monkeypatch.setattr(agent, "SILENCE", 0.3)
    return os.pipe()


def start(reader: int) -> threading.Thread:
    thread = threading.Thread(target=agent.Conversation(reader, io.BytesIO()).run, daemon=True)
    thread.start()
    return thread


def test_a_controller_that_falls_silent_is_gone(pipe: tuple[int, int]) -> None:
    thread = start(pipe[0])
    for _ in range(8):
        os.write(pipe[1], ALIVE + b"\n")
        time.sleep(0.1)
    assert thread.is_alive()
    thread.join(5)
    assert not thread.is_alive()
    os.close(pipe[1])


def test_one_that_never_promised_to_speak_may_be_silent(pipe: tuple[int, int]) -> None:
    thread = start(pipe[0])
    thread.join(0.8)
    assert thread.is_alive()
    os.close(pipe[1])
    thread.join(5)
    assert not thread.is_alive()
