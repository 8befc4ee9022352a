"""The agent's errors. Each names its outcome, which decides the controller's exception and exit status."""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable

from lightship_agent import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any, TypeVar

    Work = TypeVar("Work", bound=Callable[..., Any])

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


class AgentFailure(Exception):  # noqa: N818 - the word of the protocol
    """Something went wrong on the server. ``outcome`` is one of failed, usage, refused, reverted, degraded, locked."""

    outcome = "failed"

    def __init__(self, code: str, message: str, hint: str = "", detail: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.detail = detail or {}

    def as_dict(self) -> dict[str, Any]:
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
        return _system_failure(error)
    import traceback  # noqa: PLC0415 - seldom needed

    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return AgentFailure(
        "unexpected",
        f"the agent met an error it does not know: {type(error).__name__}: {error}"[:1000],
        hint="this is a fault of lightship; `lightship status` shows what the server runs",
        detail={"traceback": text[-8000:]},
    )


_SYSTEM = {
    errno.ENOSPC: ("no-space", "free some space on the server (`df -h`, `docker system df`), and try again"),
    errno.EDQUOT: ("no-space", "free some space on the server, or have the quota raised, and try again"),
    errno.EROFS: ("read-only", "see why the file system cannot be written (`dmesg`, `mount`), and try again"),
    errno.EACCES: ("permission", "run lightship as root on the server; a file may also be immutable (`lsattr`)"),
    errno.EPERM: ("permission", "run lightship as root on the server; a file may also be immutable (`lsattr`)"),
    errno.EIO: ("disk-damaged", "the disk does not read or write: see `dmesg` on the server"),
}
_SYSTEM_HINT = "`lightship status` shows what the server runs"


def _system_failure(error: OSError) -> AgentFailure:
    """What the operating system refused, and what to do about it. A full disk comes with its numbers."""
    code, hint = _SYSTEM.get(error.errno or 0, ("system", _SYSTEM_HINT))
    # Of two names the second is the one that was to be made.
    named = error.filename2 or error.filename
    place = os.fsdecode(named) if isinstance(named, (str, bytes, os.PathLike)) else ""
    detail: dict[str, Any] = {"errno": error.errno, "path": place}
    if code == "no-space" and place:
        free = _free(place)
        if free is not None:
            detail.update(free_bytes=free[0], free_inodes=free[1])
            if free[1] == 0:
                code, hint = "no-inodes", "remove files (`df -i` shows the file systems), and try again"
    text = str(error.strerror) + (f": {place}" if place else "")
    return AgentFailure(code, text[:1000], hint, detail)


def _free(place: str) -> tuple[int, int | None] | None:
    """The bytes and inodes that are left around a path; no number of inodes where they are not limited."""
    while place not in ("", "/"):
        try:
            found = os.statvfs(place)
        except OSError:
            place = os.path.dirname(place)
            continue
        return found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None
    return None


def contained(work: Work) -> Work:
    """A function out of which nothing comes but ``AgentFailure``, so that whoever calls it can go back."""

    @functools.wraps(work)
    def inner(*args: Any, **options: Any) -> Any:
        try:
            return work(*args, **options)
        except Exception as error:
            raise as_failure(error) from error

    return inner  # type: ignore[return-value]
