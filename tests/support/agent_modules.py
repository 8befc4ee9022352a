"""Every module of the agent, imported: an agent itself imports what is for seldom work when it comes to it."""

from __future__ import annotations

import importlib
import pkgutil

import lightship_agent
from lightship_agent.failpoints import FAIL_POINTS

__all__ = ["all_fail_points"]


def all_fail_points() -> dict[str, str]:
    """The fail points that the agent has anywhere."""
    for module in pkgutil.iter_modules(lightship_agent.__path__):
        if module.name != "__main__":
            importlib.import_module(f"lightship_agent.{module.name}")
    return dict(FAIL_POINTS)
