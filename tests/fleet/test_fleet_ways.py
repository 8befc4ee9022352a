"""The ways to a fleet's servers: users, jump hosts, host keys and inventories, on real ones."""

from __future__ import annotations

import json

import pytest

from support.servers import Fleet, no_failures


def test_a_sudo_user_behind_a_jump_host(live: Fleet) -> None:
    *others, inner = live.servers.machines
    try:
        live.servers.configure(f"Host {inner.name}\n  User deploy\n  ProxyJump {others[0].name}\n")
        # Nothing else than the jump host reaches it.
        inner.do(f"iptables -I INPUT -p tcp --dport 22 ! -s {others[0].address} -j REJECT")
        with live.loads() as loads:
            live.goes_on()
        no_failures(loads)
    finally:
        inner.mend()
        live.servers.configure()


def test_a_changed_host_key_is_refused_and_never_left_out(live: Fleet) -> None:
    changed = live.servers.machines[-1]
    before = live.currents
    with live.loads() as loads:
        changed.do("kill $(cat /run/sshd.pid); rm /etc/ssh/ssh_host_*; ssh-keygen -q -A; /usr/sbin/sshd")
        try:
            live.new()
            for options in ((), ("--skip-unreachable",)):
                said = live.deploy(*options, expect=3)
                assert said.error["code"] == "host-key-changed", said.shown
                assert changed.name in said.error["message"]
                assert live.currents == before
        finally:
            live.servers.know()
        live.goes_on()
    no_failures(loads)


@pytest.mark.parametrize("form", ["file", "script"])
def test_the_servers_stand_in_an_ansible_inventory(live: Fleet, form: str) -> None:
    names, inventory = live.servers.names, live.folder / ("hosts.ini" if form == "file" else "inventory.py")
    if form == "file":
        inventory.write_text("[shop]\n" + "".join(f"{name}\n" for name in names) + "[other]\nnowhere.invalid\n")
    else:
        told = json.dumps({"shop": {"hosts": names}, "_meta": {"hostvars": {}}})
        inventory.write_text(f"#!/usr/bin/env python3\nprint('''{told}''')\n")
        inventory.chmod(0o755)
    before = dict(live.settings)
    try:
        live.settings = {key: value for key, value in before.items() if key != "servers"}
        live.configure(inventory=inventory.name, hosts="shop")
        with live.loads() as loads:
            live.goes_on()
        no_failures(loads)
    finally:
        live.settings = before
        live.configure()
