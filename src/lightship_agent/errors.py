"""The agent's errors. Each names its outcome, which decides the controller's exception and exit status."""

import functools
import traceback
from typing import Any, Callable, Dict, Optional, TypeVar, cast

__all__ = [
    "AgentFailure",
    "Degraded",
    "Locked",
    "ProtocolError",
    "Refused",
    "Reverted",
    "as_failure",
    "contained",
]

Work = TypeVar("Work", bound=Callable[..., Any])


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


def as_failure(error: Exception) -> AgentFailure:
    """Any error as one that the protocol can carry. What nobody foresaw must not end a rollout half done."""
    if isinstance(error, AgentFailure):
        return error
    if isinstance(error, OSError) and error.errno:
        where = f": {error.filename}" if error.filename else ""
        return AgentFailure("system", f"{error.strerror}{where}"[:1000], detail={"errno": error.errno})
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return AgentFailure(
        "unexpected",
        f"the agent met an error it does not know: {type(error).__name__}: {error}"[:1000],
        hint="this is a fault of lightship; `lightship status` shows what the server runs",
        detail={"traceback": text[-8000:]},
    )


def contained(work: Work) -> Work:
    """A function out of which nothing comes but ``AgentFailure``, so that whoever calls it can go back."""

    @functools.wraps(work)
    def inner(*args: Any, **options: Any) -> Any:
        try:
            return work(*args, **options)
        except Exception as error:
            raise as_failure(error) from error

    return cast(Work, inner)
