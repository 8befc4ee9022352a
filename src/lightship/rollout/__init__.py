"""Applies plans to servers and tells of it in events."""

from lightship.rollout.engine import Order, Rollout
from lightship.rollout.result import RolloutResult, overall
from lightship.rollout.session import Hello, Session

__all__ = ["Hello", "Order", "Rollout", "RolloutResult", "Session", "overall"]
