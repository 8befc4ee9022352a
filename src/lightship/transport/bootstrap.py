"""What starts the agent on a server: a few lines of Python that find the agent's file there, or take and keep it.

The command that SSH runs is always the same, whatever the service, so that nothing from outside is ever part of it. It
reads ``SOURCE`` from its input, and that looks for the agent of the wanted hash in a directory which only its own user
can write to. It answers with one line of JSON and then *is* the agent: same process, same standard streams.

It holds to what Python 3.5 understands, so that an older Python on a server is told of and does not end in a traceback.
"""

from __future__ import annotations

import hashlib

__all__ = ["MARK", "OLDEST_PYTHON", "SOURCE", "command", "digest_of"]

MARK = "lightship-agent"
"""The key of the line that ``SOURCE`` answers with; what a login shell prints before it is passed over."""

OLDEST_PYTHON = (3, 9)

SOURCE = r'''
import json, os, stat, sys, time

MARK, OLDEST, KEPT_SECONDS = "lightship-agent", (3, 9), 30 * 86400


def say(word, **more):
    more[MARK] = word
    data = ("\n" + json.dumps(more, sort_keys=True) + "\n").encode()
    while data:
        data = data[os.write(1, data):]


def fail(code, text, **more):
    say("error", code=code, text=text, **more)
    sys.exit(3)


def trusted(path):
    """Every directory on the way is to be ours or root's, and writable by nobody else (as sshd holds it)."""
    while True:
        found = os.lstat(path)
        sticky = found.st_mode & stat.S_ISVTX and found.st_uid == 0
        if found.st_uid not in (0, os.geteuid()) or (found.st_mode & 0o022 and not sticky):
            fail("agent-cache", path + " can be written by others than its user", path=path)
        if path == "/":
            return
        path = os.path.dirname(path)


def cache():
    if os.geteuid() == 0:
        base = "/var/cache"
    else:
        import pwd
        base = os.path.join(os.path.realpath(pwd.getpwuid(os.geteuid()).pw_dir), ".cache")
    os.makedirs(base, 0o700, exist_ok=True)
    base = os.path.realpath(base)
    trusted(base)
    path = os.path.join(base, "lightship")
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        fail("agent-cache", path + " is not a directory of its user alone (mode 0700)", path=path)
    return path


def read(count):
    parts = []
    while count:
        part = os.read(0, min(count, 1 << 20))
        if not part:
            sys.exit(4)
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def digest_of(parts):
    """BLAKE2 is part of Python itself; hashlib loads OpenSSL, which takes longer than all that is hashed here."""
    try:
        from _blake2 import blake2b
    except ImportError:
        from hashlib import blake2b
    made = blake2b(digest_size=32)
    for part in parts:
        made.update(part)
    return made.hexdigest()


def holds(path, digest):
    """Whether the file is there, ours, and what its name says."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
            return False
        return digest_of(iter(lambda: file.read(1 << 16), b"")) == digest


def keep(path, data):
    making = "%s.%d" % (path, os.getpid())
    handle = os.open(making, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(handle)
        os.rename(making, path)
    except BaseException:
        os.unlink(making)
        raise


def forget_old(folder):
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        try:
            if name.startswith("agent-") and time.time() - os.lstat(path).st_mtime > KEPT_SECONDS:
                os.unlink(path)
        except OSError:
            pass


def main():
    digest, size = sys.argv[1], int(sys.argv[2])
    if sys.version_info < OLDEST:
        fail("python-old", "Python %d.%d" % sys.version_info[:2], python=sys.executable)
    try:
        folder = cache()
        path = os.path.join(folder, "agent-%s.pyz" % digest)
        if holds(path, digest):
            os.utime(path)
            say("have", uid=os.geteuid())
        else:
            say("need", uid=os.geteuid())
            data = read(size)
            if digest_of([data]) != digest:
                fail("agent-sent", "what arrived is not the agent that was announced")
            keep(path, data)
            forget_old(folder)
            say("have", uid=os.geteuid())
    except OSError as error:
        fail("agent-cache", "the agent cannot be kept: %s" % error)
    # What runpy would do, without what it imports.
    import zipimport

    sys.argv[:] = [path]
    sys.path.insert(0, path)
    agent = type(sys)("__main__")
    sys.modules["__main__"] = agent
    exec(zipimport.zipimporter(path).get_code("__main__"), agent.__dict__)


main()
'''

_LOADER = (
    'import os,sys;s=b"";exec("while len(s)<{0}:s+=os.read(0,{0}-len(s)) or sys.exit(4)");'
    'exec(compile(s,"lightship-bootstrap","exec"))'
)


def digest_of(data: bytes) -> str:
    """What the agent's file is known by."""
    return hashlib.blake2b(data, digest_size=32).hexdigest()


def command(digest: str, size: int, *, sudo: bool) -> str:
    """The command for the agent with that digest and size. No quote, ``$``, ``!`` or backslash is in the part that the
    login shell, whichever it is, takes in single quotes."""
    if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):  # noqa: PLR2004
        raise ValueError(digest)
    loader = _LOADER.format(len(SOURCE.encode()))
    return f"exec {'sudo -n -- ' if sudo else ''}python3 -I -S -c '{loader}' {digest} {size:d}"
