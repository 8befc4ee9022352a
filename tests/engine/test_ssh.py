"""Servers by SSH: real sshd, real OpenSSH files on the client's side, the real agent behind it."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lightship.errors import LightshipError, TransportError
from lightship.model import Server
from lightship.transport.conversation import PROTOCOL, Conversation
from lightship.transport.host_keys import record
from lightship.transport.ssh import Network, SshTransport
from lightship.transport.zipapp import agent_file
from support.engine import Engine
from support.sshd import INNER_PORT, Client, Sshd, make_key

HELLO = {"protocol": PROTOCOL, "service": "shop", "root": "/srv/lightship", "container": "shop", "lock": False}


@pytest.fixture(scope="module")
def sshd(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    made = Sshd.start(engine, tmp_path_factory.mktemp("sshd"))
    yield made
    engine.docker("rm", "--force", "--volumes", made.name)


@pytest.fixture
def client(sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Client:
    folder = tmp_path / "ssh"
    folder.mkdir(mode=0o700)
    made = Client(folder, sshd)
    sshd.admit(made.key)
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return made


async def nobody(question: str) -> str | None:
    return None


async def hello(server: Server, network: Network | None = None) -> dict[str, Any]:
    """Connect, start the agent, ask what it finds."""
    transport = SshTransport(server, agent_file(), network or Network(nobody))
    async with await Conversation.open(transport) as conversation:
        answer = await conversation.call("hello", HELLO, timeout=20)
        await conversation.bye()
        return answer


def works(server: Server, network: Network | None = None) -> dict[str, Any]:
    return asyncio.run(hello(server, network))


def fails(server: Server, code: str, network: Network | None = None) -> TransportError:
    with pytest.raises(TransportError) as caught:
        asyncio.run(hello(server, network))
    assert caught.value.code == code, (caught.value.code, caught.value.message)
    assert caught.value.message.startswith("web1")
    assert caught.value.hint
    return caught.value


def test_root_needs_no_sudo_and_the_agent_is_sent_once(client: Client, sshd: Sshd) -> None:
    sshd.do("rm -rf /var/cache/lightship")
    assert works(client.server())["facts"]["hostname"]
    (kept,) = sshd.do("ls /var/cache/lightship").split()
    first = sshd.do(f"stat -c '%a %U %i' /var/cache/lightship /var/cache/lightship/{kept}")
    assert re.fullmatch(r"700 root \d+\n600 root \d+", first)
    works(client.server())
    assert sshd.do(f"stat -c '%a %U %i' /var/cache/lightship /var/cache/lightship/{kept}") == first


def test_a_user_with_sudo_becomes_root(client: Client, sshd: Sshd) -> None:
    assert works(client.server("deploy"))["facts"]["hostname"]
    assert works(client.server("deploy", sudo=True))["facts"]["hostname"]
    assert works(client.server("strict"))["facts"]["hostname"]
    assert sshd.do("test -e /home/deploy/.cache/lightship && echo kept || true") == ""


def test_what_a_login_shell_prints_does_not_matter(client: Client) -> None:
    assert works(client.server("noisy"))["facts"]["hostname"]


def test_sudo_that_asks_for_a_password_is_told_of(client: Client) -> None:
    error = fails(client.server("asks", sudo=True), "sudo-password")
    assert "NOPASSWD" in error.hint
    fails(client.server("plain", sudo=True), "sudo-password")


def test_without_root_there_is_no_agent(client: Client, sshd: Sshd) -> None:
    error = fails(client.server("plain", sudo=False), "not-root")
    assert "plain ALL=(root) NOPASSWD: ALL" in error.hint
    fails(client.server("plain"), "sudo-password")
    sudo = sshd.do("command -v sudo")
    sshd.do(f"mv {sudo} {sudo}.away")
    try:
        fails(client.server("plain", sudo=True), "sudo-missing")
    finally:
        sshd.do(f"mv {sudo}.away {sudo}")


def test_an_unknown_host_key_is_shown_and_never_taken(client: Client, sshd: Sshd) -> None:
    client.known.write_text("")
    client.configure("Host *\n  StrictHostKeyChecking no\n")
    error = fails(client.server(), "host-key-unknown")
    shown = sshd.do("ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub").split()[1]
    assert shown in error.message
    assert "lightship setup" in error.hint
    assert client.known.read_text() == ""
    client.configure("Host *\n  StrictHostKeyChecking no\n  UserKnownHostsFile none\n")
    fails(client.server(), "host-key-unknown")

    client.configure()
    record(client.known, error.detail["name"], error.detail["key"])
    works(client.server())


def test_a_changed_host_key_is_its_own_and_louder_error(client: Client, sshd: Sshd) -> None:
    works(client.server())
    sshd.new_host_keys()
    client.configure("Host *\n  StrictHostKeyChecking no\n")
    error = fails(client.server(), "host-key-changed")
    assert "CHANGED" in error.message
    assert f"-R '{sshd.address}'" in error.hint
    client.know()
    works(client.server())


def test_a_revoked_host_key_is_refused(client: Client, sshd: Sshd) -> None:
    lines = [f"@revoked * {key}\n" for key in sshd.host_keys().splitlines()]
    with client.known.open("a") as file:
        file.writelines(lines)
    fails(client.server(), "host-key-revoked")


def test_hashed_known_hosts_and_lines_that_are_none(client: Client) -> None:
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(client.known)], check=True, capture_output=True)
    assert client.sshd.address not in client.known.read_text()
    client.known.write_text("this is no line\n@marker x y z\n" + client.known.read_text())
    works(client.server())


def test_a_key_recorded_hashed_is_found_by_openssh_too(client: Client, sshd: Sshd) -> None:
    client.known.write_text("")
    client.configure("Host *\n  HashKnownHosts yes\n")
    detail = fails(client.server(), "host-key-unknown").detail
    record(Path(detail["file"]), detail["name"], detail["key"], hashed=detail["hash"])
    assert sshd.address not in client.known.read_text()
    works(client.server())
    found = subprocess.run(["ssh-keygen", "-F", sshd.address, "-f", str(client.known)], check=True, capture_output=True)
    assert b"found" in found.stdout


def test_a_jump_host_as_ssh_config_has_it(client: Client, sshd: Sshd) -> None:
    inner = "Host inner\n  HostName 127.0.0.1\n  Port 2222\n  User root\n"
    client.configure(f"{inner}  ProxyJump bastion\nHost bastion\n  HostName {sshd.address}\n  User deploy\n")
    network = Network(nobody)

    async def several() -> list[Any]:
        servers = [Server(f"web{number}", "inner") for number in range(4)]
        return await asyncio.gather(*(hello(server, network) for server in servers))

    assert len(asyncio.run(several())) == 4
    client.configure(f"{inner}  ProxyCommand ssh -F {client.config} -W %h:%p root@{sshd.address}\n")
    works(client.server(host="inner", user="root"))
    client.configure(f"{inner}  ProxyJump bastion\nHost bastion\n  HostName {sshd.address}\n  User deploy\n")
    client.know(f"[127.0.0.1]:{INNER_PORT}")
    assert "bastion" in fails(client.server(host="inner"), "host-key-unknown").message
    client.know()
    client.configure(f"Host inner\n  HostName 127.0.0.1\n  Port 2\n  ProxyJump root@{sshd.address}\n")
    assert "jump host" in fails(client.server(host="inner"), "ssh-refused").message


def test_names_that_ssh_config_gives(client: Client, sshd: Sshd) -> None:
    (client.folder / "more").write_text(f"Match originalhost shop.web user deploy\n  HostName {sshd.address}\n")
    client.configure(f"Include {client.folder}/more\n")
    works(client.server("deploy", host="shop.web"))
    client.know("the-alias")
    client.configure(f"Host shop.web\n  HostName {sshd.address}\n  HostKeyAlias the-alias\n")
    works(client.server(host="shop.web"))


def test_a_host_certificate_is_believed_of_its_authority_alone(client: Client, sshd: Sshd) -> None:
    authority = Path(f"{sshd.authority}.pub").read_text()
    sshd.certify_host("shop.web")
    try:
        client.known.write_text(f"@cert-authority *.web {authority}")
        client.configure(f"Host *.web\n  HostName {sshd.address}\n  HostKeyAlias %n\n".replace("%n", "shop.web"))
        works(client.server(host="shop.web"))
        client.configure(f"Host *.web\n  HostName {sshd.address}\n  HostKeyAlias other.web\n")
        fails(client.server(host="other.web"), "host-key-certificate")
        client.known.write_text("")
        fails(client.server(host="other.web"), "host-key-unknown")
    finally:
        sshd.put("/etc/ssh/host-cert.pub", "")


def test_a_certificate_instead_of_a_known_key(client: Client, sshd: Sshd) -> None:
    sshd.admit()
    fails(client.server(), "ssh-auth")
    certificate = sshd.certify_user(client.key, "root", "deploy")
    works(client.server("deploy"))
    moved = certificate.rename(client.folder / "elsewhere")
    fails(client.server(), "ssh-auth")
    client.configure(f"Host *\n  CertificateFile {moved}\n")
    works(client.server())


def test_a_key_with_a_passphrase_is_asked_for_once(client: Client, sshd: Sshd) -> None:
    locked = make_key(client.folder / "locked", passphrase="open sesame")
    sshd.admit(locked)
    client.configure(key=locked)
    error = fails(client.server(), "ssh-passphrase")
    assert f"ssh-add {locked}" in error.hint
    asked: list[str] = []

    async def person(question: str) -> str | None:
        asked.append(question)
        return "wrong" if len(asked) == 1 else "open sesame"

    network = Network(person)

    async def both() -> list[Any]:
        return await asyncio.gather(hello(client.server(), network), hello(client.server("deploy"), network))

    assert len(asyncio.run(both())) == 2
    assert len(asked) == 2
    assert str(locked) in asked[0]


def accepts(path: Path) -> bool:
    """Whether something listens at this Unix socket: the file is there a moment before."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def test_an_agent_holds_the_key(client: Client, sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = make_key(client.folder / "locked", passphrase="open sesame")
    sshd.admit(locked)
    client.configure(key=locked)
    listens = client.folder / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", str(listens)], stdout=subprocess.DEVNULL)
    try:
        helper = client.folder / "askpass"
        helper.write_text("#!/bin/sh\necho open sesame\n")
        helper.chmod(0o700)
        for _ in range(100):
            if accepts(listens):
                break
            asyncio.run(asyncio.sleep(0.05))
        environment = {**os.environ, "SSH_AUTH_SOCK": str(listens), "SSH_ASKPASS": str(helper)}
        environment["SSH_ASKPASS_REQUIRE"] = "force"
        subprocess.run(["ssh-add", "-q", str(locked)], check=True, env=environment, stdin=subprocess.DEVNULL)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(listens))
        works(client.server())
        client.configure("Host *\n  IdentitiesOnly yes\n", key=locked)
        works(client.server())
        client.configure("Host *\n  IdentitiesOnly yes\n")
        fails(client.server(), "ssh-auth")
        monkeypatch.delenv("SSH_AUTH_SOCK")
        client.configure(f"Host *\n  IdentityAgent {listens}\n")
        works(client.server())
    finally:
        process.terminate()
        process.wait()


