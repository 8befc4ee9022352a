"""The one module that runs programs and touches files.

Programs get an argument list, never a shell. What the container can write is opened without following links, read
with a cap, and must be a regular file.
"""

# os.* works on descriptors and bytes, and says which system call it is.

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import selectors
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from lightship_agent import TYPE_CHECKING, failpoints
from lightship_agent.errors import AgentFailure
from lightship_agent.records import dataclass

if TYPE_CHECKING:
    from typing import IO

__all__ = [
    "MAX_LINE",
    "TIMED_OUT",
    "Completed",
    "DiskFree",
    "Run",
    "append",
    "atomic_write",
    "clean_temporaries",
    "detached",
    "disk_free",
    "list_untrusted",
    "make_directory",
    "open_directory",
    "pipe_to",
    "read_trusted",
    "read_untrusted",
    "remove_tree",
    "run",
    "swap_link",
    "sync_directory",
    "sync_tree",
]

OnLine = Callable[[str, str], None]
"""Gets the stream ("stdout" or "stderr") and one line of it, without its end."""

TIMED_OUT = 124
"""The status of a program that was killed for taking too long, as timeout(1) has it."""

MAX_LINE = 16 * 1024
"""Longer lines reach ``on_line`` cut, with a marker."""

_CHUNK = 64 * 1024
_GRACE = 2.0
_DRAIN = 0.5
_REMOVAL_SECONDS = 300.0
_TEMPORARY = r"\..+\.[0-9a-f]{8}\.tmp"
_NOT_THERE = (errno.ENOENT,)
_WRONG_KIND = (errno.ELOOP, errno.ENOTDIR, errno.ENXIO, errno.ENODEV, errno.EISDIR)


# --- programs -----------------------------------------------------------------


@dataclass(frozen=True)
class Completed:
    """What a program did. ``status`` is negative after a signal, and 124 with ``timed_out`` after the time limit."""

    argv: tuple[str, ...]
    status: int
    stdout: bytes
    stderr: bytes
    seconds: float
    timed_out: bool = False
    truncated: bool = False

    @property
    def ok(self) -> bool:
        """It ended with status 0."""
        return self.status == 0

    @property
    def out(self) -> str:
        """Standard output as text."""
        return self.stdout.decode("utf-8", "replace")

    @property
    def err(self) -> str:
        """Standard error as text."""
        return self.stderr.decode("utf-8", "replace")


Run = Callable[..., Completed]
"""The type of ``run``, for what gets it passed in."""


