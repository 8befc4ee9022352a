"""An agent that is held between commands: it goes on where the last one left off, and ends when nobody speaks to it."""

from __future__ import annotations

import asyncio
import os
import pwd
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightship.errors import LightshipError, LockedError, RefusedError, TransportError
from lightship.transport import bootstrap
from lightship.transport.conversation import Conversation
from lightship.transport.held import HeldTransport, new_token, python_for
from lightship.transport.shell import Ran
from lightship.transport.zipapp import agent_file
from support.promises import until

CACHE = (Path("/var/cache") if os.geteuid() == 0 else Path(pwd.getpwuid(os.geteuid()).pw_dir) / ".cache") / "lightship"


class Commands:
    """A server that is this machine; each command is a process, as Ansible's are."""

    def __init__(self) -> None:
        self.count = 0

    def run(self, command: str, data: bytes) -> Ran:
        self.count += 1
        done = subprocess.run(["sh", "-c", command], input=data, capture_output=True, check=False, timeout=60)
        return Ran(done.returncode, done.stdout, done.stderr.decode())


def transport(commands: Commands, silence: float = 60.0) -> HeldTransport:
    return HeldTransport("web1", commands.run, agent_file().read_bytes(), new_token(), sys.executable, silence)


def hello(root: Path, **more: Any) -> dict[str, Any]:
    words = {"protocol": 1, "service": "shop", "root": str(root), "container": "shop", "who": "me", "why": "a test"}
    return {**words, "lock": True, **more}


def talk(way: HeldTransport, *asked: tuple[str, dict[str, Any]]) -> list[Any]:
    """One task: ask all of it at once, and leave the agent held."""

    async def work() -> list[Any]:
        conversation = await Conversation.open(way)
        try:
            return await asyncio.gather(*(conversation.call(*one) for one in asked), return_exceptions=True)
        finally:
            await conversation.close()

    return asyncio.run(work())


def again(way: HeldTransport) -> HeldTransport:
    return HeldTransport(way.server, way.run, b"", way.token, way.python, started=True)


def is_held(way: HeldTransport) -> bool:
    return (CACHE / f"held-{way.token}").exists()


def test_it_keeps_the_lock_from_one_command_to_the_next(tmp_path: Path) -> None:
    commands = Commands()
    way = transport(commands)
    greeted, seen = talk(way, ("hello", hello(tmp_path)), ("status", {}))
    assert greeted["fence"] == 1
    assert seen["hostname"] == greeted["facts"]["hostname"]
    asked_together = commands.count

    (locked,) = talk(transport(Commands()), ("hello", hello(tmp_path)))
    assert isinstance(locked, LockedError)
    assert "a test" in locked.message

    (seen,) = talk(again(way), ("status", {}))
    assert seen["hostname"]
    assert commands.count == asked_together + 1
    talk(again(way), ("bye", {}))
    until(lambda: not is_held(way), 10, "the end of the agent")
    assert talk(transport(Commands()), ("hello", hello(tmp_path)), ("bye", {}))[0]["fence"] == 2


def test_its_socket_is_of_its_user_alone(tmp_path: Path) -> None:
    way = transport(Commands())
    talk(way, ("hello", hello(tmp_path)))
    try:
        assert CACHE.stat().st_mode & 0o077 == 0
        assert is_held(way)
    finally:
        talk(again(way), ("bye", {}))


def test_the_agent_is_sent_only_when_it_is_not_there(tmp_path: Path) -> None:
    other = agent_file().read_bytes() + f"\n# {new_token()}\n".encode()
    commands = Commands()
    for number, sent in ((1, 2), (2, 3)):
        way = HeldTransport("web1", commands.run, other, new_token(), sys.executable)
        talk(way, ("hello", hello(tmp_path, lock=False)), ("bye", {}))
        assert commands.count == sent, number


@pytest.mark.parametrize("how", ["silence", "a relay that is gone"])
def test_it_ends_when_nobody_speaks_to_it_any_more(tmp_path: Path, how: str) -> None:
    if how == "silence":
        way = transport(Commands(), silence=0.5)
        talk(way, ("hello", hello(tmp_path)))
    else:
        way = transport(Commands())
        talk(way, ("hello", hello(tmp_path)))
        holder = transport(Commands())
        # A request that takes long: the lock, which the first one has.
        command = bootstrap.held_command(sys.executable, way.token, None, sent=False)
        relay = subprocess.Popen(["sh", "-c", f"exec {command}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert relay.stdin is not None
        relay.stdin.write(bootstrap.SOURCE.encode() + SLOW)
        relay.stdin.flush()
        time.sleep(0.3)
        relay.kill()
        relay.communicate()
        del holder
    until(lambda: not is_held(way), 20, "the end of the agent")
    assert talk(transport(Commands()), ("hello", hello(tmp_path)), ("bye", {}))[0]["fence"] == 2


#: The beginning of a request, and no end: the relay is killed in the middle.
SLOW = b'{"id": 1, "op": "status"'


def failure(way: HeldTransport) -> LightshipError:
    (found,) = talk(way, ("status", {}))
    assert isinstance(found, LightshipError)
    return found


def test_what_cannot_be_had_is_told_in_words() -> None:
    gone = HeldTransport("web1", Commands().run, b"", new_token(), sys.executable, started=True)
    assert isinstance(failure(gone), TransportError)
    assert failure(gone).code == "agent-gone"

    def says(status: int, out: bytes, errors: str = "") -> Callable[[str, bytes], Ran]:
        return lambda command, data: Ran(status, out, errors)

    old = HeldTransport("web1", says(3, b'{"code":"python-old","text":"Python 3.6","lightship-agent":"error"}\n'), b"x",
                        new_token())  # fmt: skip
    assert "Python 3.6" in failure(old).message
    nothing = HeldTransport("web1", says(127, b"welcome\n", "python3: not found"), b"x", new_token())
    assert isinstance(failure(nothing), RefusedError)
    assert "python3: not found" in failure(nothing).message


@pytest.mark.parametrize(
    ("configured", "used"),
    [
        ("/usr/bin/python3.12", "/usr/bin/python3.12"),
        ("python3.11", "python3.11"),
        ("auto_silent", "python3"),
        ("/usr/bin/python3; id", "python3"),
        ("{{ a }}", "python3"),
        (None, "python3"),
    ],
)
def test_only_a_plain_interpreter_reaches_the_command(configured: object, used: str) -> None:
    assert python_for(configured) == used