def test_each_way_of_not_getting_there_has_its_code(client: Client, sshd: Sshd) -> None:
    fails(client.server(port=9), "ssh-refused")
    fails(client.server(host="no-such-name.invalid"), "ssh-unknown-name")
    other = make_key(client.folder / "other")
    client.configure(key=other)
    fails(client.server(), "ssh-auth")
    client.configure("Host *\n  ConnectTimeout 1\n")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        fails(client.server(host="127.0.0.1", port=silent.getsockname()[1]), "ssh-timeout")
    with socket.create_server(("127.0.0.1", 0)) as rude, ThreadPoolExecutor() as pool:
        closing = pool.submit(lambda: [rude.accept()[0].close() for _ in range(4)])
        fails(client.server(host="127.0.0.1", port=rude.getsockname()[1]), "ssh-turned-away")
        closing.result(10)
    client.configure("Host *\n  NoSuchWord yes\n")
    fails(client.server(), "ssh-config")


@pytest.mark.parametrize(
    ("path", "change", "code"),
    [
        ("/var/cache/lightship", "chmod 777 {0}", "agent-cache"),
        ("/var/cache/lightship", "chown deploy {0}", "agent-cache"),
        ("/var/cache/lightship", "mv {0} {0}.was && ln -s {0}.was {0}", "agent-cache"),
        ("/var/cache", "chmod o+w {0}", "agent-cache"),
    ],
)
def test_no_file_is_run_that_others_can_write(client: Client, sshd: Sshd, path: str, change: str, code: str) -> None:
    works(client.server())
    sshd.do(change.format(path))
    try:
        assert path in fails(client.server(), code).message
    finally:
        sshd.do("rm -rf /var/cache/lightship /var/cache/lightship.was; chmod 755 /var/cache; chown root /var/cache")


