"""Connections that are kept (`keep_connected`): the next command finds its servers' agents started and waiting."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lightship.errors import LightshipError, LockedError
from lightship.model import Server
from lightship.operations import connections as operations
from lightship.operations.context import Connector
from lightship.pool import client as pool
from lightship.pool.client import KeptChannel
from lightship.pool.wire import place
from lightship.transport.base import Transport
from lightship.transport.conversation import PROTOCOL, Conversation
from lightship.transport.zipapp import agent_file
from support.engine import Engine
from support.sshd import Client, Sshd, make_key

HELLO = {"protocol": PROTOCOL, "service": "shop", "root": "/srv/lightship", "container": "shop", "lock": False}
LOCKED = {**HELLO, "lock": True}


@pytest.fixture(scope="module")
def sshd(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    made = Sshd.start(engine, tmp_path_factory.mktemp("sshd"))
    yield made
    engine.docker("rm", "--force", "--volumes", made.name)


@pytest.fixture
def client(sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    folder = tmp_path / "ssh"
    folder.mkdir(mode=0o700)
    made = Client(folder, sshd)
    sshd.admit(made.key)
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    # A folder with a short name, as a socket's path has to be short.
    with tempfile.TemporaryDirectory(prefix="pool-") as runtime:
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
        yield made
        pool.ask({"op": "close"})
        until(lambda: pool_process(made) is None)
    until(lambda: sshd.agents() == [])


def until(true: Callable[[], Any], seconds: float = 15.0) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.05)


def pool_process(client: Client) -> int | None:
    """The pool of this test, by its environment."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"lightship.pool" in (entry / "cmdline").read_bytes().split(b"\0"):
                wanted = f"LIGHTSHIP_SSH_CONFIG={client.config}".encode()
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    return int(entry.name)
    return None


def kept(*servers: Server, seconds: float = 60, agent: Path | None = None) -> None:
    """Have the connections kept, and wait until they are."""
    pool.keep(servers, agent or agent_file(), seconds)
    until(lambda: len(operations.connections().connections) == len(servers))


@contextlib.asynccontextmanager
async def borrowed(server: Server) -> AsyncIterator[Conversation]:
    """A conversation over the kept connection."""
    channel = await pool.borrow(server, agent_file(), 60)
    assert channel is not None
    async with contextlib.aclosing(_Closing(Conversation(server.name, channel))) as held:
        yield held.conversation


class _Closing:
    def __init__(self, conversation: Conversation) -> None:
        self.conversation = conversation

    async def aclose(self) -> None:
        await self.conversation.close(5)


def converse(server: Server, hello: dict[str, Any] = HELLO) -> None:
    """Hold one whole conversation over the kept connection."""

    async def run() -> None:
        async with borrowed(server) as conversation:
            await conversation.call("hello", hello, timeout=20)
            await conversation.bye()

    asyncio.run(run())


async def none_there(server: Server) -> bool:
    """Whether a command would have to connect by itself. A connection that is there is used up by the question, as by
    each conversation that is broken off."""
    channel = await pool.borrow(server, agent_file(), 60)
    if channel is not None:
        await channel.close(1)
    return channel is None


def logins(sshd: Sshd) -> int:
    """How many connections are logged in."""
    return int(sshd.do("pgrep -fc '^sshd: [a-z]+( |@|$)' || true"))


@pytest.mark.parametrize("user", ["root", "deploy", "strict", "noisy"])
def test_one_login_serves_many_conversations_and_each_has_a_process_of_its_own(
    client: Client, sshd: Sshd, user: str
) -> None:
    server = client.server(user)
    kept(server)
    logged_in = logins(sshd)

    async def three() -> None:
        for number in range(3):
            async with borrowed(server) as conversation:
                answer = await conversation.call("hello", {**LOCKED, "service": f"shop{number}"}, timeout=20)
                assert answer["facts"]["hostname"]
                await conversation.bye()

    asyncio.run(three())
    assert logins(sshd) == logged_in
    (found,) = operations.connections().connections
    assert (found.server, found.user, found.conversations, found.in_use) == ("web1", user, 3, False)
    assert 0 < found.seconds_left <= 60