class _Output:
    """One stream of a program: its head and tail within a cap, and its lines, cut, to a callback."""

    def __init__(self, name: str, cap: int, on_line: OnLine | None) -> None:
        self._name = name
        self._half = max(cap // 2, 1)
        self._on_line = on_line
        self._head = bytearray()
        self._tail = bytearray()
        self._line = bytearray()
        self._cut = 0
        self.dropped = 0

    def feed(self, chunk: bytes) -> None:
        self._keep(chunk)
        if self._on_line is None:
            return
        start = 0
        while True:
            end = chunk.find(b"\n", start)
            self._grow(chunk[start:] if end < 0 else chunk[start:end])
            if end < 0:
                return
            self._emit()
            start = end + 1

    def close(self) -> None:
        if self._line or self._cut:
            self._emit()

    def value(self) -> bytes:
        if self.dropped:
            return b"%b\n[... %d bytes left out ...]\n%b" % (bytes(self._head), self.dropped, bytes(self._tail))
        return bytes(self._head + self._tail)

    def _keep(self, chunk: bytes) -> None:
        room = self._half - len(self._head)
        if room > 0:
            self._head += chunk[:room]
            chunk = chunk[room:]
        self._tail += chunk
        # Trimmed by whole halves, so that the cost stays linear.
        if len(self._tail) > 2 * self._half or (self.dropped and len(self._tail) > self._half + _CHUNK):
            excess = len(self._tail) - self._half
            self.dropped += excess
            del self._tail[:excess]

    def _grow(self, part: bytes) -> None:
        room = MAX_LINE - len(self._line)
        self._line += part[:room]
        self._cut += max(len(part) - room, 0)

    def _emit(self) -> None:
        # The end of a line as terminals have it; `docker build` writes even two carriage returns there.
        text = self._line.decode("utf-8", "replace").rstrip("\r")
        if self._cut:
            text += f" [... {self._cut} bytes left out]"
        self._line.clear()
        self._cut = 0
        if self._on_line is not None:
            self._on_line(self._name, text)


def run(  # noqa: PLR0913 (all but one by name)
    argv: Sequence[str],
    *,
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 60.0,
    input: bytes | None = None,
    input_file: int | None = None,
    hold_input: bool = False,
    on_line: OnLine | None = None,
    meanwhile: Callable[[], None] | None = None,
    max_output: int = 1024 * 1024,
    umask: int = 0o022,
    inherit: Sequence[int] = (),
) -> Completed:
    """Run a program to its end, in a process group of its own, which is killed whole after ``timeout`` seconds.

    ``env`` replaces the environment. Each stream keeps at most about ``max_output`` bytes (head and tail, with a marker
    between, and ``truncated`` set). The program reads ``input``, or a file whose descriptor is ``input_file``.
    ``on_line`` hears each line as it comes; ``meanwhile`` is called a few times a second and may raise, which ends the
    program. With ``hold_input`` the program's input is open and silent for as long
    as this process lives, so that it can notice our end. ``inherit`` are descriptors that
    it keeps open: a lock on one of them lasts as long as the program, even when this process is killed before.
    """
    begun = time.monotonic()
    process = _start(
        argv,
        cwd=cwd,
        env=env,
        stdin=_given(input, input_file, hold=hold_input),
        umask=umask,
        inherit=inherit,
    )
    assert process.stdout is not None and process.stderr is not None  # noqa: S101 (for the type checker)
    streams = {
        process.stdout: _Output("stdout", max_output, on_line),
        process.stderr: _Output("stderr", max_output, on_line),
    }
    ended = False
    try:
        ended = _converse(process, streams, None if hold_input else input or b"", begun + timeout, meanwhile)
        if ended:
            for stream in streams.values():
                stream.close()
    finally:
        if not ended:
            _kill_group(process)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
    out, err = streams.values()
    return Completed(
        argv=tuple(argv),
        status=process.returncode if ended else TIMED_OUT,
        stdout=out.value(),
        stderr=err.value(),
        seconds=time.monotonic() - begun,
        timed_out=not ended,
        truncated=bool(out.dropped or err.dropped),
    )


def _given(data: bytes | None, file: int | None, *, hold: bool) -> int:
    if file is not None:
        return file
    return subprocess.DEVNULL if data is None and not hold else subprocess.PIPE


def _start(
    argv: Sequence[str],
    *,
    cwd: str | Path | None,
    env: Mapping[str, str] | None,
    stdin: int,
    umask: int,
    stderr: int = subprocess.PIPE,
    inherit: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    if isinstance(argv, (str, bytes)) or not argv or any("\0" in word for word in argv):
        raise AgentFailure("bad-command", "a command is a list of words without NUL")
    try:
        return subprocess.Popen(
            list(argv),
            cwd=cwd,
            env=dict(env) if env is not None else None,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
            umask=umask,
            bufsize=0,
            pass_fds=tuple(inherit),
        )
    except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
        raise AgentFailure(
            "no-command",
            f"cannot run {argv[0]}: {error.strerror}",
            hint=f"Install {argv[0]} on the server." if isinstance(error, FileNotFoundError) and cwd is None else "",
        ) from error


def _converse(
    process: subprocess.Popen[bytes],
    streams: Mapping[IO[bytes], _Output],
    data: bytes | None,
    deadline: float,
    meanwhile: Callable[[], None] | None = None,
) -> bool:
    """Feed the program (None: hold its input open) and hear it to its end; False when the deadline came first."""
    left = memoryview(data or b"")
    with selectors.DefaultSelector() as selector:
        for pipe in streams:
            selector.register(pipe, selectors.EVENT_READ)
        if process.stdin is not None and data is not None:
            os.set_blocking(process.stdin.fileno(), False)
            selector.register(process.stdin, selectors.EVENT_WRITE)
        gone: float | None = None
        while selector.get_map():
            now = time.monotonic()
            if gone is None and process.poll() is not None:
                gone = now + _DRAIN
            if gone is not None and now >= gone:
                break  # a grandchild that went to the background holds the pipe: what it says is not this program's
            if now >= deadline:
                return False
            if meanwhile is not None:
                meanwhile()
            # Short waits: the end of the program itself wakes nobody when a grandchild keeps the pipes.
            for key, _ in selector.select(min(deadline - now, 0.25 if gone is None else gone - now)):
                pipe = key.fileobj  # type: ignore[assignment]
                if pipe is process.stdin:
                    left = _feed(process.stdin, left)
                    if not left:
                        selector.unregister(pipe)
                        process.stdin.close()
                elif not _hear(streams[pipe], key.fd):
                    selector.unregister(pipe)
    try:
        process.wait(max(deadline - time.monotonic(), 0.01))
    except subprocess.TimeoutExpired:
        return False
    return True


def _hear(stream: _Output, descriptor: int) -> bool:
    """Take what there is; False at the stream's end."""
    chunk = os.read(descriptor, _CHUNK)
    if chunk:
        stream.feed(chunk)
    return bool(chunk)


def _feed(pipe: IO[bytes], left: memoryview) -> memoryview:
    try:
        return left[os.write(pipe.fileno(), left[:_CHUNK]) :]
    except BlockingIOError:
        return left
    except BrokenPipeError:  # it does not want more: its status says whether that is an error
        return left[len(left) :]


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """End the program and its children: first politely, so that git removes its temporary files, then surely."""
    for number, patience in ((signal.SIGTERM, _GRACE), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        if patience is None:
            process.wait()
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)


def detached(work: Callable[[], None]) -> None:
    """Do something that must be finished even when this process is killed: a child in a session of its own does it.

    When the child is the one that dies, the work is done here once more: it must bear to be done twice. What the child
    raises is raised here.
    """
    reader, writer = os.pipe()
    agent = os.getpid()
    child = os.fork()
    if child == 0:
        with failpoints.in_child(agent):
            _in_child(work, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    if not told:
        work()
        return
    found = json.loads(told)
    if found is not None:
        raise AgentFailure(found["code"], found["message"], found["hint"], found["detail"])


def _in_child(work: Callable[[], None], writer: int) -> None:
    told: dict[str, object] | None = None
    try:
        os.setsid()
        work()
    except AgentFailure as error:
        told = error.as_dict()
    except BaseException as error:
        told = AgentFailure("unexpected", f"{type(error).__name__}: {error}"[:1000]).as_dict()
    with contextlib.suppress(OSError):  # nobody listens any more: the work is done all the same
        _write_all(writer, json.dumps(told).encode())
    os._exit(0)


@contextlib.contextmanager
def pipe_to(argv: Sequence[str], env: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A program to be asked on its standard input and to answer on its output; it ends with the block."""
    process = _start(argv, cwd=None, env=env, stdin=subprocess.PIPE, umask=0o022, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            _kill_group(process)


# --- files of our own ---------------------------------------------------------


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")


def clean_temporaries(directory: Path) -> None:
    """Remove what a killed ``atomic_write`` or ``swap_link`` left in a directory. Only under the service's lock."""
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(directory):
            if name.endswith(".tmp") and re.fullmatch(_TEMPORARY, name):
                with contextlib.suppress(FileNotFoundError, IsADirectoryError):
                    os.unlink(directory / name)


def _write_all(fd: int, data: bytes, path: Path | None = None) -> None:
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(fd, left) :]
        except OSError as error:
            # The system only knows a number of a descriptor; whoever has to make space must know where.
            error.filename = error.filename or (str(path) if path else None)
            raise


def atomic_write(path: Path, data: bytes, mode: int, *, durable: bool = True, moment: int | None = None) -> None:
    """Put a file in place by one rename; with ``durable`` it is on the disk when this returns.

    ``moment`` is the time it is to bear, in whole seconds since 1970.
    """
    temporary = _temporary(path)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            os.fchmod(fd, mode)
            _write_all(fd, data, path)
            if moment is not None:
                os.utime(fd, (moment, moment))
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    if durable:
        sync_directory(path.parent)


def append(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Add to the end of a file of our own, in one write."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        _write_all(fd, data, path)
        if durable:
            os.fdatasync(fd)
    finally:
        os.close(fd)


def swap_link(link: Path, target_relative: str) -> None:
    """Make ``link`` point to ``target_relative`` by one rename: at every instant it names the old or the new."""
    if os.path.isabs(target_relative) or ".." in target_relative.split("/"):
        raise AgentFailure("bad-link", "the target of a link is relative and stays below")
    temporary = _temporary(link)
    os.symlink(target_relative, temporary)
    try:
        os.rename(temporary, link)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    sync_directory(link.parent)


def sync_directory(path: Path) -> None:
    """What was renamed in a directory is on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_tree(path: Path) -> None:
    """Everything written so far on the file system of ``path`` is on the disk, by one syncfs(2)."""
    # Python has no syncfs, and sync(2) would wait for every disk of the server; coreutils' sync has it.
    try:
        if run(["sync", "-f", "--", str(path)], timeout=120).ok:
            return
    except AgentFailure:
        pass
    os.sync()


def make_directory(path: Path, mode: int, uid: int = 0, gid: int = 0) -> None:
    """A directory with this mode and owner; its parent must be there. One that is there already is put right."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    fd = _open_at(None, str(path), os.O_RDONLY | os.O_DIRECTORY)
    try:
        found = os.fstat(fd)
        if (found.st_uid, found.st_gid) != (uid, gid):
            os.fchown(fd, uid, gid)
        if stat.S_IMODE(found.st_mode) != mode:
            os.fchmod(fd, mode)
    finally:
        os.close(fd)


def remove_tree(path: Path) -> None:
    """Remove a directory and all below, following no link even if one is swapped in meanwhile; missing is fine.

    However deep it is: directories are moved up to the top before they are emptied, so that neither the stack nor the
    descriptors grow with what somebody else has made. Who keeps writing there is not raced for ever.
    """
    try:
        top = _open_at(None, str(path), os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return
    deadline = time.monotonic() + _REMOVAL_SECONDS
    try:
        while names := os.listdir(top):
            if time.monotonic() > deadline:
                raise AgentFailure("busy", f"{path} could not be removed within {_REMOVAL_SECONDS:g} s")
            for name in names:
                if not _unlinked(top, name):
                    _move_up(top, name)
    finally:
        os.close(top)
    os.rmdir(path)


def _unlinked(directory: int, name: str) -> bool:
    """Remove a file or a link; False for a directory that is not empty."""
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        return True
    except IsADirectoryError:
        try:
            os.rmdir(name, dir_fd=directory)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            return False
    return True


def _move_up(top: int, name: str) -> None:
    """Remove the files of a directory and move its directories up."""
    inner = _open_at(top, name, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for entry in os.listdir(inner):
            if not _unlinked(inner, entry):
                os.rename(entry, f".{os.urandom(8).hex()}", src_dir_fd=inner, dst_dir_fd=top)
    finally:
        os.close(inner)
    _unlinked(top, name)


@dataclass(frozen=True)
class DiskFree:
    """What is left on a file system. ``inodes`` is None where they are not limited."""

    bytes: int
    inodes: int | None


def disk_free(path: Path) -> DiskFree:
    """What is left on the file system of ``path``."""
    found = os.statvfs(path)
    return DiskFree(found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None)


def read_trusted(path: Path, max_bytes: int) -> bytes | None:
    """The content of a file in a directory that only root writes; None when it is missing."""
    return _read_at(None, str(path), path, max_bytes)


# --- files that the container can write ---------------------------------------


def _open_at(directory: int | None, name: str, flags: int) -> int:
    """Open without following a link in the last part, waiting for nobody."""
    try:
        return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY, dir_fd=directory)
    except OSError as error:
        if error.errno in _WRONG_KIND:
            raise AgentFailure("wrong-kind", f"{name!a} is a link or of the wrong kind") from error
        raise


def open_directory(path: Path) -> int:
    """Open a directory from the top of an absolute path on, following no link anywhere."""
    if not path.is_absolute() or ".." in path.parts:
        raise AgentFailure("bad-path", "the path must be absolute")
    fd = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for part in path.parts[1:]:
        try:
            deeper = _open_at(fd, part, os.O_RDONLY | os.O_DIRECTORY)
        finally:
            os.close(fd)
        fd = deeper
    return fd


def _open_regular(directory: int | None, name: str, shown: Path) -> int:
    """Open a regular file for reading, and nothing else, not even for a moment.

    A container may make device files, and to open some of them does something to this machine (a watchdog's starts it).
    So the name only gets a handle that can do nothing, and what that stands for is opened when it was looked at.
    """
    handle = _open_at(directory, name, os.O_PATH)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise AgentFailure("wrong-kind", f"{shown} is not a regular file")
        return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(handle)


def _read_at(directory: int | None, name: str, shown: Path, max_bytes: int) -> bytes | None:
    try:
        fd = _open_regular(directory, name, shown)
    except FileNotFoundError:
        return None
    try:
        found = os.fstat(fd)
        # The size is asked only to be quick: what counts is how much is read.
        data = b"" if found.st_size > max_bytes else _read_up_to(fd, max_bytes + 1)
        if found.st_size > max_bytes or len(data) > max_bytes:
            raise AgentFailure("too-big", f"{shown} has more than {max_bytes} bytes")
        return data
    finally:
        os.close(fd)


def _read_up_to(fd: int, limit: int) -> bytes:
    data = bytearray()
    while len(data) < limit:
        chunk = os.read(fd, min(_CHUNK, limit - len(data)))
        if not chunk:
            break
        data += chunk
    return bytes(data)


def read_untrusted(dir_path: Path, name: str, max_bytes: int) -> bytes | None:
    """A file that the container may have written; None when it is missing.

    Raises AgentFailure: ``wrong-kind`` for anything but a regular file reached without a link, ``too-big`` above
    the cap.
    """
    if "/" in name or name in ("", ".", ".."):
        raise AgentFailure("bad-path", "a file's name has no slash")
    try:
        directory = open_directory(dir_path)
    except FileNotFoundError:
        return None
    try:
        return _read_at(directory, name, dir_path / name, max_bytes)
    finally:
        os.close(directory)


def list_untrusted(dir_path: Path, max_entries: int = 1000) -> list[str]:
    """The names in a directory that the container may have written; none when it is missing."""
    try:
        directory = open_directory(dir_path)
    except FileNotFoundError:
        return []
    try:
        names: list[str] = []
        with os.scandir(directory) as entries:
            for entry in entries:
                if len(names) >= max_entries:
                    raise AgentFailure("too-big", f"{dir_path} has more than {max_entries} entries")
                names.append(entry.name)
        return sorted(names)
    finally:
        os.close(directory)
