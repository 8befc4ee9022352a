"""The service's lock: a flock on state/lock that lives as long as the process that holds it.

No lock outlives its owner, so nothing ever has to be unlocked by hand. A program that changes something for the holder
inherits the lock's descriptor (``ServiceLock.descriptor``): when the holder is killed, what it had begun still keeps
the next one out until it is over, and the next one waits for that unasked. The same goes for a holder whose controller
is gone, and which undoes or finishes what is open: it will be over soon. The file says who holds it, and which it is.

A holder that lives can be overtaken when somebody asks for that. It is killed: what it had begun is finished or undone
as after any kill. Only one that was stopped (SIGSTOP) while it waited for its next request is left alone, and one that
cannot be killed: the file is replaced by another, and the number in state/fence, which every taking of the lock raises,
shows the old holder, should it ever go on, that it is not the last one any more. It looks before each side effect
(``check_fence``). A holder that was stopped between that look and the side effect would still do that one: hence the
kill, and hence the mark in the file that says whether the holder is at work.
"""

# os.* works on descriptors, and says which system call it is.

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import select
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path

from lightship_agent import failpoints, system
from lightship_agent.errors import AgentFailure, Locked, Refused
from lightship_agent.failpoints import fail_point
from lightship_agent.names import printable
from lightship_agent.paths import ServicePaths
from lightship_agent.records import asdict, dataclass

__all__ = ["Holder", "ServiceLock", "acquire", "read_holder"]

failpoints.register(
    lock__taken="the lock is ours, but nobody was told yet",
    lock__fence="the fencing number is about to be raised",
    lock__acquired="the lock is ours and says so",
)

_MAX = 64 * 1024
_SHOWN = 200
_POLL = 0.05
_LEFT_BEHIND = 45.0
_STOPPED = (b"T", b"t")
_DYING = 5.0
_NAMELESS = 1.0
# The last byte of the file: what its holder does.
_WAITING, _AT_WORK, _LEFT_ALONE = b"0", b"1", b"2"


@dataclass(frozen=True)
class Holder:
    """Who holds the lock. ``since`` is in seconds since 1970; 0 when it is not known yet.

    ``left_alone``: its controller is gone; it ends by itself.
    """

    who: str
    why: str
    since: float
    pid: int
    host: str
    fence: int
    at_work: bool = True
    left_alone: bool = False


_UNKNOWN = Holder("somebody", "", 0.0, 0, "", 0)


class ServiceLock:
    """A lock that is held. Give it back with ``release``, or by ending."""

    def __init__(self, paths: ServicePaths, fd: int, holder: Holder) -> None:
        self._paths = paths
        self._fd = fd
        self._left_alone = False
        self.holder = holder

    @property
    def fence(self) -> int:
        """The number of this taking of the lock; a later one has a higher number."""
        return self.holder.fence

    @property
    def descriptor(self) -> int:
        """What a program inherits that is to keep the lock for as long as it runs, even without us."""
        return self._fd

    def check_fence(self) -> None:
        """Refuse (``fenced``) when somebody has overtaken us. To be called before each side effect."""
        if self._fd < 0 or not _is_file(self._paths.lock, self._fd) or _read_fence(self._paths) != self.fence:
            raise Refused(
                "fenced",
                "the service's lock was taken over; this rollout stopped before its next step",
                hint="See who holds the lock now.",
                detail={"fence": self.fence},
            )

    def at_work(self, at_work: bool) -> None:
        """Say in the file whether a request is being worked on; whoever wants to overtake us decides by that."""
        self._write_mark(_AT_WORK if at_work else _WAITING)
        # Only now: whoever leaves us alone may do so at any time, from another thread or a signal's handler.
        if self._left_alone:
            self._write_mark(_LEFT_ALONE)

    def left_alone(self) -> None:
        """Say in the file that nobody asks us for anything any more: whoever comes waits until we are done."""
        self._left_alone = True
        self._write_mark(_LEFT_ALONE)

    def _write_mark(self, mark: bytes) -> None:
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.pwrite(self._fd, mark, os.fstat(self._fd).st_size - 1)

    def release(self) -> None:
        """Give the lock back. The file stays: one that is removed could be locked twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> ServiceLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def acquire(
    paths: ServicePaths,
    *,
    who: str,
    why: str,
    wait_seconds: float = 0.0,
    on_wait: Callable[[Holder], None] | None = None,
    take_over: bool = False,
) -> ServiceLock:
    """Take the lock of a service.

    ``on_wait`` hears once who holds it. Raises Locked (``locked``) after ``wait_seconds``. ``take_over`` overtakes the
    holder once the waiting was in vain. What a holder that was killed had begun is waited for unasked, and so is one
    that was left alone.
    """
    begun = time.monotonic()
    told = False
    while True:
        fd = _try(paths)
        if fd is None:
            known = read_holder(paths)
            holder = known or _UNKNOWN
            if on_wait is not None and not told and known:
                on_wait(holder)
            told = told or known is not None
            ends = holder.left_alone or _has_ended(holder)
            patience = max(wait_seconds, _LEFT_BEHIND) if ends else wait_seconds
            # One that has it this very moment has not yet said who it is.
            left = begun + (patience if known else max(patience, _NAMELESS)) - time.monotonic()
            if left > 0:
                time.sleep(min(_POLL, left))
                continue
            if not take_over:
                raise _locked(holder)
            if _end(paths, holder):
                begun, take_over = time.monotonic(), False
                continue
            fd = _replace(paths)
        fail_point("lock.taken")
        try:
            lock = ServiceLock(paths, fd, _announce(paths, fd, who, why))
        except BaseException:
            os.close(fd)
            raise
        if _is_file(paths.lock, fd):
            fail_point("lock.acquired")
            return lock
        lock.release()  # overtaken at once


def read_holder(paths: ServicePaths) -> Holder | None:
    """What the lock file says; of a lock that nobody holds, that is the last holder."""
    data, _, mark = (system.read_trusted(paths.lock, _MAX) or b"").partition(b"\n")
    try:
        raw = json.loads(data)
        return Holder(
            who=str(raw["who"])[:_SHOWN],
            why=str(raw["why"])[:_SHOWN],
            since=float(raw["since"]),
            pid=int(raw["pid"]),
            host=str(raw["host"])[:_SHOWN],
            fence=int(raw["fence"]),
            at_work=mark != _WAITING,
            left_alone=mark == _LEFT_ALONE,
        )
    except (ValueError, TypeError, KeyError):
        return None  # just being written


def _has_ended(holder: Holder) -> bool:
    """The holder's process is gone, so what holds the lock is a program that it had started."""
    return _process_state(holder) in (b"Z", b"X", b"")