def test_without_a_pool_nothing_is_found_and_nothing_started(client: Client) -> None:
    assert asyncio.run(none_there(client.server()))
    assert operations.connections() == operations.Connections()
    assert operations.close() == operations.Closed()
    assert pool_process(client) is None


def test_what_is_not_used_for_its_time_ends_on_both_sides_and_the_pool_with_it(client: Client, sshd: Sshd) -> None:
    kept(client.server(), seconds=6)
    assert len(sshd.agents()) == 1
    until(lambda: sshd.agents() == [])
    until(lambda: pool_process(client) is None)
    assert list((client.folder.parent / "run" / "lightship").glob("*[0-9a-f]")) == []


def test_each_use_renews_the_time(client: Client) -> None:
    server = client.server()
    kept(server, seconds=6)
    converse(server)  # for 60 s more
    time.sleep(7)
    assert len(operations.connections().connections) == 1


def test_a_conversation_that_is_broken_off_is_the_agents_end_and_its_lock_is_free(client: Client, sshd: Sshd) -> None:
    server = client.server()
    kept(server)

    async def run() -> None:
        async with borrowed(server) as conversation:
            await conversation.call("hello", LOCKED, timeout=20)
        # No bye: the controller was killed, or an error ended the command.

    asyncio.run(run())
    until(lambda: sshd.agents() == [])
    kept(server)  # as each command asks for at its end
    converse(server, LOCKED)


