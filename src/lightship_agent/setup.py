"""What ``lightship setup`` sends to a server: it looks at it, or brings it to ready. A program of its own.

It is sent as this one file and run by ``python3 -I -S``, so it imports nothing of the agent. It reads one line of JSON
and answers with one. The functions that build commands are pure; ``execute`` alone runs them, never by a shell.
"""

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence

__all__ = ["MARK", "PACKAGES", "Done", "engine_start", "execute", "install", "look", "make_root", "update"]

MARK = "lightship-setup"
"""The key of the answer; what a login shell prints before it is passed over."""

PACKAGES = ("ca-certificates", "docker.io", "git", "python3")
"""Nothing else is ever installed (and ``docker-cli``, which newer Debians have apart from ``docker.io``)."""

_ROOT = re.compile(r"/[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)+")
_LOOK_SECONDS, _UPDATE_SECONDS, _INSTALL_SECONDS, _START_SECONDS = 15.0, 300.0, 1500.0, 90.0
_GIT_SECONDS = 30.0
_KEPT = 16000
_OS_RELEASE = "/etc/os-release"
_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"


class Done(NamedTuple):
    """A command that has ended. ``status`` is ``None`` when it could not be run, or took too long."""

    status: Optional[int]
    out: str
    output: str


class StepError(Exception):
    """A step did not work."""

    def __init__(self, text: str, output: str = "") -> None:
        super().__init__(text)
        self.output = output


def update() -> List[str]:
    """The command that renews apt's lists."""
    return ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=120", "-o", "Acquire::Retries=2", "update"]


def install(names: Sequence[str]) -> List[str]:
    """The command that installs packages; what is not on the list is never installed."""
    strange = [name for name in names if name not in PACKAGES and name != "docker-cli"]
    if strange or not names:
        raise ValueError(strange)
    options = ["-o", "DPkg::Lock::Timeout=120", "-o", "Acquire::Retries=2", "-o", "Dpkg::Options::=--force-confold"]
    return ["apt-get", "-q", "-y", "--no-install-recommends", *options, "install", "--", *names]


def engine_start() -> List[str]:
    """The command that starts the engine, now and at each start of the machine."""
    return ["systemctl", "enable", "--now", "docker.service"]


def execute(argv: Sequence[str], seconds: float) -> Done:
    """Run a command, without input, in a session of its own: a connection that is lost does not end apt halfway."""
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/snap/bin",
        "LC_ALL": "C.UTF-8",
        "HOME": "/root",
        "DEBIAN_FRONTEND": "noninteractive",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ALLOW_PROTOCOL": "file:http:https:ssh",
        "NEEDRESTART_MODE": "l",
    }
    for name in ("http_proxy", "https_proxy", "no_proxy", "DOCKER_HOST"):
        if name in os.environ:
            environment[name] = os.environ[name]
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=environment,
            cwd="/",
        )
    except OSError as error:
        return Done(None, "", "%s: %s" % (argv[0], error.strerror))  # noqa: UP031 - an old Python gets as far as this
    try:
        out, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, errors = process.communicate()
        return Done(None, _text(out), f"{_text(out + errors)}\n{argv[0]} took more than {seconds:g} s".strip())
    return Done(process.returncode, _text(out), _text(out + b"\n" + errors))


def _text(data: bytes) -> str:
    return data[-_KEPT:].decode("utf-8", "replace").strip()


# --- looking --------------------------------------------------------------------------


def look(root: str) -> Dict[str, Any]:
    """The facts of this server that matter to setup. Nothing is changed by looking."""
    return {
        "uid": os.geteuid(),
        "python": "%d.%d.%d" % sys.version_info[:3],  # noqa: UP031
        "os": os_release(_read(_OS_RELEASE)),
        "apt": shutil.which("apt-get") is not None,
        "git": _version(["git", "--version"]),
        "docker": _version(["docker", "--version"]),
        "engine": _engine(),
        "systemd": os.path.isdir("/run/systemd/system"),
        "enabled": _enabled(),
        "certificates": os.path.exists(_BUNDLE),
        "root": look_at_root(root),
        "time": time.time(),
    }