def _process_state(holder: Holder) -> bytes | None:
    """The kernel's letter for the state of the holder's process; empty when it is gone, None when that is unknown."""
    if holder.host != os.uname().nodename or holder.pid <= 0:
        return None
    try:
        with open(f"/proc/{holder.pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0]
    except FileNotFoundError:
        return b"" if os.path.exists("/proc/self/stat") else None
    except (OSError, IndexError):
        return None


def _end(paths: ServicePaths, holder: Holder) -> bool:
    """Kill the holder, unless it is stopped while it waits for a request: then the fence is enough. Whether it was.

    The number alone proves nothing: only a process that has the lock's file open is the holder.
    """
    if _process_state(holder) is None:
        return False
    try:
        process = os.pidfd_open(holder.pid)
    except OSError:
        return _has_ended(holder)
    try:
        if not _has_open(holder.pid, paths.lock):
            return False
        if _process_state(holder) in _STOPPED:
            # Read after it was seen to be stopped: it cannot have begun anything since.
            now = read_holder(paths)
            if now is not None and now.pid == holder.pid and not now.at_work:
                return False
        signal.pidfd_send_signal(process, signal.SIGKILL)
        # A process stuck in the kernel dies later, or never: then the lock is replaced after all.
        return bool(select.select([process], [], [], _DYING)[0])
    except OSError:
        return False
    finally:
        os.close(process)


def _has_open(pid: int, path: Path) -> bool:
    """Whether a process has this very file open."""
    try:
        wanted = os.lstat(path)
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                found = os.stat(f"/proc/{pid}/fd/{name}")
                if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                    return True
    except OSError:
        return False
    return False


def _try(paths: ServicePaths) -> int | None:
    """The descriptor of the lock file, locked; None when somebody else has it."""
    while True:
        fd = _open(paths.lock, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        except BaseException:
            os.close(fd)
            raise
        if _is_file(paths.lock, fd):
            return fd
        os.close(fd)  # replaced between the opening and the locking


def _replace(paths: ServicePaths) -> int:
    """Put a lock file of our own, locked, in the place of the one that is held."""
    temporary = paths.lock.with_name(f".lock.{os.urandom(4).hex()}.tmp")
    fd = _open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(temporary, paths.lock)
    except BaseException:
        os.close(fd)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    return fd


def _open(path: Path, flags: int) -> int:
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, 0o600)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENOTDIR):
            raise
        raise AgentFailure("state-damaged", f"{path} cannot be opened as the lock: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise AgentFailure("state-damaged", f"{path} is not a regular file")
    return fd


def _is_file(path: Path, fd: int) -> bool:
    """The path still names the file that the descriptor is of."""
    try:
        named = os.lstat(path)
    except FileNotFoundError:
        return False
    ours = os.fstat(fd)
    return (named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino)


def _read_fence(paths: ServicePaths) -> int:
    try:
        return int(system.read_trusted(paths.fence, 100) or b"0")
    except ValueError:
        return 0


def _announce(paths: ServicePaths, fd: int, who: str, why: str) -> Holder:
    # The last holder's own number counts too, should the file with the number have been lost.
    last = read_holder(paths)
    # The last holder's name must not be told as ours.
    os.ftruncate(fd, 0)
    fence = max(_read_fence(paths), last.fence if last else 0) + 1
    fail_point("lock.fence")
    system.atomic_write(paths.fence, b"%d\n" % fence, 0o600)
    holder = Holder(who[:_SHOWN], why[:_SHOWN], time.time(), os.getpid(), os.uname().nodename, fence)
    told = asdict(holder)
    del told["at_work"], told["left_alone"]
    os.pwrite(fd, json.dumps(told).encode() + b"\n" + _AT_WORK, 0)
    return holder


def _locked(holder: Holder) -> Locked:
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(holder.since)) if holder.since else "just now"
    doing = f" ({printable(holder.why)})" if holder.why else ""
    return Locked(
        "locked",
        f"{printable(holder.who)} holds the lock since {since}{doing}, as process {holder.pid}",
        hint="Wait for it (--wait), ask who holds it, or end it and go on (--take-over).",
        detail={"who": holder.who, "since": holder.since, "why": holder.why, "pid": holder.pid},
    )
