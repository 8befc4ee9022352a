"""Sees to it that the roles' processes run what ``instances/<n>.json`` names, and says what it sees of them.

Runs inside the container as root, under the same Supervisor as the roles. They are stopped gracefully (Supervisor sends
the role's signal, and kills only after its patience) and started anew when the file names another generation; a role
without a release is stopped. Nothing is started in a container that only tries an image.

What Supervisor says of them is written to ``run/<n>/roles/status.json`` for the host, which trusts it no further than
what it can see for itself.
"""

import json
import os
import pwd
import sys
import time
import xmlrpc.client

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from keeper import ALREADY_STARTED, NOT_RUNNING, read_json, signature, supervisor

CODE = os.environ.get("LIGHTSHIP_CODE", "/srv/lightship/code")
RUN = os.environ.get("LIGHTSHIP_RUN", "/srv/lightship/run")
INSTANCE = os.environ.get("LIGHTSHIP_INSTANCE", "1")
FOLDER = os.path.join(RUN, "roles")
# A container that tries an image boots this release, and no role may run there beside those that serve.
ONLY_TRIES = bool(os.environ.get("LIGHTSHIP_RELEASE"))
# How often the file is looked at; how often Supervisor is asked while something is to happen, and while all is well.
INTERVAL, BUSY, QUIET = 0.02, 0.05, 1.0
# Supervisor has given up: it is asked to try again, at this distance.
RETRY_SECONDS = 5.0
# How long a process that Supervisor has started by itself may take to say which release it runs.
SILENT_SECONDS = 5.0
UP, ENDED = ("STARTING", "RUNNING"), ("BACKOFF", "EXITED", "FATAL")
# A group of an image's own may be large; the host reads no more than this.
MOST_PROCESSES = 100


def log(message):
    sys.stdout.write("lightship roles: %s\n" % message)
    sys.stdout.flush()


def write_json(path, value):
    temporary = path + ".new"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file)
    os.rename(temporary, path)


def how_it_ended(info):
    """In words. Of a process that ended at once Supervisor tells no exit status, and 0 in its place."""
    if info.get("spawnerr"):
        quickly = info["spawnerr"].startswith("Exited too quickly")
        return "it ended soon after its start" if quickly else info["spawnerr"]
    status = info.get("exitstatus", 0)
    return "exit status %d" % status if status >= 0 else "it was killed"


class Process:
    """One process of a role: the generation it was started with, and how often it has ended since."""

    def __init__(self, role, index, info):
        self.role = role
        self.index = index
        self.name = "%s:%s" % (info["group"], info["name"])
        self.info = info
        self.path = os.path.join(FOLDER, role.name, "%d.json" % index)
        # None: not known. After a restart of this program alone, what runs says itself what it is.
        self.started = None
        self.stopping = False
        self.adopted = False
        self.pid = 0
        self.seen_at = 0.0
        self.ends = 0
        self.ended = ""
        self.counted = None
        self.retry_at = 0.0

    def announced(self):
        """The generation of what runs, as far as that very process has said it."""
        found = read_json(self.path)
        if isinstance(found, dict) and found.get("pid") == self.info["pid"]:
            return found.get("generation")
        return None

    def begin_generation(self):
        self.ends, self.ended, self.pid, self.retry_at = 0, "", 0, 0.0

    def settle(self, wanted):  # noqa: PLR0911 - one for each state
        """One step towards what is wanted; whether there is nothing left to do."""
        state = self.info["statename"]
        if not self.adopted:
            self.adopt(wanted)
        if wanted is None:
            return self.rest(state)
        if state in UP:
            return self.is_up(wanted)
        if state == "STOPPING":
            return False
        if state in ENDED and self.started == wanted and not self.stopping:
            return self.has_ended(state)
        if state == "BACKOFF":
            self.stop()
            return False
        if state == "STOPPED" and self.started == wanted and not self.stopping:
            return True  # by hand, and on purpose
        self.start(wanted)
        return False

    def adopt(self, wanted):
        """After a restart of this program: what it had started before. A container that has just started has nothing.

        The announcement of a process that has stopped since says what it was: one of the wanted generation was stopped
        by somebody's hand.
        """
        self.adopted = True
        found = read_json(self.path)
        if self.info["start"] and isinstance(found, dict) and found.get("generation") == wanted:
            self.started = wanted

    def rest(self, state):
        self.started = None
        if state in UP or state == "BACKOFF":
            self.stop()
            return False
        self.stopping = state == "STOPPING"
        return not self.stopping

    def is_up(self, wanted):
        pid, now = self.info["pid"], time.monotonic()
        if pid != self.pid:
            if self.pid and self.started == wanted:
                self.count("it ended and was started again")
            self.pid, self.seen_at = pid, now
        if self.stopping:
            return False
        known = self.announced()
        if self.role.program and self.started == wanted and known is None:
            # An image's own program does not say what it is: this says it, of a process that it has started.
            self.announce(wanted)
            known = wanted
        if known == wanted:
            self.started = wanted
            return self.info["statename"] == "RUNNING"
        silent = known is None and now - self.seen_at < SILENT_SECONDS
        if silent and (self.started == wanted or not self.role.program):
            return False
        self.stop()
        return False

    def has_ended(self, state):
        key = (self.info["start"], self.info["stop"])
        if self.counted != key:
            self.counted = key
            self.count(how_it_ended(self.info))
            self.retry_at = time.monotonic() + RETRY_SECONDS
        self.pid = 0
        if state != "BACKOFF" and time.monotonic() > self.retry_at:
            self.retry_at = time.monotonic() + RETRY_SECONDS
            self.call("startProcess", ALREADY_STARTED)
        return False

    def count(self, words):
        self.ends += 1
        self.ended = words

    def stop(self):
        """Have Supervisor send the signal; it kills by itself what has not ended when the patience is over."""
        self.stopping = self.call("stopProcess", NOT_RUNNING)

    def start(self, wanted):
        if self.started != wanted:
            self.begin_generation()
        self.stopping = False
        self.started = wanted
        self.call("startProcess", ALREADY_STARTED)

    def announce(self, generation):
        write_json(
            self.path,
            {
                "pid": self.info["pid"],
                "release": self.role.release,
                "generation": generation,
                "time": time.time(),
            },
        )

    def call(self, method, harmless):
        try:
            getattr(supervisor(), method)(self.name, False)
            log("%s: %s (generation %s)" % (self.name, method[: -len("Process")], self.role.wanted))
        except xmlrpc.client.Fault as fault:
            if fault.faultCode != harmless:
                self.count(fault.faultString)
                self.retry_at = time.monotonic() + RETRY_SECONDS
                return False
        return True

    def told(self):
        return {
            "name": self.info["name"],
            "state": self.info["statename"],
            "pid": self.info["pid"],
            "ends": self.ends,
            "ended": self.ended[:500],
        }


