"""The proxy's configuration: what gets into it, who is led where, and which wishes cannot both be had."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightship_agent.errors import ProtocolError, Refused
from lightship_agent.proxy_config import Claim, Entry, digest, refuse_conflicts, render
from lightship_agent.proxy_server import container_name, create_proxy_command
from lightship_agent.records import replace
from lightship_agent.requests import proxy_claim

SHOP = Claim(hosts=("shop.example", "www.shop.example"))
ENTRY = Entry("shop", SHOP, ports=(18000, 1), instance=3)


def section(text: str, head: str) -> list[str]:
    """The lines of one section of the configuration."""
    lines = text.split(f"\n{head}\n", 1)[1].split("\n\n", 1)[0].splitlines()
    return [line.strip() for line in lines]


def test_a_switch_takes_the_server_of_the_backend_that_is_not_in_use() -> None:
    switched = ENTRY.leading_to(4, 18001)
    assert (switched.slot, switched.ports, switched.instance) == (1, (18000, 18001), 4)
    assert switched.leading_to(4, 18001) == switched
    assert switched.leading_to(3, 18000).slot == 0
    servers = [line for line in section(render([switched]), "backend service_shop") if line.startswith("server ")]
    assert servers == ["server s0 127.0.0.1:18000 disabled", "server s1 127.0.0.1:18001"]


def test_a_switch_needs_no_reload_and_everything_else_does() -> None:
    assert digest([ENTRY]) == digest([ENTRY.leading_to(4, 18001)])
    others = [
        replace(ENTRY, maintenance=5.0, page="a"),
        replace(ENTRY, maintenance=5.0, page="b"),
        replace(ENTRY, claim=replace(SHOP, hosts=("shop.example",))),
        replace(ENTRY, claim=replace(SHOP, https=443), certificates=("a.pem",)),
        replace(ENTRY, claim=replace(SHOP, https=443), certificates=("b.pem",)),
    ]
    assert len({digest([one]) for one in [ENTRY, *others]}) == 6


def test_what_is_written_down_is_read_again() -> None:
    entry = replace(ENTRY, maintenance=5.0, page="a", certificates=("a.pem",))
    assert Entry.from_dict(entry.as_dict()) == entry


def test_host_names_lead_to_their_service_and_all_others_to_the_one_without() -> None:
    rest = Entry("blog", Claim(), ports=(18002, 1))
    lines = section(render([ENTRY, rest]), "frontend port_80")
    assert "use_backend service_shop if { var(txn.host) -m str shop.example www.shop.example }" in lines
    assert lines[-1] == "default_backend service_blog"
    assert section(render([ENTRY]), "frontend port_80")[-1] == "default_backend unknown"


def test_http_is_led_to_https_for_its_own_names_only() -> None:
    secure = replace(SHOP, https=8443, certificates=("/c",), redirect=True, acme_port=8402)
    text = render([replace(ENTRY, claim=secure, certificates=("a.pem",)), Entry("blog", Claim())])
    plain = section(text, "frontend port_80")
    redirect = next(line for line in plain if "redirect" in line)
    assert "https://%[var(txn.host)]:8443%[pathq]" in redirect
    assert redirect.endswith("{ var(txn.host) -m str shop.example www.shop.example }")
    assert any(line.startswith("use_backend acme_shop if { path_beg /.well-known/acme-challenge/ }") for line in plain)
    assert "bind :8443 ssl crt /etc/lightship-proxy/certificates/a.pem alpn h2,http/1.1" in text


def test_under_maintenance_nothing_reaches_the_service() -> None:
    lines = section(render([replace(ENTRY, maintenance=5.0, page="a")]), "backend service_shop")
    rules = [line for line in lines if line.startswith("http-request")]
    assert len(rules) == 1
    assert rules[0].startswith("http-request return status 503")
    assert "Retry-After" in rules[0]


@pytest.mark.parametrize(
    ("mine", "words"),
    [
        (Claim(hosts=("www.shop.example",)), "host name www.shop.example on port 80"),
        (Claim(hosts=("a.example",), http=8080, https=80, certificates=("/c",)), "once with TLS and once without"),
        (Claim(hosts=("a.example",), address="127.0.0.1"), "on another address"),
    ],
)
def test_what_another_service_has_is_refused(mine: Claim, words: str) -> None:
    with pytest.raises(Refused, match=words) as caught:
        refuse_conflicts([ENTRY], "blog", mine)
    assert "shop" in caught.value.message


def test_one_service_may_be_without_host_names_and_not_two() -> None:
    refuse_conflicts([ENTRY], "blog", Claim())
    with pytest.raises(Refused, match="every other host name"):
        refuse_conflicts([Entry("shop", Claim())], "blog", Claim())
    refuse_conflicts([ENTRY], "shop", SHOP)
    refuse_conflicts([ENTRY], "blog", replace(SHOP, http=8080))


HOSTILE = [
    {"hosts": ["shop.example }\n  http-request deny"]},
    {"hosts": ["Shop.example"]},
    {"hosts": ["-x.example"]},
    {"hosts": ["a b"]},
    {"hosts": ["shop.example\n"]},
    {"hosts": "shop.example"},
    {"certificates": ["/etc/../etc/shadow"], "https": 443},
    {"certificates": ["/c d"], "https": 443},
    {"certificates": ["/c"]},
    {"https": 443},
    {"address": "127.0.0.1 ssl crt /x"},
    {"address": "all\n"},
    {"http": 0},
    {"http": True},
    {"http": 70000},
    {"timeout": float("nan")},
    {"image": "--privileged"},
    {"image": "haproxy\n"},
    {"port": 0},
]


@pytest.mark.parametrize("asked", HOSTILE, ids=str)
def test_nothing_else_gets_into_the_configuration(asked: dict[str, object]) -> None:
    with pytest.raises(ProtocolError):
        proxy_claim(asked)


def test_the_container_has_no_more_rights_than_it_needs() -> None:
    command = create_proxy_command(Path("/srv/lightship"), "haproxy:2.6")
    assert command[:4] == ["docker", "create", "--name", "lightship-proxy"]
    assert command[command.index("--cap-drop") :][:2] == ["--cap-drop", "ALL"]
    assert "--privileged" not in command
    assert command[command.index("--") + 1] == "haproxy:2.6"
    assert [word for word in command if word.startswith("/srv/")] == [
        "/srv/lightship/.proxy/conf:/etc/lightship-proxy:ro",
        "/srv/lightship/.proxy/run:/run/lightship-proxy",
    ]


def test_another_root_has_a_proxy_of_its_own() -> None:
    assert container_name(Path("/data/lightship")) != container_name(Path("/srv/lightship"))
