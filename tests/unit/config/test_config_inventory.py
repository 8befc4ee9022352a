"""What an Ansible inventory says of a host is held to the rules of ``lightship.yml``, and named in what is refused."""

from __future__ import annotations

import pytest

from lightship.config.inventory import servers_of
from lightship.errors import ConfigurationError


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"ansible_host": "-oProxyCommand=touch"}, "ansible_host"),
        ({"ansible_host": "{{ address }}"}, "templates"),
        ({"ansible_host": {"__ansible_vault": "x"}}, "plain text"),
        ({"ansible_host": "a\x1b[2J"}, "plain text"),
        ({"ansible_user": "-lroot"}, "ansible_user"),
        ({"ansible_port": 0}, "ansible_port"),
        ({"ansible_port": True}, "ansible_port"),
        ({"ansible_connection": "docker"}, "ssh or local"),
        ({"lightship_roles": []}, "lightship_roles"),
        ({"lightship_roles": ["-x"]}, "lightship_roles"),
        ({"lightship_labels": {"a": 1}}, "lightship_labels"),
        ({"lightship_labels": {"a": "$(id)"}}, "lightship_labels"),
    ],
)
def test_hostile_variables_are_refused_with_their_host(variables: dict[str, object], said: str) -> None:
    listed = {"all": {"hosts": ["web1"]}, "_meta": {"hostvars": {"web1": variables}}}
    with pytest.raises(ConfigurationError) as caught:
        servers_of(listed, "hosts.yml", "all")
    assert said in caught.value.message
    assert "'web1'" in caught.value.message
    assert "\x1b" not in caught.value.message


@pytest.mark.parametrize("name", ["-x", "a\nb", "a;b", "\u202ea", "x" * 300])
def test_hostile_names_of_hosts_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError):
        servers_of({"all": {"hosts": [name]}}, "hosts.yml", "all")
