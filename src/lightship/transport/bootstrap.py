"""What starts the agent on a server: a few lines of Python that find the agent's file there, or take and keep it.

The command that SSH runs is always the same, whatever the service, so that nothing from outside is ever part of it. It
reads ``SOURCE`` from its input, and that looks for the agent of the wanted hash in a directory which only its own user
can write to. It answers with one line of JSON and then *is* the agent: same process, same standard streams.

Where a command cannot go on from one request to the next (Ansible runs one for each task) the agent is *held*: it gets
a session of its own and a socket in that directory, and this program becomes a relay, which passes the requests that
are left of its input, and the answers to them. With a later command it is the relay alone.

Where the connection stays from one command to the next the agent *waits*: it holds one conversation after the other.

It holds to what Python 3.5 understands, so that an older Python on a server is told of and does not end in a traceback.
"""

from __future__ import annotations

import hashlib

__all__ = ["MARK", "OLDEST_PYTHON", "SOURCE", "command", "digest_of", "held_command"]

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


def leave(status):
    """End once the other side has said all: it would take an end before that for a broken connection."""
    while os.read(0, 1 << 20):
        pass
    sys.exit(status)


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
            if name.startswith(("agent-", "held-")) and time.time() - os.lstat(path).st_mtime > KEPT_SECONDS:
                os.unlink(path)
        except OSError:
            pass


def relay(folder, name, greet):
    """Pass our input on to a held agent, and its answers to our output, until it has said all."""
    import select, socket

    os.chdir(folder)  # the name of a socket may have 107 bytes, and a path more
    agent = socket.socket(socket.AF_UNIX)
    try:
        agent.connect(name)
        if greet:
            say("have", uid=os.geteuid())
        while True:
            part = os.read(0, 1 << 20)
            if not part:
                break
            agent.sendall(part)
        agent.shutdown(socket.SHUT_WR)
    except OSError as error:
        say("error", code="agent-gone", text="the agent that was held is not there any more: %s" % error)
        leave(3)
    watched = select.poll()
    watched.register(agent, select.POLLIN)
    watched.register(1, 0)
    while True:
        found = dict(watched.poll())
        if 1 in found:
            sys.exit(5)  # nobody takes the answers
        part = agent.recv(1 << 20)
        if not part:
            sys.exit(0)
        while part:
            part = part[os.write(1, part):]


def hold(folder, path, name, silence):
    """Leave this process to the relay; in a new one, which nothing of the connection reaches, go on as the agent."""
    import socket

    os.chdir(folder)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(name)
    listener.listen(4)
    if os.fork():
        listener.close()
        relay(folder, name, False)
    os.setsid()
    nothing = os.open("/dev/null", os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    os.close(nothing)
    os.chdir("/")
    sys.argv[:] = [path, "--held", str(listener.detach()), os.path.join(folder, name), silence]


def main():
    if sys.argv[1] == "relay":
        relay(cache(), sys.argv[2], True)
    digest, size = sys.argv[1], int(sys.argv[2])
    waits = sys.argv[3:] == ["wait"]
    held = [] if waits else sys.argv[3:]
    if sys.version_info < OLDEST:
        fail("python-old", "Python %d.%d" % sys.version_info[:2], python=sys.executable)
    try:
        folder = cache()
        path = os.path.join(folder, "agent-%s.pyz" % digest)
        data = read(size) if held and held[2] == "sent" else None
        if holds(path, digest):
            os.utime(path)
            say("have", uid=os.geteuid())
        elif held and data is None:
            say("need", uid=os.geteuid())
            leave(0)
        else:
            if data is None:
                say("need", uid=os.geteuid())
                data = read(size)
            if digest_of([data]) != digest:
                fail("agent-sent", "what arrived is not the agent that was announced")
            keep(path, data)
            forget_old(folder)
            say("have", uid=os.geteuid())
    except OSError as error:
        fail("agent-cache", "the agent cannot be kept: %s" % error)
    sys.argv[:] = [path, "--wait"] if waits else [path]
    if held:
        hold(folder, path, held[0], held[1])
    # What runpy would do, without what it imports.
    import zipimport

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


def command(digest: str, size: int, *, sudo: bool, wait: bool = False) -> str:
    """The command for the agent with that digest and size, which waits for one conversation after the other with
    ``wait``. No quote, ``$``, ``!`` or backslash is in the part that the login shell, whichever it is, takes in single
    quotes."""
    loader = _LOADER.format(len(SOURCE.encode()))
    start, end = "sudo -n -- " if sudo else "", " wait" if wait else ""
    return f"exec {start}python3 -I -S -c '{loader}' {_digest(digest)} {size:d}{end}"


def held_command(python: str, token: str, agent: tuple[str, int] | None, *, silence: float = 0.0, sent: bool) -> str:
    """The command for an agent that is held under a token, or without ``agent`` for the relay to it alone.

    With ``sent`` the agent's file comes first in the input, else it is asked for when the server lacks it.
    """
    loader = _LOADER.format(len(SOURCE.encode()))
    name = f"held-{_hex(token, 32)}"
    if agent is None:
        return f"{python} -I -S -c '{loader}' relay {name}"
    digest, size = agent
    how = "sent" if sent else "ask"
    return f"{python} -I -S -c '{loader}' {_digest(digest)} {size:d} {name} {silence:g} {how}"


def _digest(digest: str) -> str:
    return _hex(digest, 64)


def _hex(text: str, length: int) -> str:
    if len(text) != length or not set(text) <= set("0123456789abcdef"):
        raise ValueError(text)
    return text
