"""Where a service lies on a server, for what the agent does there without an engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightship_agent.paths import ServicePaths


@pytest.fixture
def paths(tmp_path: Path) -> ServicePaths:
    """The service's folders, with that of its state made."""
    found = ServicePaths.at(str(tmp_path), "shop")
    found.state.mkdir(parents=True)
    return found