def test_a_file_that_is_not_what_its_name_says_is_not_run(client: Client, sshd: Sshd) -> None:
    works(client.server())
    sshd.do('for file in /var/cache/lightship/*; do echo "import os; os.mkdir(\'/pwned\')" >"$file"; done')
    works(client.server())
    assert sshd.do("test -e /pwned && echo yes || true") == ""


def test_python_that_is_missing_or_too_old(client: Client, sshd: Sshd) -> None:
    where = sshd.do("command -v python3")
    sshd.do(f"mv {where} {where}.away")
    try:
        assert "apt-get install python3" in fails(client.server(), "python-missing").hint
        assert "apt-get install python3" in fails(client.server("deploy"), "python-missing").hint
        # A real Python that says it is an older one, from before anything else is looked at.
        old = "import sys; sys.version_info = (3, 6, 8, 'final', 0); exec(compile(sys.argv.pop(1), 'c', 'exec'))"
        words = f'shift 3; code=$1; shift; exec {where}.away -I -S -c "{old}" "$code" "$@"'
        sshd.put(where, f"#!/bin/sh\n{words}\n")
        sshd.do(f"chmod 755 {where}")
        error = fails(client.server(), "python-old")
        assert "3.6" in error.message
    finally:
        sshd.do(f"mv {where}.away {where}")