def os_release(text: str) -> Dict[str, str]:
    """The system's name, from ``/etc/os-release``."""
    found = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and name in ("ID", "ID_LIKE", "VERSION_ID", "PRETTY_NAME"):
            found[name.lower()] = value.strip().strip("\"'")[:100]
    return found


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(65536)
    except OSError:
        return ""


def _version(argv: Sequence[str]) -> Optional[str]:
    done = execute(argv, _LOOK_SECONDS)
    match = re.search(r"\d+(\.\d+)+", done.out)
    return match.group() if done.status == 0 and match else None


def _engine() -> Dict[str, Any]:
    done = execute(["docker", "version", "--format", "{{.Server.Version}}"], _LOOK_SECONDS)
    if done.status == 0 and done.out:
        return {"version": done.out.splitlines()[-1][:40], "error": ""}
    return {"version": None, "error": done.output[-300:]}


def _enabled() -> Optional[bool]:
    """Whether the engine is started with the machine; ``None`` where that cannot be told."""
    if not os.path.isdir("/run/systemd/system"):
        return None
    said = [
        execute(["systemctl", "is-enabled", unit], _LOOK_SECONDS).out for unit in ("docker.service", "docker.socket")
    ]
    if "disabled" not in said[0]:
        return True if said[0].startswith("enabled") else None
    return said[1].startswith("enabled")


def look_at_root(root: str) -> Dict[str, Any]:
    """The directory for all services: whether it is there, whose it is, and who may write to it."""
    try:
        found = os.lstat(root)
    except FileNotFoundError:
        return {"path": root, "kind": "none"}
    except OSError as error:
        return {"path": root, "kind": "other", "error": str(error)}
    kind = "directory" if stat.S_ISDIR(found.st_mode) else "link" if stat.S_ISLNK(found.st_mode) else "other"
    return {"path": root, "kind": kind, "uid": found.st_uid, "gid": found.st_gid, "mode": stat.S_IMODE(found.st_mode)}


def examine(request: Mapping[str, Any]) -> Dict[str, Any]:
    """What ``lightship doctor`` wants to know beyond the facts: the git host, ports, the health path, space."""
    place = str(request["root"])
    while not os.path.isdir(place):
        place = os.path.dirname(place) or "/"
    space = os.statvfs(place)
    found: Dict[str, Any] = {
        "free_bytes": space.f_bavail * space.f_frsize,
        "free_inodes": space.f_favail if space.f_files else None,
        "listening": [port for port in request.get("ports", []) if _listens(int(port))],
    }
    proxy = _read(os.path.join(str(request["root"]), ".proxy/conf/haproxy.cfg"))
    found["proxy_ports"] = sorted({int(port) for port in re.findall(r"^  bind \S*:(\d+)", proxy, re.MULTILINE)})
    found["unfinished"] = unfinished(
        _read(os.path.join(str(request["root"]), str(request["service"]), "state/journal"))
    )
    if request.get("repository"):
        done = execute(ls_remote(str(request["repository"]), str(request["ref"])), _GIT_SECONDS)
        found["git"] = {"status": done.status, "found": bool(done.out), "output": done.output[-1000:]}
    if request.get("health"):
        found["health"] = _health(request["health"])
    return found


def unfinished(journal: str) -> bool:
    """Whether the journal has a rollout that was begun and has not ended."""
    phases = []
    for line in journal.splitlines():
        try:
            phases.append(json.loads(line).get("phase"))
        except (ValueError, AttributeError):
            continue
    return bool(phases) and phases[0] == "begin" and phases[-1] != "end"


