"""Deploys to several real servers over SSH, under load: sshd, Docker engines and a git server of their own."""

from __future__ import annotations

from support.servers import Fleet, all_run, no_failures


def test_deploys_of_every_kind_under_load(fleet: Fleet) -> None:
    first = fleet.repository.head
    said = fleet.deploy()
    assert {one["outcome"] for one in said.result["servers"]} == {"done"}
    all_run(fleet, first)

    # What is live already is nothing to do, and nothing is touched.
    before = fleet.fingerprints()
    said = fleet.deploy()
    assert {one["outcome"] for one in said.result["servers"]} == {"nothing"}
    assert fleet.fingerprints() == before

    with fleet.loads() as loads:
        second = fleet.change("v2")
        said = fleet.deploy()
        assert said.result["kind"] == "code", said.shown
        for load in loads.values():
            assert load.wait_for(second)
        all_run(fleet, second)

        # A commit that does not import is refused, and nothing was changed anywhere.
        before = fleet.fingerprints()
        broken = fleet.change("broken", more="import nothing_of_this_name")
        said = fleet.deploy(expect=3)
        assert "nothing_of_this_name" in said.stdout
        assert {one["outcome"] for one in said.result["servers"]} <= {"refused", "aborted"}, said.shown
        assert fleet.fingerprints() == before

        said = fleet.run("rollback", "--json", expect=0)
        for load in loads.values():
            assert load.wait_for(first)
        all_run(fleet, first)
    for report in no_failures(loads).values():
        assert report.releases == [first, second], report.releases
        assert broken not in report.releases
        assert report.records[-1].release == first
