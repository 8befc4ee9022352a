"""Where uWSGI reloads itself, and where there are roles, a deploy may be cut off anywhere too.

See ``support.torture``. What other deploys have in common with these is cut off in test_torture.py.
"""

from __future__ import annotations

import pytest

from support.engine import Engine
from support.torture import ROLES, Draw, Torture

pytestmark = pytest.mark.timeout(900)


def test_where_uwsgi_reloads_itself_a_kill_leaves_one_whole_release_too(
    engine: Engine, tmp_path_factory: pytest.TempPathFactory
) -> None:
    torture = Torture.begin(engine, tmp_path_factory.mktemp("touch") / "site", variant="touch")
    try:
        points = torture.record(("code",))["code"]
        own = [point for point in points if point.startswith(("candidate.", "touch.", "current."))]
        assert {"candidate.start", "candidate.done", "touch.before", "touch.after"} <= set(own)
        with torture.load():
            torture.carry_out([Draw("code", f"{point}=kill") for point in own])
            torture.carry_out([Draw("code", "touch.before=kill-child")])
    finally:
        torture.site.close()


def test_roles_run_the_release_that_is_live_too_wherever_their_restart_is_cut_off(
    engine: Engine, tmp_path_factory: pytest.TempPathFactory
) -> None:
    roles = {"worker": {"command": ["sleep", "infinity"], "processes": 2, "settle": 0.3}}
    torture = Torture.begin(engine, tmp_path_factory.mktemp("roles") / "site", settings={"roles": roles})
    try:
        points = torture.record(("code", "container"))
        own = [point for point in points["code"] if point.startswith("roles.")]
        moved = [point for point in points["container"] if point.startswith("roles.")]
        assert set(ROLES) | {"roles.conf"} == {*own, *moved}
        with torture.load():
            # The controller too, so that nobody goes on; then a restart that fails, and is taken back.
            torture.carry_out([Draw("code", f"{point}=kill,ask.hello=kill@2") for point in own])
            torture.carry_out([Draw("code", "roles.moved=error*1"), Draw("rollback", "roles.moved=kill")])
            resting = [point for point in moved if point.startswith("roles.rest")]
            torture.carry_out([Draw("container", f"{point}=kill,ask.hello=kill@2") for point in resting])
            torture.carry_out([Draw("container", "roles.moved=error*1")])
    finally:
        torture.site.close()
