"""The controller of a rollout over several real servers is killed on the way."""

from __future__ import annotations

import signal

import pytest

from support.promises import until
from support.servers import TESTING, Fleet, all_run, no_failures, one_release_each


# Before which moment, and how many servers have the new release then: the canary goes first, then two, then the last.
@pytest.mark.parametrize(
    ("point", "changed"),
    [
        # One is prepared, and the others are at it; then all are.
        ("answered.prepare=kill", 0),
        ("ask.activate=kill", 0),
        ("answered.activate=kill", 1),
        ("answered.verify=kill@3", 3),
        ("ask.commit=kill", 4),
    ],
)
def test_each_server_undoes_or_finishes_by_itself(live: Fleet, point: str, changed: int) -> None:
    before, names = live.release, live.servers.names
    with live.loads() as loads:
        commit = live.new()
        said = live.deploy(expect=-signal.SIGKILL, environment={**TESTING, "LIGHTSHIP_FAILPOINTS": point})
        assert not said.stdout
        for one in live.servers.machines:
            until(lambda one=one: not one.agents(), 60, f"the end of the agent on {one.name}")
        expected = {name: commit if number < changed else before for number, name in enumerate(names)}
        assert one_release_each(live) == expected
        last = live.goes_on()
    for name, report in no_failures(loads).items():
        assert report.releases == list(dict.fromkeys([before, expected[name], last])), name


def test_the_next_deploy_waits_unasked_for_what_was_left_alone(live: Fleet) -> None:
    first, settings = live.servers.machines[0], dict(live.settings)
    with live.loads() as loads:
        try:
            # As long as this the agent that is left alone watches its release before it ends.
            live.configure(soak=20)
            live.new()
            points = {**TESTING, "LIGHTSHIP_FAILPOINTS": "answered.activate=kill"}
            live.deploy(expect=-signal.SIGKILL, environment=points)
            # It has noticed, and now needs longer than the next deploy's start.
            first.do(f"until test $(tail -c 1 {live.home}/state/lock) = 2; do sleep 0.05; done")
            first.signal_agents("STOP")
        finally:
            live.settings = settings
            live.configure()
        process = live.start("deploy")
        try:
            assert process.stdout is not None
            said = next(line for line in process.stdout if "to end by itself" in line)
            assert said.startswith(first.name)
            assert process.poll() is None
        finally:
            first.signal_agents("CONT")
            out, err = process.communicate(timeout=200)
        assert process.returncode == 0, out + err
        all_run(live, live.repository.head)
    no_failures(loads)