class Role:
    """One role as the keeper knows it."""

    def __init__(self, name):
        self.name = name
        self.program = ""
        self.group = ""
        self.release = None
        self.wanted = None
        self.processes = {}

    def want(self, order):
        self.program = order.get("program") or ""
        self.group = self.program or "role-%s" % self.name
        running = bool(order.get("release")) and not ONLY_TRIES
        self.release = order.get("release") if running else None
        wanted = order.get("generation") if running else None
        if wanted != self.wanted:
            for process in self.processes.values():
                process.begin_generation()
        self.wanted = wanted

    def settle(self, infos):
        """One step of each process; whether all have settled."""
        mine = sorted((info for info in infos if info["group"] == self.group), key=lambda info: info["name"])
        for index, info in enumerate(mine[:MOST_PROCESSES]):
            if info["name"] not in self.processes:
                self.processes[info["name"]] = Process(self, index, info)
            self.processes[info["name"]].info = info
        # Each of them, whatever the others say.
        return False not in [process.settle(self.wanted) for process in self.processes.values()]

    def told(self):
        found = sorted(self.processes.values(), key=lambda process: process.index)
        return {"wanted": self.wanted, "processes": [process.told() for process in found]}


def problems_of(roles, configs):
    """What stands in the way of roles that are programs of the image."""
    found = []
    for role in roles:
        mine = [config for config in configs if config["group"] == role.group]
        if not mine:
            found.append("the image's supervisord.conf has no program or group %s (role %s)" % (role.group, role.name))
        elif role.program and any(config.get("autostart") is not False for config in mine):
            found.append(
                "the program %s starts by itself: set autostart=false in the image's supervisord.conf, since lightship "
                "starts it (role %s)" % (role.group, role.name)
            )
    return found


class Keeper:
    """Brings what runs to what is wanted, one look at a time."""

    def __init__(self):
        self.path = os.path.join(CODE, "instances", INSTANCE + ".json")
        self.seen = ()
        self.roles = {}
        self.problems = None
        self.settled = False
        self.next_look = 0.0
        self.said = None

    def look(self):
        now = signature(self.path)
        if now != self.seen:
            settings = read_json(self.path)
            if settings is None:
                return
            self.want(settings.get("roles") or {})
            self.seen, self.settled = now, False
        elif time.monotonic() < self.next_look:
            return
        if self.problems is None:
            self.problems = problems_of(self.roles.values(), supervisor().getAllConfigInfo())
        infos = supervisor().getAllProcessInfo()
        self.settled = False not in [role.settle(infos) for role in self.roles.values()]
        self.say()
        self.next_look = time.monotonic() + (QUIET if self.settled else BUSY)

    def want(self, orders):
        for name in sorted(orders):
            if name not in self.roles:
                self.roles[name] = Role(name)
                self.problems = None
                os.makedirs(os.path.join(FOLDER, name), exist_ok=True)
            self.roles[name].want(orders[name])

    def say(self):
        told = {
            "problems": self.problems,
            "roles": {name: role.told() for name, role in self.roles.items()},
        }
        if told != self.said:
            write_json(os.path.join(FOLDER, "status.json"), {**told, "pid": os.getpid(), "time": time.time()})
            self.said = told


def prepare_folders():
    """This program's own folder, and the one in which a candidate says how it went, which is the workers'."""
    os.makedirs(FOLDER, exist_ok=True)
    with_candidate = os.path.join(RUN, "slots", "candidate")
    os.makedirs(with_candidate, exist_ok=True)
    user = pwd.getpwnam(os.environ.get("LIGHTSHIP_USER", "app"))
    os.chown(with_candidate, user.pw_uid, user.pw_gid, follow_symlinks=False)


def own_files():
    """This program's files: a newer lightship may bring newer ones."""
    folder = os.path.dirname(os.path.abspath(__file__))
    return [signature(os.path.join(folder, name)) for name in ("roles.py", "keeper.py")]


def main():
    prepare_folders()
    keeper, own = Keeper(), own_files()
    while True:
        if own_files() != own:
            os.execv(sys.executable, [sys.executable, "-I", "-S", os.path.abspath(__file__)])  # noqa: S606 - no shell
        try:
            keeper.look()
        except Exception as error:
            log("%s: %s" % (type(error).__name__, error))
            time.sleep(0.2)
        time.sleep(INTERVAL)


if __name__ == "__main__":
    main()