def test_a_command_that_is_killed_frees_the_lock(client: Client, sshd: Sshd) -> None:
    kept(client.server())
    script = f"""
import asyncio, pathlib
from lightship.model import Server
from lightship.pool import client
from lightship.transport.base import Transport
from lightship.transport.conversation import Conversation

async def run():
    server = Server("web1", {client.sshd.address!r}, "root")
    channel = await client.borrow(server, pathlib.Path({str(agent_file())!r}), 60)
    conversation = Conversation("web1", channel)
    await conversation.call("hello", {LOCKED!r})
    print("locked", flush=True)
    await asyncio.sleep(60)

asyncio.run(run())
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        process.kill()
    until(lambda: sshd.agents() == [])


def test_two_commands_at_once_do_not_share_one(client: Client) -> None:
    server = client.server()
    kept(server)

    async def two() -> None:
        async with borrowed(server) as first:
            assert await none_there(server)
            await first.call("hello", HELLO, timeout=20)
            (found,) = operations.connections().connections
            assert found.in_use
            await first.bye()

    asyncio.run(two())


def test_the_lock_holds_between_a_kept_connection_and_another(client: Client) -> None:
    root, other = client.server(), client.server("deploy")
    kept(root, other)

    async def both() -> None:
        async with borrowed(root) as first, borrowed(other) as second:
            await first.call("hello", LOCKED, timeout=20)
            with pytest.raises(LockedError):
                await second.call("hello", LOCKED, timeout=20)
            await first.bye()

    asyncio.run(both())


def test_another_version_of_the_agent_is_not_used_and_takes_the_place(client: Client, tmp_path: Path) -> None:
    server = client.server()
    older = tmp_path / "agent-older.pyz"
    older.write_bytes(agent_file().read_bytes())
    kept(server, agent=older)
    (found,) = operations.connections().connections
    assert asyncio.run(none_there(server))
    pool.keep([server], agent_file(), 60)
    until(lambda: any(one.since > found.since for one in operations.connections().connections))
    converse(server)
    assert len(operations.connections().connections) == 1


def test_a_connection_that_is_cut_while_it_waits_is_forgotten(client: Client, sshd: Sshd) -> None:
    server = client.server()
    kept(server)
    sshd.cut()
    until(lambda: operations.connections().connections == ())
    assert asyncio.run(none_there(server))


def test_a_server_that_is_silent_holds_nobody_up_for_long(client: Client, sshd: Sshd) -> None:
    server = client.server()
    kept(server)
    sshd.do("pkill -STOP -f '^sshd: [a-z]'")
    try:
        began = time.monotonic()
        assert asyncio.run(none_there(server))
        assert time.monotonic() - began < 10
    finally:
        sshd.do("pkill -CONT -f '^sshd: [a-z]'")
    until(lambda: sshd.agents() == [])


def test_a_connection_that_is_cut_in_the_middle_is_a_lost_connection(client: Client, sshd: Sshd) -> None:
    server = client.server()
    kept(server)

    async def run() -> None:
        async with borrowed(server) as conversation:
            await conversation.call("hello", LOCKED, timeout=20)
            await asyncio.to_thread(sshd.cut)
            with pytest.raises(LightshipError) as caught:
                await conversation.call("status", timeout=10)
            assert caught.value.code == "connection-lost"

    asyncio.run(run())
    until(lambda: sshd.agents() == [])


def test_a_pool_that_is_killed_in_the_middle_is_a_lost_connection(client: Client, sshd: Sshd) -> None:
    server = client.server()
    kept(server)
    process = pool_process(client)
    assert process is not None

    async def run() -> None:
        async with borrowed(server) as conversation:
            await conversation.call("hello", LOCKED, timeout=20)
            os.kill(process, signal.SIGKILL)
            with pytest.raises(LightshipError) as caught:
                await conversation.call("status", timeout=10)
            assert caught.value.code == "connection-lost"

    asyncio.run(run())
    until(lambda: sshd.agents() == [])
    kept(server)  # what the killed one left in its place is in nobody's way


def test_a_pool_that_is_to_end_lets_a_conversation_end_first(client: Client, sshd: Sshd) -> None:
    root, other = client.server(), client.server("deploy")
    kept(root, other)
    process = pool_process(client)
    assert process is not None

    async def run() -> None:
        async with borrowed(root) as conversation:
            await conversation.call("hello", LOCKED, timeout=20)
            os.kill(process, signal.SIGTERM)
            await asyncio.sleep(2)
            assert len(sshd.agents()) == 2  # the one that waits, and its conversation
            await conversation.call("status", timeout=20)
            await conversation.bye()

    asyncio.run(run())
    until(lambda: pool_process(client) is None)
    until(lambda: sshd.agents() == [])


def test_an_agent_that_is_killed_is_not_lent(client: Client, sshd: Sshd) -> None:
    server = client.server()
    kept(server)
    sshd.do("pkill -KILL -f '^python3 .*-c'")
    assert asyncio.run(none_there(server))


def test_large_lines_pass(client: Client) -> None:
    server = client.server()
    kept(server)

    async def run() -> None:
        async with borrowed(server) as conversation:
            large = "x" * (7 * 1024 * 1024)
            await conversation.call("hello", {**HELLO, "unknown": large}, timeout=30)
            with pytest.raises(LightshipError) as caught:
                await conversation.call("inspect", {"repository": large}, timeout=30)
            assert caught.value.code != "connection-lost"
            await conversation.bye()

    asyncio.run(run())


def test_a_key_with_a_passphrase_cannot_be_used_and_it_is_said_why(client: Client, sshd: Sshd) -> None:
    locked = make_key(client.folder / "id_locked", passphrase="secret")
    sshd.admit(client.key, locked)
    client.configure(key=locked)
    pool.keep([client.server()], agent_file(), 60)
    until(lambda: operations.connections().problems)
    (problem,) = operations.connections().problems
    assert problem.server == "web1"
    assert problem.message
    assert operations.connections().connections == ()


def test_closing_spares_what_is_in_use_until_it_has_ended(client: Client, sshd: Sshd) -> None:
    root, other = client.server(), client.server("deploy")
    kept(root, other)

    async def run() -> None:
        async with borrowed(root) as conversation:
            await conversation.call("hello", LOCKED, timeout=20)
            assert operations.close() == operations.Closed(closed=1, in_use=1)
            await asyncio.sleep(1.5)
            await conversation.call("status", timeout=20)
            await conversation.bye()

    asyncio.run(run())
    until(lambda: sshd.agents() == [])
    until(lambda: pool_process(client) is None)


def test_commands_that_begin_at_once_start_one_pool(client: Client) -> None:
    servers = [client.server(), client.server("deploy")]
    for server in servers:
        pool.keep([server], agent_file(), 60)
    until(lambda: len(operations.connections().connections) == len(servers))


def test_nobody_else_gets_at_it(client: Client) -> None:
    kept(client.server())
    path = place()
    assert path.stat().st_mode & 0o077 == 0
    assert path.parent.stat().st_mode & 0o077 == 0
    words = json.dumps({"op": "list"}).encode() + b"\n"
    script = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); "
        "s.sendall(sys.stdin.buffer.read()); print(s.recv(100))"
    )
    # Even where the directories would let somebody in.
    for folder in (path, *path.parents):
        if folder == Path("/tmp"):
            break
        folder.chmod(0o777)
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-c", script, path],
        input=words,
        capture_output=True,
        check=False,
    )
    assert done.stdout.strip() in (b"b''", b""), done
    with pytest.raises(LightshipError, match="others can write there"):
        place()  # and then it is not used by its owner, either
    path.parent.chmod(0o700)
    assert place() == path


def test_where_no_socket_can_be_a_command_goes_its_own_way_and_who_asks_is_told(client: Client) -> None:
    server, folder = client.server(), Path(os.environ["XDG_RUNTIME_DIR"]) / ("far" * 30)
    folder.mkdir(mode=0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(folder))
        connector = Connector([server], keep=60)
        assert asyncio.run(_exit_status(connector(server.name))) == 0
        connector.keep()
        with pytest.raises(LightshipError, match="its path is too long for a socket") as told:
            operations.connections()
    assert "XDG_RUNTIME_DIR" in str(told.value.hint)
    assert pool_process(client) is None


async def _exit_status(transport: Transport) -> int | None:
    channel = await transport.open()
    return await channel.close(5)


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"\n", b"nonsense\n", b"[]\n", b'{"op": "open"}\n', b'{"op": 5}\n', b"x" * 100_000 + b"\n"),
        b'{"op": "keep", "seconds": -1, "connections": []}\n',
        b'{"op": "keep", "seconds": 1e9, "connections": []}\n',
        b'{"op": "keep", "seconds": 5, "connections": [{"host": 1}]}\n',
        b'{"op": "open", "connection": {}, "seconds": 5}\n',
    ],
)
def test_what_it_does_not_understand_harms_nobody(client: Client, line: bytes) -> None:
    server = client.server()
    kept(server)

    async def send() -> None:
        reader, writer = await asyncio.open_unix_connection(str(place()))
        writer.write(line)
        writer.write_eof()
        await asyncio.wait_for(reader.read(), 5)
        writer.close()

    asyncio.run(send())
    assert not asyncio.run(none_there(server))


def test_a_channel_whose_end_was_heard_says_nothing_more(client: Client) -> None:
    server = client.server()
    kept(server)

    async def run() -> None:
        channel = await pool.borrow(server, agent_file(), 60)
        assert isinstance(channel, KeptChannel)
        for number, op in enumerate(("hello", "bye")):
            await channel.send(json.dumps({"id": number, "op": op, "args": HELLO}).encode())
            assert "result" in json.loads(await channel.receive() or b"")
        assert await channel.receive() is None
        assert await channel.receive() is None
        assert await channel.close(5) == 0

    asyncio.run(run())
