"""Facts and the desired state to steps; pure."""

from lightship.plan.planner import PlannedService, make_plan, make_rollback_plan, migrate_once

__all__ = ["PlannedService", "make_plan", "make_rollback_plan", "migrate_once"]
