"""What the engine's version is read from, and what that costs the engine."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lightship_agent.container import Engine
from lightship_agent.system import Completed

PING = "HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nServer: Docker/20.10.24+dfsg1 (linux)\r\n\r\nOK"
VERSION = 'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{"Version": "4.3.1", "Arch": "amd64"}'
GONE = "HTTP/1.1 404 Not Found\r\nServer: Docker/20.10.24 (linux)\r\n\r\n"

Serve = Callable[[dict[str, str]], tuple[Engine, list[str]]]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """An engine that gives these answers, each to its path; it keeps what it was asked for."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "engine.sock"))
        listener.listen()

        def made(answers: dict[str, str]) -> tuple[Engine, list[str]]:
            asked: list[str] = []

            def answer() -> None:
                while True:
                    try:
                        connection, _ = listener.accept()
                    except OSError:
                        return
                    with connection:
                        asked.append(connection.recv(65536).split(b" ")[1].decode())
                        connection.sendall(answers.get(asked[-1], GONE).encode())

            threading.Thread(target=answer, daemon=True).start()

            def run(argv: list[str], **_: Any) -> Completed:
                asked.append(" ".join(argv[:2]))
                return Completed(tuple(argv), 0, b"1.2.3\n", b"", 0.1)

            return Engine(run, socket_path=str(tmp_path / "engine.sock")), asked

        yield made
        listener.shutdown(socket.SHUT_RDWR)


def test_it_is_read_from_the_answer_to_a_ping_for_which_docker_starts_no_program(serve: Serve) -> None:
    engine, asked = serve({"/_ping": PING, "/version": VERSION})
    assert engine.version() == "20.10.24+dfsg1"
    assert asked == ["/_ping"]


@pytest.mark.parametrize(
    "ping",
    [
        pytest.param("HTTP/1.1 200 OK\r\nServer: Libpod/4.3.1 (linux)\r\n\r\nOK", id="another engine"),
        pytest.param("HTTP/1.1 200 OK\r\n\r\nServer: Docker/9 (linux)", id="in the body"),
        pytest.param("HTTP/1.1 500 Bad\r\nServer: Docker/20.10.24 (linux)\r\n\r\n", id="an engine that is not well"),
        pytest.param(GONE, id="no ping"),
    ],
)
def test_an_engine_that_does_not_say_it_there_is_asked_for_it(serve: Serve, ping: str) -> None:
    engine, asked = serve({"/_ping": ping, "/version": VERSION})
    assert engine.version() == "4.3.1"
    assert asked == ["/_ping", "/version"]


def test_without_a_socket_the_command_is_asked(tmp_path: Path) -> None:
    def run(argv: list[str], **_: Any) -> Completed:
        return Completed(tuple(argv), 0, b"1.2.3\n", b"", 0.1)

    assert Engine(run, socket_path=str(tmp_path / "missing.sock")).version() == "1.2.3"
    assert Engine(run, socket_path="").version() == "1.2.3"
