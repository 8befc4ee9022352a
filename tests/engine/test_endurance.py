"""Endurance, in small: `make soak` runs 200 deploys; here are enough to fill the retention and go round both slots."""

from __future__ import annotations

from pathlib import Path

from support.endurance import endure
from support.engine import Engine
from support.site import Site

DEPLOYS = 15


def test_many_deploys_in_a_row_fail_no_request_and_leave_nothing_behind(engine: Engine, tmp_path: Path) -> None:
    site = Site(engine, tmp_path / "site", settings={"keep": 3, "soak": 0.2})
    try:
        found = endure(site, DEPLOYS, print)
        assert found.problems == []
        assert found.refused == DEPLOYS // 3
    finally:
        site.close()
