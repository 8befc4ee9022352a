"""What a person is told when the engine does not do what it was asked for."""

from __future__ import annotations

from typing import Any

import pytest

from lightship_agent.container import Engine
from lightship_agent.errors import AgentFailure
from lightship_agent.system import Completed

REGISTRY = 'Get "https://registry.example/v2/": dial tcp: lookup registry.example on 192.0.2.1:53: no such host'


@pytest.mark.parametrize(
    ("said", "hinted"),
    [
        (REGISTRY, "the engine does not reach that registry"),
        ("Bind for 0.0.0.0:80 failed: port is already allocated", "another program has the port"),
        ("write /var/lib/docker/x: no space left on device", "free some disk space"),
        ("something else", ""),
    ],
)
def test_a_failed_command_is_told_with_a_way_out(said: str, hinted: str) -> None:
    def run(argv: list[str], **_: Any) -> Completed:
        return Completed(tuple(argv), 1, b"", said.encode(), 0.1)

    with pytest.raises(AgentFailure) as raised:
        Engine(run, socket_path="").command(["docker", "build", "."], "build the image")
    assert said in raised.value.message
    assert raised.value.hint.startswith(hinted)
    assert bool(raised.value.hint) == bool(hinted)
