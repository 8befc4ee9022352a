"""The controller of a rollout over several real servers is killed on the way."""

from __future__ import annotations

import signal

import pytest

from support.promises import until
from support.servers import TESTING, Fleet, all_run, no_failures, one_release_each


# Before which moment, and how many servers have the new release then: the canary goes first, then two, then the last.
@pytest.mark.parametrize(
    ("point", "live"),
    [
        ("answered.hello=kill", 0),
        ("ask.prepare=kill", 0),
        ("answered.prepare=kill@4", 0),
        ("answered.activate=kill", 1),
        ("answered.verify=kill@3", 3),
        ("ask.commit=kill", 4),
    ],
)
def test_each_server_undoes_or_finishes_by_itself(fleet: Fleet, point: str, live: int) -> None:
    before, names = fleet.goes_on(), fleet.servers.names
    with fleet.loads() as loads:
        commit = fleet.new()
        said = fleet.deploy(expect=-signal.SIGKILL, environment={**TESTING, "LIGHTSHIP_FAILPOINTS": point})
        assert not said.stdout
        for one in fleet.servers.machines:
            until(lambda one=one: not one.agents(), 60, f"the end of the agent on {one.name}")
        expected = {name: commit if number < live else before for number, name in enumerate(names)}
        assert one_release_each(fleet) == expected
        last = fleet.goes_on()
    for name, report in no_failures(loads).items():
        assert report.releases == list(dict.fromkeys([before, expected[name], last])), name


def test_the_next_deploy_waits_unasked_for_what_was_left_alone(fleet: Fleet) -> None:
    first = fleet.servers.machines[0]
    settings = dict(fleet.settings)
    with fleet.loads() as loads:
        try:
            # As long as this the agent that is left alone watches its release before it ends.
            fleet.configure(soak=15)
            fleet.new()
            points = {**TESTING, "LIGHTSHIP_FAILPOINTS": "answered.activate=kill"}
            fleet.deploy(expect=-signal.SIGKILL, environment=points)
            assert first.agents() == 1
        finally:
            fleet.settings = settings
            fleet.configure()
        commit = fleet.new()
        said = fleet.run("deploy", expect=0)
        assert "to end by itself" in said.stdout + said.stderr, said.stdout + said.stderr
        all_run(fleet, commit)
    no_failures(loads)
