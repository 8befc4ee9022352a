"""The agent's errors. Each names its outcome, which decides the controller's exception and exit status."""

from typing import Any, Dict, Optional

__all__ = [
    "AgentFailure",
    "Degraded",
    "Locked",
    "ProtocolError",
    "Refused",
    "Reverted",
]


class AgentFailure(Exception):  # noqa: N818 - the word of the protocol
    """Something went wrong on the server. ``outcome`` is one of failed, usage, refused, reverted, degraded, locked."""

    outcome = "failed"

    def __init__(self, code: str, message: str, hint: str = "", detail: Optional[Dict[str, Any]] = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.detail = detail or {}

    def as_dict(self) -> Dict[str, Any]:
        """The error as the protocol carries it."""
        return {
            "outcome": self.outcome,
            "code": self.code,
            "message": self.message,
            "hint": self.hint,
            "detail": self.detail,
        }


class ProtocolError(AgentFailure):
    """The request is not one the agent understands; nothing was done."""

    outcome = "usage"


class Refused(AgentFailure):
    """Nothing that serves was changed."""

    outcome = "refused"


class Reverted(AgentFailure):
    """The release went live, failed, and the stable one was restored."""

    outcome = "reverted"


class Degraded(AgentFailure):
    """The way back failed too; a person is needed."""

    outcome = "degraded"


class Locked(AgentFailure):
    """Somebody else holds the service's lock."""

    outcome = "locked"
