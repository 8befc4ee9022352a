"""Sees to it that the slots which ``instances/<n>.json`` names run, and that the others do not.

Runs inside the container under the same Supervisor as the slots, and speaks to it over its own socket, which lies in
the container and not in the volume: the host never has to trust what answers there. The host only ever writes files
that this program can read and not change.
"""

import http.client
import json
import os
import signal
import socket
import sys
import time
import xmlrpc.client

CODE = os.environ.get("LIGHTSHIP_CODE", "/srv/lightship/code")
RUN = os.environ.get("LIGHTSHIP_RUN", "/srv/lightship/run")
INSTANCE = os.environ.get("LIGHTSHIP_INSTANCE", "1")
SOCKET = os.environ.get("LIGHTSHIP_SUPERVISOR_SOCKET", "/run/lightship-supervisor.sock")
GROUP = os.environ.get("LIGHTSHIP_SLOT_GROUP", "slot")
SLOTS = ("0", "1")
INTERVAL = 0.01
# How much longer than the patience with requests a slot may take to end.
LAST_WORDS = 2.0
# Supervisor's fault for a process that is already in the wanted state (supervisor/xmlrpc.py: Faults).
ALREADY_STARTED, NOT_RUNNING = 60, 70
RUNNING_STATES = ("STARTING", "RUNNING", "BACKOFF")


class UnixTransport(xmlrpc.client.Transport):
    """XML-RPC over a Unix socket."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def make_connection(self, _host):
        connection = http.client.HTTPConnection("localhost", timeout=10)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.settimeout(10)
        connection.sock.connect(self.path)
        return connection


def supervisor():
    proxy = xmlrpc.client.ServerProxy("http://localhost", transport=UnixTransport(SOCKET))
    return proxy.supervisor


def log(message):
    sys.stdout.write("lightship keeper: %s\n" % message)
    sys.stdout.flush()


def read_json(path):
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return None


def signature(path):
    try:
        status = os.stat(path)
    except OSError:
        return None
    return (status.st_ino, status.st_mtime_ns, status.st_size)


def announced(slot):
    """What the workers of a slot say; None for one that says nothing that can be read."""
    folder = os.path.join(RUN, "slots", slot)
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    return [
        read_json(os.path.join(folder, name)) for name in names if name.startswith("worker-") and name.endswith(".json")
    ]


def all_parked(slot):
    """Whether every worker of the slot that said anything says it is parked, or only ready: none has a request."""
    return all(worker is not None and worker.get("state") in ("parked", "ready") for worker in announced(slot))


def never_served(slot):
    """Whether the slot is still booting or waits at its gate: it has no request that could be cut off."""
    return all(worker is not None and worker.get("state") == "ready" for worker in announced(slot))


def nothing_left(slot):
    """Whether no worker of a slot that is stopping has anything to do, even if its master has not noticed it yet.

    A worker that only ever stood at the gate counts: uWSGI's word to finish does not reach it there.
    """
    workers = announced(slot)
    for worker in workers:
        if worker is None:
            return False
        try:
            with open("/proc/%d/stat" % worker["pid"]) as file:
                if file.read().rsplit(")", 1)[1].split()[0] != "Z" and worker["state"] != "ready":
                    return False
        except FileNotFoundError:
            continue
    return bool(workers)


class Slot:
    """One slot as the keeper knows it: the generation that is wanted and the one it started."""

    def __init__(self, name):
        self.name = name
        self.process = "%s:%s_%s" % (GROUP, GROUP, name)
        self.wanted = None
        self.started = None
        self.leaving_since = None
        self.stopping = False
        self.settled = False

    def want(self, generation):
        self.settled = False
        self.wanted = generation
        if generation is not None and generation == self.started:
            self.leaving_since = None
        elif self.leaving_since is None:
            self.leaving_since = time.monotonic()

    def leaving(self, seconds):
        """Whether what runs here was let go more than so many seconds ago."""
        return self.leaving_since is not None and time.monotonic() - self.leaving_since > seconds


class Keeper:
    """Brings what runs to what is wanted, one look at a time; a look never waits for anything."""

    def __init__(self):
        self.path = os.path.join(CODE, "instances", INSTANCE + ".json")
        self.seen = ()
        self.slots = [Slot(name) for name in SLOTS]
        self.patience = 30.0
        self.adopt_until = time.monotonic() + 2.0

    def look(self):
        now = signature(self.path)
        if now != self.seen:
            settings = read_json(self.path)
            if settings is None:
                return
            self.patience = float(settings.get("patience", 30.0))
            for slot in self.slots:
                order = (settings.get("slots") or {}).get(slot.name)
                slot.want(order["generation"] if order else None)
            self.seen = now
        for slot in self.slots:
            if not slot.settled:
                self.settle(slot)

    def settle(self, slot):
        """One step of a slot towards what is wanted of it."""
        if slot.wanted is not None and slot.started == slot.wanted and not slot.stopping:
            slot.settled = True
            return
        info = supervisor().getProcessInfo(slot.process)
        state = info["statename"]
        if state in RUNNING_STATES:
            if slot.wanted is not None and slot.started is None and not slot.stopping and self.adopt(slot):
                return
            if slot.wanted is None and not self.may_stop(slot):
                return
            if not slot.stopping:
                slot.stopping = True
                at_once = never_served(slot.name)
                self.call(supervisor().stopProcess, slot, NOT_RUNNING)
                if at_once and info["pid"]:
                    # uWSGI loses a TERM that comes before its hook is in place, and would wait out `stopwaitsecs`.
                    os.killpg(info["pid"], signal.SIGKILL)
            return
        if state == "STOPPING":
            # The master would notice only at its next full second, and the next release waits for this slot. A request
            # that takes longer than all patience is cut off, or no further release could come.
            if info["pid"] and (nothing_left(slot.name) or slot.leaving(self.patience + LAST_WORDS)):
                os.killpg(info["pid"], signal.SIGKILL)
            return
        slot.stopping = False
        slot.started = None
        slot.leaving_since = None
        if slot.wanted is not None:
            self.call(supervisor().startProcess, slot, ALREADY_STARTED)
            slot.started = slot.wanted
        slot.settled = True

    def adopt(self, slot):
        """Whether Supervisor started the wanted generation itself: at its start, or before this program's restart."""
        order = read_json(os.path.join(RUN, "slots", slot.name, "order.json"))
        if order and order.get("generation") == slot.wanted:
            slot.started = slot.wanted
            slot.leaving_since = None
            return True
        return time.monotonic() < self.adopt_until

    def may_stop(self, slot):
        return all_parked(slot.name) or slot.leaving(self.patience)

    def call(self, method, slot, harmless):
        try:
            method(slot.process, False)
            log("slot %s: %s (generation %s)" % (slot.name, "stop" if slot.stopping else "start", slot.wanted))
        except xmlrpc.client.Fault as fault:
            if fault.faultCode != harmless:
                raise


def main():
    keeper = Keeper()
    own = signature(__file__)
    while True:
        if signature(__file__) != own:
            # A newer lightship brought a newer keeper: become it. What runs already is adopted.
            os.execv(sys.executable, [sys.executable, "-I", "-S", __file__])  # noqa: S606 - no shell is wanted
        try:
            keeper.look()
        except Exception as error:
            log("%s: %s" % (type(error).__name__, error))
            time.sleep(0.2)
        time.sleep(INTERVAL)


if __name__ == "__main__":
    main()
