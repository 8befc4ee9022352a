"""What root in the container can do to the host: nothing.

An attacker with root in the container writes what it likes under run/ and shared/ while the agent works. Outside of the
service's directories lies bait: files of the names that the agent looks for, and a socket. Every touch of it is heard
by inotify, every connection accepted. The agent ends in bounded time, and says that a release is live only if it is.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.engine import Engine
from support.site import Said, Site
from support.watch import Watch

RUN = "/srv/lightship/run"
BOOT_SECONDS = 12
# Generous for a busy machine, and still far from for ever.
LOOK_SECONDS, DEPLOY_SECONDS = 30.0, 150.0
OTHER = "f" * 40
HEAD = f"""
import fcntl, json, os, signal, socket, sys, time
os.chdir("{RUN}")
BAIT, OTHER = sys.argv[1], "{OTHER}"
live = "slots/" + sys.argv[2]
def put(name, data):
    with open(name + ".x", "w") as file:
        file.write(data)
    os.rename(name + ".x", name)
def aside(name):
    if os.path.lexists(name):
        os.rename(name, name + ".away")
    return name
"""


class Bait:
    """Files and a socket outside of the service's directories that nobody is to touch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "slots" / "0").mkdir(parents=True)
        (folder / "slots" / "1").mkdir()
        for place in (folder, folder / "slots" / "0", folder / "slots" / "1"):
            for name in ("booted.json", "worker-1.json", "worker-2.json", "failed.json", "count-1.json", "reload"):
                (place / name).write_text(json.dumps({"worker": 1, "workers": 2, "pid": 1, "release": OTHER}))
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # Its path may be too long for a socket's address, a link through /proc never is.
        with_handle = os.open(folder, os.O_RDONLY)
        self.listener.bind(f"/proc/self/fd/{with_handle}/stats.sock")
        os.close(with_handle)
        self.listener.listen()
        self.listener.setblocking(False)
        self.folders = [path for path in (folder, *folder.rglob("*")) if path.is_dir()]

    def as_it_is(self) -> dict[str, object]:
        found: dict[str, object] = {}
        for path in (self.folder, *sorted(self.folder.rglob("*"))):
            status = path.lstat()
            content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
            found[str(path)] = (status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, content)
        return found

    @contextmanager
    def untouched(self) -> Iterator[None]:
        before = self.as_it_is()
        with Watch(*self.folders) as watch:
            yield
        assert watch.events == []
        assert self.as_it_is() == before
        with pytest.raises(BlockingIOError):
            self.listener.accept()


