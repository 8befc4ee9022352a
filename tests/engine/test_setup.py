"""``lightship setup``, on a real and bare Debian behind a real sshd: no git, no Docker, not even Python."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.engine import Engine
from support.sshd import Client, Sshd

_BARE = """
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
RUN apt-get update && apt-get install -y --no-install-recommends openssh-server sudo && mkdir -p /run/sshd \\
    && apt-get purge -y git 'python3*' && rm -f /usr/local/bin/python* /usr/bin/python* \\
    && apt-get clean && useradd --create-home --shell /bin/bash plain && usermod -p '*' plain
COPY sshd_config /etc/ssh/sshd_config
"""
_PROGRAM = "from lightship.cli.entry import run; run()"


@pytest.fixture(scope="module")
def bare(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    made = Sshd.start(engine, tmp_path_factory.mktemp("bare"), _BARE)
    yield made
    engine.docker("rm", "--force", "--volumes", made.name)


class Setup:
    """The command, as somebody runs it who has never been on the server."""

    def __init__(self, folder: Path, sshd: Sshd) -> None:
        (folder / "ssh").mkdir(mode=0o700)
        self.client = Client(folder / "ssh", sshd)
        sshd.admit(self.client.key)
        self.sshd = sshd
        self.file = folder / "lightship.yml"
        self.configure()

    def configure(self, user: str = "root") -> None:
        self.file.write_text(
            "services:\n  shop:\n    repository: /srv/git/shop.git\n"
            f"    servers: [{{name: web1, host: {self.sshd.address}, user: {user}}}]\n"
        )

    def forget(self) -> None:
        """No host key is known."""
        self.client.known.unlink(missing_ok=True)

    def run(
        self, *words: str, stdin: int = subprocess.DEVNULL, command: str = "setup"
    ) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if name != "SSH_AUTH_SOCK"}
        return subprocess.run(
            [sys.executable, "-c", _PROGRAM, command, "--config", str(self.file), *words],
            stdin=stdin,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
            env=environment | self.client.environment,
        )

    def json(self, *words: str, status: int, command: str = "setup") -> dict[str, Any]:
        done = self.run("--json", *words, command=command)
        assert done.returncode == status, done.stdout + done.stderr
        return dict(json.loads(done.stdout))

    @property
    def shown(self) -> str:
        """What the server itself says that its key is."""
        return self.sshd.do("ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub").split()[1]


@pytest.fixture
def setup(bare: Sshd, tmp_path: Path) -> Setup:
    return Setup(tmp_path, bare)


def states(answer: dict[str, Any]) -> dict[str, str]:
    (server,) = answer["result"]["servers"]
    return {item["name"]: item["state"] for item in server["items"]}


def test_without_a_yes_no_key_is_recorded(setup: Setup) -> None:
    setup.forget()
    done = setup.run()
    assert done.returncode == 3
    assert setup.shown in done.stdout + done.stderr
    assert f"--accept-host-key {setup.shown}" in done.stderr
    assert not setup.client.known.exists()
    answer = setup.json(status=3)
    assert answer["error"]["code"] == "host-key-confirm"
    shown = setup.json("--dry-run", "--yes", status=3)
    assert [key["recorded"] for key in shown["result"]["host_keys"]] == [False]
    assert not setup.client.known.exists()


def test_another_fingerprint_is_refused_even_with_yes(setup: Setup) -> None:
    setup.forget()
    other = "SHA256:" + "A" * 43
    assert setup.json("--yes", "--accept-host-key", other, status=3)["error"]["code"] == "host-key-other"
    assert setup.json("--accept-host-key", setup.shown[:-1], status=2)["error"]["code"] == "fingerprint"
    assert not setup.client.known.exists()


def test_the_right_fingerprint_is_recorded_once(setup: Setup) -> None:
    setup.forget()
    answer = setup.json("--accept-host-key", setup.shown, status=3)
    # The key was recorded; what else is to change still needs its own yes.
    assert answer["error"]["code"] == "setup-confirm"
    known = setup.client.known.read_text()
    assert known.split()[1] == "ssh-ed25519"
    assert setup.client.known.stat().st_mode & 0o077 == 0
    setup.json("--accept-host-key", setup.shown, "--dry-run", status=0)
    assert setup.client.known.read_text() == known


@pytest.mark.parametrize(("said", "recorded"), [("y\n", True), ("\n", False), ("no\n", False)])
def test_a_person_is_asked(setup: Setup, said: str, recorded: bool) -> None:
    setup.forget()
    ours, theirs = pty.openpty()
    try:
        # Nothing more is answered: the end of the input is a no to the plan.
        os.write(ours, (said + "\n").encode())
        done = setup.run(stdin=theirs)
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == (5 if recorded else 3), done.stdout + done.stderr
    assert setup.shown in done.stdout
    assert setup.client.known.exists() is recorded
    assert setup.sshd.do("test -e /srv/lightship && echo made || true") == ""


def test_a_changed_key_is_never_recorded(setup: Setup) -> None:
    setup.client.know()
    known = setup.client.known.read_text()
    setup.sshd.new_host_keys()
    answer = setup.json("--yes", "--accept-host-key", setup.shown, status=3)
    (server,) = answer["result"]["servers"]
    assert server["error"]["code"] == "host-key-changed"
    assert "ssh-keygen -f" in server["error"]["hint"]
    assert setup.client.known.read_text() == known


def test_a_user_who_is_not_root_is_told_what_to_do(setup: Setup) -> None:
    setup.client.know()
    setup.configure("plain")
    answer = setup.json("--yes", status=3)
    (server,) = answer["result"]["servers"]
    assert [(one["name"], one["state"]) for one in server["items"]] == [("root", "person")]
    assert "NOPASSWD" in server["items"][0]["hint"]


def test_a_bare_server_is_brought_to_ready_once(setup: Setup) -> None:
    setup.client.know()
    assert setup.sshd.do("command -v python3 git docker || true") == ""
    plan = setup.json("--dry-run", status=0)
    assert states(plan)["python3"] == "change"
    assert setup.sshd.do("command -v python3 git docker || true") == ""

    # No systemd runs in a container: what setup cannot do there, start the engine, it leaves to a person, and says so.
    first = setup.json("--yes", status=5)
    assert first["result"]["changed"] > 0
    found = states(first)
    assert found.pop("engine") == "person"
    assert set(found) == {"root", "system", "python3", "git", "certificates", "docker", "directory"}
    assert set(found.values()) == {"ok"}
    assert setup.sshd.do("git --version && docker --version && python3 --version && stat -c '%u:%g %a' /srv/lightship")
    assert setup.sshd.do("stat -c '%u:%g %a' /srv/lightship") == "0:0 755"

    second = setup.json("--yes", status=3)
    assert second["result"]["changed"] == 0
    assert states(second) == states(first)

    setup.sshd.do("chmod 777 /srv/lightship; chown 1:1 /srv/lightship")
    assert setup.json("--yes", status=5)["result"]["changed"] == 1
    assert setup.sshd.do("stat -c '%u:%g %a' /srv/lightship") == "0:0 755"

    setup.sshd.do("rm -rf /srv/lightship; ln -s /etc /srv/lightship")
    answer = setup.json("--yes", status=3)
    assert states(answer)["directory"] == "person"
    assert setup.sshd.do("stat -L -c '%u:%g %a' /srv/lightship") == "0:0 755"


def test_where_apt_fails_its_output_is_shown(setup: Setup) -> None:
    setup.client.know()
    setup.sshd.do(
        "apt-get purge -y git >/dev/null 2>&1; mv /etc/apt /etc/apt.away; mkdir /etc/apt; apt-get clean;"
        " rm -rf /var/lib/apt/lists; rm -f /srv/lightship"
    )
    try:
        done = setup.run("--yes")
    finally:
        setup.sshd.do("rm -r /etc/apt; mv /etc/apt.away /etc/apt")
    assert done.returncode in (3, 5)
    assert "apt-get" in done.stdout
    assert "E: " in done.stdout


def doctor(setup: Setup) -> dict[str, dict[str, Any]]:
    answer = setup.json(status=5, command="doctor")
    return {("there " if one["server"] else "") + one["name"]: one for one in answer["result"]["checks"]}


def test_the_doctor_finds_what_was_broken_on_purpose(setup: Setup) -> None:
    setup.forget()
    found = doctor(setup)
    assert found["there host key"]["state"] == "wrong"
    assert "lightship setup" in found["there host key"]["hint"]

    setup.client.know()
    setup.sshd.do("command -v python3 || { apt-get update && apt-get install -y --no-install-recommends python3 git; }")
    setup.sshd.do("rm -rf /srv/lightship && mkdir -m 777 /srv/lightship")
    found = doctor(setup)
    # The repository is on neither side, no engine answers, and others may write to the directory.
    wrong = {name for name, one in found.items() if one["state"] == "wrong"}
    assert {"git host", "there git from there", "there engine", "there directory"} <= wrong
    assert all(found[name]["hint"] for name in wrong)
    assert found["there connection"]["state"] == found["there clock"]["state"] == "ok"

    setup.sshd.do(
        "chmod 755 /srv/lightship; mkdir -p /srv/lightship/shop/state;"
        """ echo '{"phase": "begin"}' >/srv/lightship/shop/state/journal"""
    )
    found = doctor(setup)
    assert found["there directory"]["state"] == "ok"
    assert found["there journal"]["state"] == "warning"
    setup.file.write_text("services: 5")
    assert doctor(setup)["configuration"]["state"] == "wrong"
