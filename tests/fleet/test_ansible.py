"""The collection on real servers: by the real ansible-playbook over SSH, as a user who becomes root by sudo."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.playbooks import Playbooks, Ran
from support.promises import until
from support.servers import Fleet, Servers, all_run, outcomes

HOSTS = """
[web]
{hosts}
[web:vars]
ansible_user=deploy
ansible_python_interpreter=/usr/bin/python3
"""


def playbooks_for(fleet: Fleet, folder: Path, hosts: str = "") -> Playbooks:
    """Playbooks for a service on the servers."""
    folder.mkdir(exist_ok=True)
    inventory = folder / "hosts.ini"
    inventory.write_text(HOSTS.format(hosts=hosts or "\n".join(fleet.servers.names)))
    ssh = f"-F {fleet.servers.config} -oUser=deploy -oControlMaster=auto -oControlPersist=60s -oControlPath={folder}/%C"
    environment = {**fleet.servers.environment, "ANSIBLE_SSH_ARGS": ssh}
    variables = {"service": fleet.name, "lightship_config": str(fleet.folder / "lightship.yml")}
    return Playbooks(folder, inventory, environment, variables=variables)


@pytest.fixture
def ansible(live: Fleet, tmp_path: Path) -> Iterator[Playbooks]:
    yield playbooks_for(live, tmp_path / "ansible")


def nobody(ran: Ran, fleet: Fleet) -> bool:
    """Whether the run changed nothing anywhere."""
    return ran.changed == dict.fromkeys(fleet.servers.names, 0)


def test_a_code_deploy_is_foretold_done_once_and_taken_up_by_the_command_line(live: Fleet, ansible: Playbooks) -> None:
    before, first = live.fingerprints(), live.release
    second = live.new()
    foretold = ansible.run("lightship.deploy.code", "--check", "--diff")
    assert live.fingerprints() == before
    assert f"-commit: {first}" in foretold.output and f"+commit: {second}" in foretold.output
    assert "service/version.py" in foretold.output

    done = ansible.run("lightship.deploy.code")
    all_run(live, second)
    assert done.changed == foretold.changed
    assert all(done.changed.values())
    before = live.fingerprints()
    assert nobody(ansible.run("lightship.deploy.code"), live)
    assert live.fingerprints() == before
    assert all(one.agents() == 0 for one in live.servers.machines)

    assert outcomes(live.deploy()) == dict.fromkeys(live.servers.names, "nothing")
    live.run("rollback", "--json", expect=0)
    all_run(live, first)
    ansible.run("lightship.deploy.rollback", to=second)
    all_run(live, second)
    assert nobody(ansible.run("lightship.deploy.rollback", to=second), live)