class Attacker:
    """Runs programs as root in the container that serves."""

    def __init__(self, site: Site, bait: Bait) -> None:
        self.site = site
        self.bait = bait

    @property
    def live(self) -> str:
        orders = json.loads(self.orders.read_text())["slots"]
        return next(name for name, order in orders.items() if order["release"] == self.site.current)

    @property
    def orders(self) -> Path:
        number = self.site.container().rpartition("-")[2]
        return self.site.home / "code" / "instances" / f"{number}.json"

    @property
    def command(self) -> list[str]:
        return ["docker", "exec", "--interactive", "--user", "0", self.site.container(), "python3", "-"]

    def do(self, script: str) -> None:
        """Run a script to its end."""
        program = HEAD + textwrap.dedent(script)
        done = subprocess.run(
            [*self.command, str(self.bait.folder), self.live],
            input=program, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    @contextmanager
    def doing(self, script: str) -> Iterator[None]:
        """Run a script until the block ends; it says ``ready`` when it has begun."""
        # It ends itself when its input does, since the end of `docker exec` is not that of what runs inside.
        program = HEAD + "import threading\n"
        program += "def end():\n    sys.stdin.read()\n    os._exit(0)\n"
        program += "threading.Thread(target=end, daemon=True).start()\n"
        program += textwrap.dedent(script)
        command = [*self.command[:-1], "-c", program, str(self.bait.folder), self.live]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            assert process.stdout.readline() == "ready\n"
            yield
        finally:
            process.stdin.close()
            process.wait(30)
            process.stdout.close()


@pytest.fixture(scope="module")
def attacker(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacker]:
    folder = tmp_path_factory.mktemp("attack")
    site = Site(engine, folder / "site", settings={"patience": 3, "shared": ["media/uploads"]})
    bait = Bait(folder / "bait")
    try:
        site.deploy()
        yield Attacker(site, bait)
    finally:
        bait.listener.close()
        try:
            site.close()
        finally:
            # What an attacker has nested is deeper than pytest's own removal can go down.
            subprocess.run(["rm", "-rf", "--", str(folder)], check=False)


@contextmanager
def impatient(site: Site) -> Iterator[None]:
    """A boot that will not succeed is not waited for as long as one that may."""
    site.configure(boot_timeout=BOOT_SECONDS)
    yield
    site.configure(boot_timeout=120)


def timed(what: Callable[[], Said], limit: float) -> Said:
    begun = time.monotonic()
    said = what()
    assert time.monotonic() - begun < limit
    return said


def wholly_live(site: Site) -> set[str]:
    """The releases that answer."""
    return {site.get()[2] for _ in range(20)}


def test_the_watch_hears_a_touch(attacker: Attacker) -> None:
    with Watch(*attacker.bait.folders) as watch:
        (attacker.bait.folder / "worker-1.json").read_text()
    assert watch.events


# Each is put in the place of what the live slot says of itself. ``clean`` runs afterwards.
PLANTED = {
    "links to files of the host": """
        for name, target in (("worker-1.json", BAIT + "/worker-1.json"), ("booted.json", BAIT + "/booted.json"),
                             ("worker-2.json", "/etc/shadow"), ("failed.json", "../../../../bait/failed.json")):
            os.symlink(target, aside(live + "/" + name))
    """,
    "a link to a socket of the host": """
        os.symlink(BAIT + "/stats.sock", aside(live + "/stats.sock"))
    """,
    "a link to the engine's socket": """
        os.symlink("/var/run/docker.sock", aside(live + "/stats.sock"))
    """,
    "pipes": """
        for name in ("worker-1.json", "booted.json", "failed.json", "count-1.json", "stats.sock"):
            os.mkfifo(aside(live + "/" + name))
    """,
    "devices": """
        for name, number in (("worker-1.json", (1, 5)), ("booted.json", (10, 130)), ("stats.sock", (1, 3))):
            os.mknod(aside(live + "/" + name), 0o20666, os.makedev(*number))
    """,
    "announcements of a gigabyte": """
        for name in ("worker-1.json", "booted.json"):
            with open(aside(live + "/" + name), "w") as file:
                file.truncate(1 << 30)
    """,
    "announcements of another release": """
        for number in range(1, 3):
            put(aside(live + "/worker-%d.json" % number), json.dumps(
                {"worker": number, "pid": number, "release": OTHER, "generation": 1, "state": "serving", "time": 1}))
    """,
    "numbers and depths past all bounds": """
        put(aside(live + "/booted.json"), '{"workers": 1e999, "generation": 1, "release": []}')
        put(aside(live + "/worker-1.json"), '{"worker": 1, "pid": %s, "release": "%s", "state": "serving", "time": NaN}'
            % ("9" * 4000, OTHER))
        put(aside(live + "/worker-2.json"), "[" * 60000)
    """,
    "a link for the whole slot": """
        os.rename(live, live + ".away"); os.symlink(BAIT + "/slots/0", live)
    """,
    "a link for all slots": """
        os.rename("slots", "slots.away"); os.symlink(BAIT + "/slots", "slots")
    """,
}
CLEAN = """
    if os.path.islink("slots"):
        os.unlink("slots"); os.rename("slots.away", "slots")
    if os.path.islink(live):
        os.unlink(live); os.rename(live + ".away", live)
    for name in os.listdir(live):
        if name.endswith(".away"):
            os.rename(live + "/" + name, live + "/" + name[:-5])
"""
SERVERS = {
    "a server that says nothing": "connection, _ = listener.accept(); kept.append(connection)",
    "a server that says a byte at a time": """
connection, _ = listener.accept()
def trickle(connection):
    while True:
        try: connection.send(b" ")
        except OSError: return
        time.sleep(0.2)
threading.Thread(target=trickle, args=[connection], daemon=True).start()
""",
    "a server that never ends": """
connection, _ = listener.accept()
def flood(connection):
    try:
        while True: connection.sendall(b"[" * 65536)
    except OSError: pass
threading.Thread(target=flood, args=[connection], daemon=True).start()
""",
    "a server that answers with garbage": """
connection, _ = listener.accept()
connection.sendall(json.dumps({"workers": [
    {"id": [1], "pid": {}, "apps": 5, "status": []}, {"id": 10 ** 4000, "pid": "x"}, 5, None, []]}).encode())
connection.close()
""",
}


@pytest.mark.parametrize("name", PLANTED)
def test_looking_at_what_was_planted_touches_nothing_else_and_ends(attacker: Attacker, name: str) -> None:
    site = attacker.site
    attacker.do(PLANTED[name])
    try:
        with attacker.bait.untouched():
            said = timed(lambda: site.run("status", "--json"), LOOK_SECONDS)
        facts = said.result["servers"][0]["facts"]
        assert facts["current"] == site.current
        # What is told of is what the master confirms, and nothing when nothing can be confirmed.
        assert OTHER not in said.stdout
    finally:
        attacker.do(CLEAN)


def listening(accept: str) -> str:
    """A script that listens in the place of the live slot's statistics, and does that with each connection."""
    return f"""
aside(live + "/stats.sock")
listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
listener.bind(live + "/stats.sock")
listener.listen(50)
kept = []
print("ready", flush=True)
while True:
{textwrap.indent(accept.strip(), "    ")}
"""


@pytest.mark.parametrize("name", SERVERS)
def test_whatever_listens_at_the_statistics_socket_holds_nobody_up(attacker: Attacker, name: str) -> None:
    site = attacker.site
    with attacker.doing(listening(SERVERS[name])):
        said = timed(lambda: site.run("status", "--json"), LOOK_SECONDS)
    attacker.do(CLEAN)
    assert said.result["servers"][0]["facts"]["slots"][attacker.live]["running"] is False


LEASES = """
def let_go(*_): pass
signal.signal(signal.SIGIO, let_go)
held = []
for name in os.listdir(live):
    if name.endswith(".json"):
        with open(live + "/" + name) as file:
            put(live + "/" + name, file.read())  # only its own may be leased by somebody
        file = open(live + "/" + name, "r+")
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        held.append(file)
print("ready", flush=True)
while True:
    time.sleep(0.1)
"""


def test_a_lease_on_an_announcement_holds_nobody_up(attacker: Attacker) -> None:
    attacker.site.change("v1-lease")
    attacker.site.deploy()
    with attacker.doing(LEASES):
        said = timed(lambda: attacker.site.run("status", "--json"), LOOK_SECONDS)
    assert said.result["servers"][0]["facts"]["current"] == attacker.site.current


SWAPS = """
def swap():
    count = 0
    while True:
        for slot in ("slots/0", "slots/1"):
            try:
                os.rename(slot, slot + ".away")
                os.symlink(BAIT + "/" + slot, slot)
                time.sleep(0.0001)
                os.unlink(slot)
                os.rename(slot + ".away", slot)
            except OSError:
                try: os.unlink(slot)
                except OSError: pass
                try: os.rename(slot + ".away", slot)
                except OSError: pass
        count += 1
        if count % 1000 == 0:
            put("swapped", str(count))
threading.Thread(target=swap, daemon=True).start()
print("ready", flush=True)
while True:
    time.sleep(1)
"""
MEND = """
for slot in ("slots/0", "slots/1"):
    if os.path.islink(slot): os.unlink(slot)
    if os.path.isdir(slot + ".away") and not os.path.isdir(slot): os.rename(slot + ".away", slot)
"""


def test_a_directory_swapped_with_a_link_in_a_race_leads_nowhere(attacker: Attacker) -> None:
    site = attacker.site
    commit = site.change("v2")
    with impatient(site), attacker.bait.untouched(), attacker.doing(SWAPS):
        for _ in range(3):
            timed(lambda: site.run("status", "--json"), LOOK_SECONDS)
        said = timed(lambda: site.deploy(expect=None), DEPLOY_SECONDS)
        swapped = site.home / "run" / site.container().rpartition("-")[2] / "swapped"
        end = time.monotonic() + 120
        # So many times, however long a busy machine takes for it; the server is looked at all the while.
        # It is written in place: it may be empty when it is read.
        while not swapped.exists() or int(swapped.read_text() or 0) < 2000:
            assert time.monotonic() < end, "the container swapped too seldom"
            timed(lambda: site.run("status", "--json"), LOOK_SECONDS)
    attacker.do(MEND)
    assert said.status in (0, 3, 4, 5), said.stdout
    if said.status == 0:
        assert wholly_live(site) == {commit}
    commit = site.change("v2-after")
    site.deploy("--retry")
    assert wholly_live(site) == {commit}


FORGED = """
orders = "/srv/lightship/code/instances/%s.json" % os.environ["LIGHTSHIP_INSTANCE"]
print("ready", flush=True)
while True:
    with open(orders) as file:
        slots = json.load(file)["slots"]
    for slot, order in slots.items():
        try:
            if os.path.exists("slots/%s/failed.json" % slot):
                os.unlink("slots/%s/failed.json" % slot)
            said = dict(order, pid=1, time=time.time(), workers=2)
            put("slots/%s/booted.json" % slot, json.dumps(said))
            for number in (1, 2):
                put("slots/%s/worker-%d.json" % (slot, number), json.dumps(
                    dict(said, worker=number, state="serving")))
        except OSError:
            pass
"""


def test_forged_announcements_are_no_proof(attacker: Attacker) -> None:
    site = attacker.site
    before = site.current
    site.change("v3", more="import no_such_module_at_all")
    with impatient(site), attacker.doing(FORGED):
        said = timed(lambda: site.deploy(expect=None), DEPLOY_SECONDS)
    assert said.status == 3, said.stdout
    assert site.current == before
    assert wholly_live(site) == {before}
    commit = site.change("v4")
    site.deploy()
    assert wholly_live(site) == {commit}


LITTER = """
os.makedirs("many")
for number in range(100000):
    os.close(os.open("many/%d" % number, os.O_CREAT | os.O_WRONLY))
os.mkdir("deep")
descriptor = os.open("deep", os.O_RDONLY)
for number in range(3000):
    os.symlink(BAIT, "link", dir_fd=descriptor)
    os.mkdir("deep", dir_fd=descriptor)
    inner = os.open("deep", os.O_RDONLY, dir_fd=descriptor)
    os.close(descriptor)
    descriptor = inner
os.symlink("/", "host"); os.symlink(BAIT, "bait"); os.mkfifo("pipe")
os.chdir("/srv/lightship/shared")
os.symlink(BAIT, aside("media")); os.symlink("/", "host")
"""


def test_what_a_container_leaves_is_removed_and_nothing_else(attacker: Attacker) -> None:
    site = attacker.site
    old = site.home / "run" / site.container().rpartition("-")[2]
    attacker.do(LITTER)
    commit = site.change("v5")
    with attacker.bait.untouched():
        refused = timed(lambda: site.deploy(expect=3), DEPLOY_SECONDS)
        assert "shared path" in refused.error["message"]
        attacker.do('os.chdir("/srv/lightship/shared"); os.unlink("media"); os.rename("media.away", "media")')
        timed(lambda: site.deploy("--kind", "full", "--retry"), DEPLOY_SECONDS)
    assert not old.exists()
    assert wholly_live(site) == {commit}
    assert (site.home / "shared" / "host").is_symlink(), "what the service keeps is left alone"