SURVIVOR = """
import os, signal, sys, time
for name in (signal.SIGHUP, signal.SIGPIPE):
    signal.signal(name, signal.SIG_IGN)
os.write(1, b'{"id": 0}\\n')
while os.read(0, 65536):
    pass
time.sleep(1)
for _ in range(3):
    try:
        os.write(1, b"x" * 65536)
        os.write(2, b"x" * 65536)
    except OSError:
        pass
    time.sleep(0.3)
open(FILE, "w").write("survived")
"""


@pytest.mark.parametrize("user", ["root", "deploy", "strict"])
def test_what_works_on_survives_the_end_of_its_connection(
    client: Client, sshd: Sshd, tmp_path: Path, user: str
) -> None:
    file = f"/root/survived-{user}"
    agent = tmp_path / "agent.pyz"
    with zipfile.ZipFile(agent, "w") as archive:
        archive.writestr("__main__.py", SURVIVOR.replace("FILE", repr(file)))

    async def run() -> None:
        channel = await SshTransport(client.server(user), agent, Network(nobody)).open()
        assert await channel.receive() == b'{"id": 0}'
        await asyncio.to_thread(sshd.cut)
        with pytest.raises(TransportError):
            while await channel.receive() is not None:
                pass
        await channel.close(1)

    asyncio.run(run())
    for _ in range(60):
        if sshd.do(f"cat {file} 2>/dev/null || true") == "survived":
            return
        time.sleep(0.1)
    raise AssertionError("what worked on was ended with the connection")


def test_a_killed_connection_ends_the_agent_and_a_new_one_is_had(client: Client, sshd: Sshd) -> None:
    async def run() -> None:
        network = Network(nobody)
        transport = SshTransport(client.server("strict"), agent_file(), network)
        conversation = await Conversation.open(transport)
        await conversation.call("hello", {**HELLO, "lock": True, "service": "cut"}, timeout=20)
        assert len(sshd.agents()) >= 1
        await asyncio.to_thread(sshd.cut)
        with pytest.raises(LightshipError) as caught:
            await conversation.call("status", timeout=10)
        assert caught.value.code == "connection-lost"
        assert conversation.broken
        await conversation.close()
        again = await Conversation.open(transport)
        # The lock is free again: the agent has ended with its connection.
        await again.call("hello", {**HELLO, "lock": True, "service": "cut", "wait": 5}, timeout=20)
        await again.bye()

    asyncio.run(run())
    assert sshd.agents() == []


def test_many_at_once_do_not_frighten_an_sshd(client: Client, sshd: Sshd) -> None:
    # The usual limit: of more than ten that have not logged in yet, some are turned away.
    text = sshd.do("cat /etc/ssh/sshd_config")
    sshd.put("/etc/ssh/sshd_config", text.replace("MaxStartups 100", "MaxStartups 10:60:100"))
    sshd.stop()
    sshd.serve()
    network = Network(nobody)

    async def all_of_them() -> list[Any]:
        return await asyncio.gather(*(hello(client.server(), network) for _ in range(30)))

    try:
        assert len(asyncio.run(all_of_them())) == 30
    finally:
        sshd.put("/etc/ssh/sshd_config", text)
        sshd.stop()
        sshd.serve()