def ls_remote(repository: str, ref: str) -> List[str]:
    """The command that asks the git host for a ref; nothing that could be an option or run a program."""
    if repository.startswith("-") or "::" in repository or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._/+@=-]*", ref):
        raise ValueError(repository)
    options = ["-c", "core.sshCommand=ssh -oBatchMode=yes -oStrictHostKeyChecking=yes -oConnectTimeout=10"]
    return ["git", *options, "ls-remote", "--", repository, f"refs/heads/{ref}", f"refs/tags/{ref}"]


def _listens(port: int) -> bool:
    """Whether something listens on a TCP port of this server."""
    lines = _read("/proc/net/tcp").splitlines() + _read("/proc/net/tcp6").splitlines()
    return any(parts[3] == "0A" and parts[1].endswith(f":{port:04X}") for parts in map(str.split, lines) if parts)


def _health(asked: Mapping[str, Any]) -> Dict[str, Any]:
    import http.client  # noqa: PLC0415 - only doctor needs it

    address = str(asked.get("address") or "127.0.0.1")
    connection = http.client.HTTPConnection(address, int(asked["port"]), timeout=float(asked["timeout"]))
    try:
        connection.request("GET", str(asked["path"]), headers={"Host": str(asked["host"])})
        answer = connection.getresponse()
        body = answer.read(1024 * 1024).decode("utf-8", "replace")
        return {"status": answer.status, "body": not asked.get("body") or str(asked["body"]) in body, "error": ""}
    except (OSError, http.client.HTTPException) as error:
        return {"status": None, "body": False, "error": f"{type(error).__name__}: {error}"[:300]}
    finally:
        connection.close()


# --- changing -------------------------------------------------------------------------


def change(request: Mapping[str, Any]) -> List[str]:
    """Do what the plan says; the names of what was done."""
    done: List[str] = []
    packages = list(request.get("packages") or [])
    if packages:
        install(packages)  # refuses what is not on the list, before anything is changed
        _must(update(), _UPDATE_SECONDS, "apt-get update failed")
        if "docker.io" in packages and execute(["apt-cache", "show", "--", "docker-cli"], _LOOK_SECONDS).status == 0:
            packages.append("docker-cli")
        _must(install(packages), _INSTALL_SECONDS, f"apt-get install {' '.join(packages)} failed")
        done += packages
    if request.get("engine") and os.path.isdir("/run/systemd/system"):
        _must(engine_start(), _START_SECONDS, "the Docker engine does not start")
        _wait_for_engine()
        done.append("engine")
    if request.get("make_root"):
        make_root(str(request["root"]))
        done.append("root")
    return done


def _must(argv: Sequence[str], seconds: float, text: str) -> None:
    done = execute(argv, seconds)
    if done.status != 0:
        raise StepError(text, done.output)


def _wait_for_engine() -> None:
    end = time.monotonic() + _START_SECONDS
    while (found := _engine())["version"] is None:
        if time.monotonic() > end:
            raise StepError("the Docker engine was started, but does not answer", str(found["error"]))
        time.sleep(0.5)


def make_root(root: str) -> None:
    """Make the directory, or give it to root alone to write to."""
    if not _ROOT.fullmatch(root) or ".." in root.split("/"):
        raise StepError(f"{root!r} is not a path that setup makes")
    try:
        os.makedirs(root, 0o755, exist_ok=True)
        handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchown(handle, 0, 0)
            os.fchmod(handle, 0o755)
        finally:
            os.close(handle)
    except OSError as error:
        raise StepError(f"{root} cannot be made: {error}") from error


def main() -> int:
    """Read the request, do it, answer."""
    request = json.loads(sys.stdin.readline())
    root = str(request["root"])
    answer: Dict[str, Any] = {}
    try:
        if request["do"] == "change":
            answer["done"] = change(request)
        if request["do"] == "examine":
            answer["examined"] = examine(request)
        answer["facts"] = look(root)
        answer[MARK] = "done"
    except (StepError, ValueError, OSError) as error:
        answer = {MARK: "error", "text": str(error), "output": getattr(error, "output", "")}
    sys.stdout.write("\n" + json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
