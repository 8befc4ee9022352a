"""Applies plans to servers and tells of it in events."""

from lightship.rollout.engine import Images, Rollout, is_unreachable
from lightship.rollout.order import Order
from lightship.rollout.result import RolloutResult, overall
from lightship.rollout.server import ServerRun, as_refusal
from lightship.rollout.session import Hello, Session
from lightship.rollout.strategy import Amount, OnFailure, Strategy

__all__ = [
    "Amount",
    "Hello",
    "Images",
    "OnFailure",
    "Order",
    "Rollout",
    "RolloutResult",
    "ServerRun",
    "Session",
    "Strategy",
    "as_refusal",
    "is_unreachable",
    "overall",
]
