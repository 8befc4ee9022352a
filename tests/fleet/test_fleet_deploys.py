"""Deploys to several real servers over SSH, under load: sshd, Docker engines and a git server of their own."""

from __future__ import annotations

from itertools import pairwise

import pytest

from support.servers import Fleet, all_run, no_failures, outcomes


def test_code_deploys_a_refusal_and_a_rollback(live: Fleet) -> None:
    first = live.release
    # What is live already is nothing to do, and nothing is touched.
    before = live.fingerprints()
    assert outcomes(live.deploy()) == dict.fromkeys(live.servers.names, "nothing")
    assert live.fingerprints() == before

    with live.loads() as loads:
        second = live.new()
        said = live.deploy()
        assert said.result["kind"] == "code", said.shown
        for load in loads.values():
            assert load.wait_for(second)
        all_run(live, second)

        # A commit that does not import is refused, and nothing was changed anywhere.
        before = live.fingerprints()
        live.new(more="import nothing_of_this_name")
        said = live.deploy(expect=3)
        assert "nothing_of_this_name" in said.stdout
        assert set(outcomes(said).values()) <= {"refused", "aborted"}, said.shown
        assert live.fingerprints() == before

        live.run("rollback", "--json", expect=0)
        all_run(live, first)
        for load in loads.values():
            count = len(load.so_far().releases)
            assert load.wait_count(20)
            assert len(load.so_far().releases) == count
    for report in no_failures(loads).values():
        assert report.releases == [first, second], report.releases
        assert report.records[-1].release == first
    live.goes_on()


@pytest.mark.parametrize("kind", ["container", "full"])
def test_a_new_container_comes_to_one_server_after_the_other(live: Fleet, kind: str) -> None:
    before = after = live.release
    live.configure(env={"FOR": kind})
    with live.loads() as loads:
        if kind == "full":
            after = live.new()
        said = live.deploy("--batch", "1")
        assert said.result["kind"] == kind, said.shown
        all_run(live, after)
        assert all(load.wait_count(40) for load in loads.values())
    away = []
    for name, load in loads.items():
        report = load.report
        assert report.releases == list(dict.fromkeys([before, after])), name
        # A server whose container is changed may be away for a moment: it says nothing then, and no error.
        assert not [one for one in report.failed if one.status is not None], (name, report.errors)
        assert all(one.ok for one in report.records[-20:]), (name, report.errors)
        if report.failed:
            away.append((report.failed[0].start, report.failed[-1].start, name))
    for (_, end, one), (begin, _, other) in pairwise(sorted(away)):
        assert end < begin, f"{one} and {other} were away at the same time"
