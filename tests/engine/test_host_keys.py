"""The key of the git host is verified: one that is not known, or not the one that is known, is refused.

A container is both the server and the git host: it runs a real sshd with a repository behind it, and the agent.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightship.transport.zipapp import agent_bytes
from support.engine import Engine, server_image

PORT = 2222
URL = f"ssh://root@localhost:{PORT}/srv/git/shop.git"
DOCKERFILE = """
ARG SERVER_IMAGE
FROM ${SERVER_IMAGE}
ENTRYPOINT []
RUN mkdir -p /run/sshd && ssh-keygen -q -A && ssh-keygen -q -t ed25519 -N "" -f /root/.ssh/id_ed25519 \\
    && cp /root/.ssh/id_ed25519.pub /root/.ssh/authorized_keys \\
    && git init -q -b main /tmp/shop && cd /tmp/shop \\
    && git -c user.name=a -c user.email=a@example.org commit -q --allow-empty -m first \\
    && git clone -q --bare /tmp/shop /srv/git/shop.git
COPY agent.pyz /agent.pyz
"""


class GitHost:
    """The container."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine = engine
        (folder / "Dockerfile").write_text(DOCKERFILE)
        (folder / "agent.pyz").write_bytes(agent_bytes())
        image = engine.build(folder, engine.name("githost"), "--build-arg", f"SERVER_IMAGE={server_image()}")
        self.name = engine.name("githost")
        engine.run("--init", image, "sleep", "infinity", name=self.name)
        self.start()

    def do(self, script: str) -> str:
        """Run a script in the container; what it said."""
        return self.engine.docker("exec", self.name, "sh", "-ec", script)

    def start(self) -> None:
        self.do(
            f"/usr/sbin/sshd -p {PORT} -o PidFile=/run/sshd.pid -o UsePAM=no -o AuthorizedKeysFile=.ssh/authorized_keys"
        )

    def new_key(self) -> None:
        """The host has another key from now on."""
        self.do("kill $(cat /run/sshd.pid); rm /etc/ssh/ssh_host_*; ssh-keygen -q -A")
        self.start()

    def know(self) -> None:
        """The administrator has looked at the key and takes it for the host's."""
        self.do(f"ssh-keyscan -p {PORT} localhost >/root/.ssh/known_hosts 2>/dev/null")

    @property
    def commit(self) -> str:
        return self.do("git --git-dir=/srv/git/shop.git rev-parse main")

    def inspect(self) -> dict[str, Any]:
        """Have the agent fetch the branch into a new mirror; its answer."""
        hello = {"protocol": 1, "service": "shop", "root": "/srv/lightship", "container": "shop"}
        asked = {"repository": URL, "ref": "main", "commit": None, "infra": []}
        lines = [{"id": 1, "op": "hello", "args": hello}, {"id": 2, "op": "inspect", "args": asked}]
        text = "\n".join(map(json.dumps, lines))
        said = self.do(f"rm -rf /srv/lightship; cat <<'END' | python3 -I -S /agent.pyz\n{text}\nEND")
        answers = [found for found in map(json.loads, said.splitlines()) if found["id"] == 2 and "event" not in found]
        (answer,) = answers
        return dict(answer)


@pytest.fixture(scope="module")
def host(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitHost]:
    made = GitHost(engine, tmp_path_factory.mktemp("githost"))
    yield made
    engine.docker("rm", "--force", "--volumes", made.name)


def refused(answer: dict[str, Any]) -> None:
    error = answer["error"]
    assert (error["outcome"], error["code"]) == ("refused", "git-host-key"), error
    assert "known_hosts" in error["hint"]


def test_an_unknown_host_is_refused_whatever_the_users_configuration_says(host: GitHost) -> None:
    refused(host.inspect())
    host.do(
        "printf 'Host *\\n  StrictHostKeyChecking no\\n  UserKnownHostsFile /root/.ssh/other\\n' >/root/.ssh/config"
    )
    refused(host.inspect())
    assert host.do("ls /root/.ssh") == "authorized_keys\nconfig\nid_ed25519\nid_ed25519.pub", "a key was taken unseen"
    host.do("rm /root/.ssh/config")


def test_a_known_host_is_fetched_from(host: GitHost) -> None:
    host.know()
    assert host.inspect()["result"]["commit"] == host.commit


def test_a_host_with_another_key_is_refused(host: GitHost) -> None:
    host.know()
    host.new_key()
    refused(host.inspect())
    host.know()
    assert host.inspect()["result"]["commit"] == host.commit
