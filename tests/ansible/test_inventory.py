"""Servers from Ansible inventories, read by the real ansible-inventory."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightship.config import inventory
from lightship.config.inventory import read
from lightship.errors import ConfigurationError
from lightship.model import Server
from lightship.operations.context import load_context

INI = """
[web]
web2 ansible_host=10.0.0.2 ansible_user=deploy ansible_port=2222 ansible_ssh_private_key_file=~/key
web1 ansible_host=10.0.0.1 lightship_roles='["web", "worker"]'
[batch]
job[1:2].example
[here]
me ansible_connection=local
[production:children]
web
batch
[web:vars]
lightship_labels={"zone": "a"}
"""


def names(servers: tuple[Server, ...]) -> list[str]:
    return [server.name for server in servers]


def test_a_file_with_what_ansible_says_of_its_hosts(tmp_path: Path) -> None:
    (tmp_path / "hosts.ini").write_text(INI)
    found = {server.name: server for server in read("hosts.ini", "all", tmp_path)}
    labels = {"zone": "a"}
    key = str(Path("~/key").expanduser())
    assert found["web2"] == Server("web2", "10.0.0.2", "deploy", 2222, None, labels, None, key)
    assert found["web1"] == Server("web1", "10.0.0.1", None, None, ("web", "worker"), labels)
    assert found["job1.example"] == Server("job1.example", "job1.example")
    assert found["me"].local
    assert list(found) == ["me", "web2", "web1", "job1.example", "job2.example"]


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        ("web", ["web2", "web1"]),
        ("production:!web", ["job1.example", "job2.example"]),
        ("production:&batch", ["job1.example", "job2.example"]),
        ("web[0]", ["web2"]),
        ("job*.example", ["job1.example", "job2.example"]),
        ("~(web|me).*", ["me", "web2", "web1"]),
    ],
)
def test_patterns_are_ansibles(tmp_path: Path, hosts: str, expected: list[str]) -> None:
    (tmp_path / "hosts.ini").write_text(INI)
    assert names(read("hosts.ini", hosts, tmp_path)) == expected


def test_a_script_and_a_directory_with_group_variables(tmp_path: Path) -> None:
    folder = tmp_path / "inventory"
    (folder / "group_vars").mkdir(parents=True)
    script = folder / "cloud.py"
    script.write_text(
        "#!/usr/bin/env python3\nimport json\n"
        "print(json.dumps({'web': {'hosts': ['i-1', 'i-2']},"
        " '_meta': {'hostvars': {'i-1': {'ansible_host': '10.1.0.1'}, 'i-2': {'ansible_host': '10.1.0.2'}}}}))\n"
    )
    script.chmod(0o755)
    (folder / "more.yml").write_text("web: {hosts: {i-3: {ansible_host: '10.1.0.3'}}}\n")
    (folder / "group_vars" / "web.yml").write_text("ansible_user: deploy\nlightship_labels: {cloud: one}\n")
    file = tmp_path / "lightship.yml"
    file.write_text("services: {shop: {repository: /srv/git/x, inventory: inventory, hosts: web}}\n")
    servers = load_context(None, file, lambda _: None).servers
    assert sorted((one.name, one.host) for one in servers) == [(f"i-{n}", f"10.1.0.{n}") for n in (1, 2, 3)]
    assert {(one.user, one.labels["cloud"]) for one in servers} == {("deploy", "one")}


def refused(tmp_path: Path, hosts: str = "all", *, name: str = "hosts.ini") -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        read(name, hosts, tmp_path)
    return caught.value


def test_what_cannot_be_read_is_no_empty_fleet(tmp_path: Path) -> None:
    assert "is not there" in refused(tmp_path).message
    (tmp_path / "hosts.ini").write_text(INI)
    error = refused(tmp_path, "nosuch")
    assert (error.code, "--graph" in error.hint) == ("hosts", True)
    broken = tmp_path / "broken.yml"
    broken.write_text("all: [this is\n")
    assert refused(tmp_path, name="broken.yml").code == "inventory"
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\necho no credentials >&2\nexit 7\n")
    script.chmod(0o755)
    assert refused(tmp_path, name="script").code == "inventory"


def test_a_directory_of_which_a_part_cannot_be_read_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "inventory"
    folder.mkdir()
    (folder / "hosts.yml").write_text("all: {hosts: {web1: }}\n")
    assert names(read("inventory", "all", tmp_path)) == ["web1"]
    script = folder / "cloud"
    script.write_text("#!/bin/sh\nexit 1\n")
    script.chmod(0o755)
    assert refused(tmp_path, name="inventory").code == "inventory"


def test_ansible_that_is_missing_or_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\nexec sleep 30\n")
    script.chmod(0o755)
    monkeypatch.setattr(inventory, "_SECONDS", 2.0)
    assert "did not end" in refused(tmp_path, name="script").message
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    error = refused(tmp_path, name="script")
    assert (error.code, "pip install" in error.hint) == ("ansible-missing", True)
