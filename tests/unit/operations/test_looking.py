"""``status``, ``logs`` and ``exec`` on several servers, some of which are not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightship.errors import RefusedError, UsageError
from lightship.operations.logs import execute, logs
from lightship.operations.status import releases, status
from lightship.rollout.events import LogLine, Note
from support.fleet import NEW, OLD, Fault
from support.service_on_fleet import DOWN, Fleet, fleet


def lines(found: Fleet) -> list[tuple[str, str]]:
    return [(one.server, one.text) for one in found.events if isinstance(one, LogLine)]


def test_the_logs_of_all_servers_come_with_their_names(tmp_path: Path) -> None:
    found = fleet(tmp_path, 3)
    found.run(lambda: logs(found.context, lines=10, follow=False))
    assert sorted(lines(found)) == [(f"web{n}", f"a line of web{n}") for n in range(3)]


def test_the_logs_of_those_that_are_there_come_though_one_is_not(tmp_path: Path) -> None:
    found = fleet(tmp_path, 3, web1=DOWN)
    with pytest.raises(RefusedError, match="1 of 3 servers could not tell; web1"):
        found.run(lambda: logs(found.context, lines=10, follow=True))
    assert sorted(server for server, _ in lines(found)) == ["web0", "web2"]
    assert [one.server for one in found.events if isinstance(one, Note)] == ["web1"]


def test_servers_can_be_named(tmp_path: Path) -> None:
    found = fleet(tmp_path, 3, web0=DOWN)
    found.choose("web2")
    found.run(lambda: logs(found.context, lines=10, follow=False))
    found.choose("web2", "web1")
    result = found.run(lambda: execute(found.context, ["true"]))
    assert {server for server, _ in lines(found)} == {"web1", "web2"}
    assert [one.server for one in result.servers] == ["web1", "web2"]
    with pytest.raises(UsageError, match="there is no server 'web9'"):
        found.choose("web9")


def test_a_command_ends_with_the_status_of_the_first_server_where_it_failed(tmp_path: Path) -> None:
    found = fleet(tmp_path, 3)
    found.servers[1].exit_status, found.servers[2].exit_status = 7, 9
    result = found.run(lambda: execute(found.context, ["false"]))
    assert [one.status for one in result.servers] == [0, 7, 9]
    assert result.exit_status == 7


def test_a_command_that_one_server_refuses_goes_on_on_the_others(tmp_path: Path) -> None:
    found = fleet(tmp_path, 3, web0={"fault": Fault("exec", "refuse")})
    result = found.run(lambda: execute(found.context, ["true"]))
    assert [one.status for one in result.servers] == [3, 0, 0]
    assert result.servers[0].error is not None and result.exit_status == 3


def test_a_command_begins_nowhere_when_a_server_is_not_there(tmp_path: Path) -> None:
    found = fleet(tmp_path, 3, web2=DOWN)
    with pytest.raises(RefusedError, match="web2"):
        found.run(lambda: execute(found.context, ["true"]))
    assert all("exec" not in one.asked for one in found.servers)


def test_the_status_of_the_fleet_says_who_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightship.operations import status as module

    async def nobody(context: object) -> tuple[None, str]:
        return None, "not asked"

    monkeypatch.setattr(module, "_head", nobody)
    found = fleet(tmp_path, 4, web3=DOWN)
    found.servers[2].current = NEW
    result = found.run(lambda: status(found.context))
    assert result.expected == OLD and result.exit_status == 5
    assert {one.server for one in result.drift} == {"web2"}
    assert result.servers[3].facts is None and "web3" in result.servers[3].problem


def test_the_releases_are_those_of_each_server(tmp_path: Path) -> None:
    found = fleet(tmp_path, 2)
    result = found.run(lambda: releases(found.context))
    assert [one.server for one in result.servers] == ["web0", "web1"]
