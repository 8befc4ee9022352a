"""The one tree of errors. Each has a code, a message, a hint and an exit status.

A message says what happened and to what; a hint says what to do next. Programs branch on the code or on the class,
never on the text. Both texts are made printable where they are shown (``lightship.output``), not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

__all__ = [
    "AgentError",
    "ConfigurationError",
    "DegradedError",
    "LightshipError",
    "LockedError",
    "RefusedError",
    "RevertedError",
    "TransportError",
    "UsageError",
    "error_for",
]


class LightshipError(Exception):
    """Anything that lightship itself reports. Exit status 1 unless a subclass says otherwise."""

    exit_status: ClassVar[int] = 1
    default_code: ClassVar[str] = "failed"

    def __init__(
        self, message: str, *, hint: str = "", code: str = "", detail: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code or self.default_code
        self.detail: dict[str, Any] = dict(detail or {})

    def on(self, server: str) -> Self:
        """The same error, of one server among several: its message names it."""
        if server in self.message:
            return self
        return type(self)(f"{server}: {self.message}", hint=self.hint, code=self.code, detail=self.detail)

    def as_dict(self) -> dict[str, Any]:
        """The error as JSON shows it."""
        return {"code": self.code, "message": self.message, "hint": self.hint, "detail": self.detail}


class UsageError(LightshipError):
    """The command line asks for something that cannot be. Exit status 2."""

    exit_status = 2
    default_code = "usage"


class ConfigurationError(LightshipError):
    """``lightship.yml`` (or what it refers to) is wrong. Exit status 2."""

    exit_status = 2
    default_code = "configuration"


class RefusedError(LightshipError):
    """Nothing was changed: a check, the candidate or the server said no. Exit status 3."""

    exit_status = 3
    default_code = "refused"


class RevertedError(LightshipError):
    """The release went live, failed, and the last stable one was restored. Exit status 4."""

    exit_status = 4
    default_code = "reverted"


class DegradedError(LightshipError):
    """Even the way back failed: a person is needed. Exit status 5."""

    exit_status = 5
    default_code = "degraded"


class LockedError(LightshipError):
    """Somebody else is changing the service. Exit status 6."""

    exit_status = 6
    default_code = "locked"


class TransportError(RefusedError):
    """The server or its agent could not be reached, or the conversation broke before anything was changed."""

    default_code = "transport"


class AgentError(LightshipError):
    """The agent reported an error that belongs to no other class."""

    default_code = "agent"


_BY_OUTCOME: dict[str, type[LightshipError]] = {
    "usage": UsageError,
    "refused": RefusedError,
    "reverted": RevertedError,
    "degraded": DegradedError,
    "locked": LockedError,
    "failed": AgentError,
}


def error_for(payload: Mapping[str, Any]) -> LightshipError:
    """The exception for an agent's error object (``lightship_agent.protocol``), chosen by its ``outcome``."""
    outcome = payload.get("outcome")
    cls = _BY_OUTCOME.get(outcome, AgentError) if isinstance(outcome, str) else AgentError
    detail = payload.get("detail")

    def text(key: str, default: str = "") -> str:
        value = payload.get(key)
        return value if isinstance(value, str) else default

    return cls(
        text("message", "the agent failed without a message"),
        hint=text("hint"),
        code=text("code"),
        detail=detail if isinstance(detail, Mapping) else None,
    )
