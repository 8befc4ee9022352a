"""Kills at every point: random operations on a real service, cut off at random places, and what must hold all the same.

Each *run* has a seed of its own, from which everything in it is drawn: what is done, what is killed or made to fail,
and where or when. ``make torture N=1000 SEED=1`` does the runs with the seeds 1 to 1000 and prints a line for each;
``make torture N=1 SEED=77`` does the one with seed 77 again.

What must hold in every run:

- at every instant ``current`` names one whole release, the old one or the new one;
- every response comes whole from one of these two;
- no request fails, but for the gap when one container takes the place of another, and not even then behind a proxy;
- without any further command, the service serves one of the two again, and only that one;
- what the command said is true;
- the next ``lightship deploy`` needs no help, ends with the wanted release, and leaves nothing behind.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib.error
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lightship.failpoints import OWN
from lightship_agent import container as agent_container
from lightship_agent import facts
from lightship_agent.git import Mirror
from lightship_agent.instance import Instances
from lightship_agent.journal import Journal
from lightship_agent.paths import ServicePaths
from lightship_agent.release import load_all, verify_tree
from lightship_agent.state import load_state
from support.engine import Engine, ensure
from support.load import Load, LoadReport
from support.site import Said, Site, version_file

__all__ = ["OPERATIONS", "ROLES", "Draw", "Torture", "Violation", "draw"]

# The version in two modules and a file that is read for every answer: half a release would show in every response.
APPLICATION = """
import pathlib

from service import other, version


def application(environ, start_response):
    status = "200 OK"
    health = environ["PATH_INFO"] == "/health/"
    if health and version.SICK and environ.get("HTTP_USER_AGENT") != "lightship-self-test":
        status = "503 Service Unavailable"
    start_response(status, [("Content-Type", "text/plain")])
    return [" ".join((version.VERSION, other.VERSION, pathlib.Path("data").read_text())).encode()]
"""
WHOLE = r"^(\S+ \S+ \S+)$"

#: Every operation. ``refused`` does not import, ``pushed`` is sent by a controller that has none of it yet, ``sick``
#: fails its health path once it is live, ``image`` builds one, ``checked`` has a check and migrations, ``shared`` can
#: use no earlier tree, ``pulled`` takes a ready-made image, ``first`` begins with an empty server. What takes longest
#: comes last.
OPERATIONS = (
    "code", "rollback", "refused", "pushed", "shared", "checked", "sick", "container", "full", "image", "pulled",
    "first",
)  # fmt: skip
#: One container takes the place of another: without a proxy there is a gap, in which requests fail.
GAP = frozenset({"container", "full", "image", "pulled", "first"})
BAD = frozenset({"refused", "sick"})
IN_CONTAINER = ("docker kill", "supervisord", "keeper", "master", "worker")
#: Points that are only where there are roles.
ROLES = ("roles.move", "roles.moved", "roles.proven", "roles.rest", "roles.rested")
#: Points of the controller's own.
CONTROLLERS = ("ask.", "answered.", "source.")
#: Points where the agent's work is done by a child of it.
IN_CHILD = frozenset({"switch.begin", "instance.stop", "instance.stopped", "current.flip", "current.flipped"})


class Violation(AssertionError):  # noqa: N818 - it is what was found, not an error of the runner
    """Something that must hold did not."""


@dataclass(frozen=True)
class Draw:
    """One run: an operation, and what goes wrong in it.

    ``points`` go to LIGHTSHIP_FAILPOINTS of the operation, ``second`` to those of the one after it, which finds what
    the first left. ``victim`` is killed ``delay`` seconds after the operation's start.
    """

    operation: str
    points: str = ""
    second: str = ""
    victim: str = ""
    delay: float = 0.0
    seed: int = 0

    def __str__(self) -> str:
        words = [f"seed {self.seed}:", self.operation]
        words += [self.points] if self.points else []
        words += [f"SIGKILL of {self.victim} after {self.delay:.3f} s"] if self.victim else []
        words += [f"then {self.second}"] if self.second else []
        return " ".join(words)

    @property
    def kills_only(self) -> bool:
        """Nothing is made to fail: what is deployed has no blame."""
        return "error" not in self.points + self.second and self.victim not in IN_CONTAINER

    @property
    def may_fail(self) -> bool:
        """Whether requests may fail meanwhile."""
        return self.operation in GAP or self.victim in IN_CONTAINER


def draw(seed: int, points: Mapping[str, Sequence[str]], operations: Sequence[str] = OPERATIONS) -> Draw:
    """What this seed means; ``points`` are the fail points that each operation has."""
    dice = random.Random(f"torture {seed}")
    # What takes long is drawn less often, so that more runs fit in an hour.
    weights = [6 if name in ("code", "rollback", "refused") else 1 for name in operations]
    operation = dice.choices(list(operations), weights)[0]
    seconds = 6.0 if operation in GAP else 0.7
    kind = dice.choices(["point", "second", "agent", "controller", "container"], [10, 3, 3, 2, 2])[0]
    if kind in ("agent", "controller"):
        return Draw(operation, victim=kind, delay=dice.uniform(0.0, seconds), seed=seed)
    if kind == "container" and operation != "first":
        return Draw(operation, victim=dice.choice(IN_CONTAINER), delay=dice.uniform(0.0, seconds), seed=seed)
    first = _failing(dice, points[operation])
    second = _failing(dice, [*points["code"], "recover.begin", "recover.end"]) if kind == "second" else ""
    return Draw(operation, first, second, seed=seed)


def _failing(dice: random.Random, points: Sequence[str]) -> str:
    point = dice.choice(list(points))
    if point.startswith(CONTROLLERS):
        return f"{point}={dice.choice(['kill', 'kill', 'error'])}"
    # An agent that is killed there again and again keeps the controller trying for a minute.
    actions = ["kill*1"] * 11 + ["kill"] + ["error"] * 4 + ["error*1"] * 4
    actions += ["kill-child"] * 4 if point in IN_CHILD else []
    action = dice.choice(actions)
    later = dice.choice(["", "", "@2"]) if point.startswith(("journal.", "instance.", "state.", "order.")) else ""
    return f"{point}={action}{later}"


@dataclass
class Torture:
    """A service under torture."""

    site: Site
    gapless: bool = False
    points: dict[str, list[str]] = field(default_factory=dict)
    killed: set[str] = field(default_factory=set)
    _count: int = 0
    _marks: dict[str, str] = field(default_factory=dict)
    _load: Load | None = None
    _seen: int = 0
    _went_back: bool = False

    # --- setting up

    @classmethod
    def begin(cls, engine: Engine, folder: Path, *, gapless: bool = False, **options: Any) -> Torture:
        """A service with two releases, deployed; ``gapless`` for one whose settings say that it is behind a proxy."""
        site = Site(engine, folder, **options)
        site.environment["XDG_CACHE_HOME"] = str(folder / "cache")
        made = cls(site, gapless)
        site.configure(keep=2, health={"path": "/health/", "host": "localhost"}, soak=0.1)
        made._code()
        site.deploy()
        made._code()
        site.deploy()
        return made

    @property
    def paths(self) -> ServicePaths:
        """The service's files."""
        return ServicePaths.at(str(self.site.root), self.site.name)

    @contextlib.contextmanager
    def load(self) -> Iterator[None]:
        """100 requests a second, each on a connection of its own, for as long as the block lasts."""
        with self.site.load(seconds=3600, capture=WHOLE, timeout=30) as load:
            self._load, self._seen = load, 0
            yield
            self._load = None

    # --- operations

    def _code(self, *, sick: bool = False, broken: bool = False, files: Mapping[str, str] | None = None) -> str:
        """Push another version."""
        self._count += 1
        version = f"v{self._count}"
        more = f"SICK = {sick}\n" + ("import nonsense\n" if broken else "")
        files = {
            "service/wsgi.py": APPLICATION,
            "service/other.py": f'VERSION = "{version}"\n',
            "service/version.py": version_file(version, more=more),
            "data": version,
            f"service/new{self._count}.py": "",
            **(files or {}),
        }
        self.site.repository.write(files)
        commit = self.site.repository.commit(f"Version {version}")
        self._marks[commit] = f"{version} {version} {version}"
        return commit

    def _prepare(self, operation: str) -> tuple[list[str], str]:  # noqa: PLR0911 (one for each)
        """Make the operation wanted; its command, and the commit that it is to end with."""
        deploy = ["deploy", "--json"]
        self.site.configure(checks=[], migrate=None, source="push" if operation == "pushed" else "pull")
        match operation:
            case "pushed":
                self._unused_mirror()
                return deploy, self._code()
            case "rollback":
                target = self._previous()
                if target is None:  # after a first deploy
                    self._code()
                    self.site.deploy()
                    target = self._previous() or ""
                return ["rollback", "--json", "--to", target], target
            case "container":
                self.site.configure(env={"CHANGE": str(self._count)}, image=self._built)
                self._count += 1
                return deploy, self.site.repository.head
            case "full":
                self.site.configure(env={"CHANGE": str(self._count)}, image=self._built)
                return deploy, self._code()
            case "image":
                # A secret that the Dockerfile does not ask for is handed to the build all the same.
                self.site.configure(image={**self._built, "secrets": {"TOKEN": {"env": "PATH"}}})
                text = f"# nothing but uWSGI, {self._count}\n"
                return deploy, self._code(files={"requirements.txt": text})
            case "pulled":
                # A registry that is not there: the image is on this machine already, as after `docker load`.
                name = f"127.0.0.1:9/{self.site.name}:{self._count}"
                running = self.site.engine.docker("inspect", "--format", "{{.Image}}", self.site.container())
                self.site.engine.docker("tag", running, name)
                self.site.configure(image=name)
                return deploy, self._code()
            case "checked":
                self.site.configure(
                    checks=[{"name": "true", "command": ["true"]}], migrate={"command": ["true"], "files": ["data"]}
                )
                return deploy, self._code()
            case "shared":
                self.site.configure(shared=[f"media{self._count}"])
                return deploy, self._code()
            case "first":
                self.empty()
                self.site.configure(image=self._built)
                return deploy, self._code()
        return deploy, self._code(sick=operation == "sick", broken=operation == "refused")

    def _unused_mirror(self) -> None:
        """Have the controller keep nothing but a mirror of another repository, which nobody has used for long."""
        folder = self.site.folder / "cache" / "lightship" / "mirrors"
        shutil.rmtree(folder, ignore_errors=True)
        mirror, lock = folder / f"{'0' * 32}.git", folder / f"{'0' * 32}.lock"
        mirror.mkdir(mode=0o700, parents=True)
        (mirror / "HEAD").touch()
        lock.touch()
        os.utime(lock, (1, 1))

    def _previous(self) -> str | None:
        return load_state(self.paths).previous

    @property
    def _built(self) -> dict[str, Any]:
        return {"dockerfile": "Dockerfile", "args": {"BASE_IMAGE": self.site.engine.base_image}}

    def empty(self) -> None:
        """The server as it was before the first deploy."""
        for name in self.site.containers():
            self.site.engine.docker("rm", "--force", "--volumes", name)
        shown = self.site.engine.docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}")
        for image in [name for name in shown.splitlines() if f"{self.site.name}:" in name]:
            self.site.engine.docker("image", "rm", "--force", image, check=False)
        shutil.rmtree(self.site.home)

    def record(self, operations: Sequence[str] = OPERATIONS) -> dict[str, list[str]]:
        """Do each operation undisturbed, and note which fail points it passes."""
        for operation in operations:
            self.points[operation] = self._record(operation)
        if "shared" in operations:  # only now there are more trees than are kept
            self.points["shared"] = self._record("shared")
        return self.points

    def _record(self, operation: str) -> list[str]:
        command, _ = self._prepare(operation)
        log = self.site.folder / "points"
        log.unlink(missing_ok=True)
        environment = {"LIGHTSHIP_TESTING": "1", "LIGHTSHIP_FAILPOINTS_LOG": str(log)}
        said = self.site.run(*command, environment=environment)
        expected = {"refused": 3, "sick": 4}.get(operation, 0)
        _must(said.status == expected, f"{operation} ended with {said.status} and not {expected}", said)
        if operation in BAD:
            self._code()
            self.site.deploy()
        ops = ["hello", "prepare", *([] if operation == "refused" else ["activate", "verify"])]
        ops += [] if operation in ("rollback",) else ["inspect"]
        ops += [] if operation in BAD else ["commit", "bye"]
        ops += ["image"] if operation in GAP else []
        ops += ["build"] if operation in ("image", "first") else []
        ops += ["pull"] if operation == "pulled" else []
        ops += ["receive"] if operation == "pushed" else []
        mine = [f"{moment}.{op}" for op in ops for moment in ("ask", "answered")]
        mine += OWN if operation == "pushed" else []
        # There is no registry here: it is asked, and has nothing to give.
        mine = [point for point in mine if point != "answered.pull"]
        return [*dict.fromkeys(log.read_text().split()), *mine]

    # --- runs

    def carry_out(self, draws: Sequence[Draw]) -> None:
        """Do them one after the other, and print how each ended."""
        for number, one in enumerate(draws):
            print(one, "->", self.run(replace(one, seed=one.seed or number)))

    def run(self, one: Draw) -> str:
        """Do it; how it ended, in a few words. Raises ``Violation``."""
        command, wanted = self._prepare(one.operation)  # which may have to deploy something to go back from
        before = None if one.operation == "first" else self.site.current
        allowed = {wanted, before} - {None} if one.operation not in BAD else {before, wanted}
        if one.operation == "refused":
            allowed = {before}
        container = "" if before is None else self.site.container()
        self._take()
        with contextlib.ExitStack() as stack:
            watching = one.operation != "first"
            observer = stack.enter_context(self.site.observer(seconds=600)) if watching else None
            said = self._disturbed(one, command)
            self._serves(one, allowed)
            self._truth(one, said, before, wanted)
            self._note_kills(one.points, said)
            told = [f"exit {said.status}"]
            if one.second:
                said = self._again(one, command)
                self._note_kills(one.second, said)
                told.append(f"then {said.status}")
                self._serves(one, allowed)
            final = self._heal(one, command, wanted)
            # Back to a release of another image is back to another container, with the gap that this has; and whatever
            # is deployed after it needs the container that is configured again.
            gap = self.site.container() != container and (one.operation == "rollback" or self._went_back)
            self._went_back = one.operation == "rollback" and (gap or self._went_back)
            may_fail = (one.may_fail or gap) and not (self.gapless and one.victim not in IN_CONTAINER)
            self._answers(one, {*allowed, final}, may_fail=may_fail)
            if observer is not None:
                self._watched(observer.stop(), {*allowed, final})
        return ", ".join([*told, f"now {final[:7]}"])

    def _disturbed(self, one: Draw, command: Sequence[str]) -> Said:
        """Run the command, and do to it what was drawn."""
        process = self.site.start(*command, environment=self._environment(one.points))
        killer = threading.Thread(target=self._kill_later, args=(one, process.pid, process), daemon=True)
        if one.victim:
            killer.start()
        begun = time.monotonic()
        try:
            out, error = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            process.kill()
            raise Violation(f"{one}: the command hangs") from None
        if one.victim:
            killer.join()
        return Said(process.returncode, out, error, time.monotonic() - begun)

    def _environment(self, points: str) -> dict[str, str]:
        log = self.site.folder / "hit"
        return {"LIGHTSHIP_TESTING": "1", "LIGHTSHIP_FAILPOINTS": points, "LIGHTSHIP_FAILPOINTS_LOG": str(log)}

    def _note_kills(self, points: str, said: Said) -> None:
        """Keep at which points a process was really killed."""
        log = self.site.folder / "hit"
        passed = set(log.read_text().split()) if log.exists() else set()
        log.unlink(missing_ok=True)
        for word in points.split(","):
            point, _, action = word.partition("=")
            if action.startswith("kill") and (point in passed or said.status == -signal.SIGKILL):
                self.killed.add(point)

    def _kill_later(self, one: Draw, controller: int, process: subprocess.Popen[str]) -> None:
        time.sleep(one.delay)
        container = self.site.container() if one.victim in IN_CONTAINER else ""
        if one.victim == "docker kill":
            self.site.engine.docker("kill", container, check=False)
            return
        while process.poll() is None:
            found = [controller] if one.victim == "controller" else []
            if one.victim == "agent":
                found = children(controller)
            elif container:
                found = inside(self.site.engine, container, one.victim)
            if found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(random.Random(one.seed).choice(found), signal.SIGKILL)
                return
            time.sleep(0.005)

    def _again(self, one: Draw, command: Sequence[str]) -> Said:
        """The next command, itself cut off while it deals with what the first one left."""
        return self.site.run(*command, environment=self._environment(one.second), timeout=120)

    # --- what must hold

    def _take(self) -> LoadReport:
        if self._load is None:
            return LoadReport(())
        report, self._seen = self._load.since(self._seen)
        return report

    def _serves(self, one: Draw, allowed: set[str | None]) -> None:
        """Without any further command one whole release serves."""
        if one.operation == "first" and self.site.current is None:
            return
        if one.victim == "docker kill":
            return  # Docker starts nothing again that somebody ended by its own command
        deadline = time.monotonic() + (60 if one.may_fail else 10)
        problem = "nothing was asked"
        while time.monotonic() < deadline:
            problem = self._serving(allowed)
            if not problem or self._first_undone(one):
                return
            time.sleep(0.1)
        raise Violation(f"{one}: left alone, the service does not serve: {problem}")

    def _first_undone(self, one: Draw) -> bool:
        """A first deploy has nothing to go back to, and may end with nothing."""
        return one.operation == "first" and not any(
            self.site.engine.docker("inspect", "--format", "{{.State.Running}}", name, check=False) == "true"
            for name in self.site.containers()
        )

    def _serving(self, allowed: set[str | None]) -> str:
        current = self.site.current
        if current not in allowed:
            return f"current is {current}"
        for _ in range(6):
            try:
                status, body, release = self.site.get("/", timeout=5)
            except (OSError, urllib.error.URLError) as error:
                return f"no answer: {error}"
            whole = (200, release, self._marks.get(release)) == (status, release, body)
            # Behind a proxy it is the proxy that says who serves: between it and the rename there is a moment.
            if not whole or (release != current and not (self.gapless and release in allowed)):
                return f"current is {current}, the answer {status} {body!r} of {release}"
        return ""

    def _truth(self, one: Draw, said: Said, before: str | None, wanted: str) -> None:
        """Its exit status is what happened."""
        if said.status == -signal.SIGKILL:
            return
        _must(said.status in (0, 3, 4, 5), f"{one}: exit status {said.status}", said)
        _must(said.status != 0 or self.site.current == wanted, f"{one}: it said done, and {wanted} is not live", said)
        restored = self.site.current == before
        settled = one.victim not in IN_CONTAINER
        _must(said.status not in (3, 4) or restored or not settled, f"{one}: it said undone, and it is not", said)
        _must(bool(said.stdout.strip()), f"{one}: it said nothing", said)

    def _answers(self, one: Draw, allowed: set[str | None], *, may_fail: bool) -> None:
        """What answered all the while. Requests that failed must have had a reason to."""
        if self._load is not None:
            # What was sent in this run is judged by this run's rules.
            _must(self._load.settle(), f"{one}: requests were not answered for a minute")
        report = self._take()
        if self._load is None or one.operation == "first":
            return
        pairs = {(record.release, record.mark) for record in report.records if record.ok}
        whole = {(commit, self._marks[commit]) for commit in allowed if commit}
        _must(pairs <= whole, f"{one}: answers of {pairs - whole} beside {whole}")
        if not may_fail:
            failed = [(record.error or record.status, round(record.seconds, 3)) for record in report.failed]
            _must(
                not failed, f"{one}: {len(failed)} of {report.count} requests failed: {failed[:5]}\n{report.timeline()}"
            )
        wrong = [record.status for record in report.failed if record.status]
        _must(not wrong, f"{one}: answered {wrong[:5]}")

    def _heal(self, one: Draw, command: Sequence[str], wanted: str) -> str:
        """The next deploy needs no help; the release that is live after it."""
        if one.operation in BAD or (not one.kills_only and self._is_failed(wanted)):
            # This release has failed, and is known for it: only another one can be wanted.
            command, wanted = ["deploy", "--json"], self._code()
        # An agent whose controller was killed may still be finishing its work.
        waits = one.victim == "controller" or any(word in one.points + one.second for word in CONTROLLERS)
        said = self.site.run(*command, *(["--wait", "60"] if waits else []), timeout=180)
        if said.status == 3 and said.error.get("code") == "no-such-release":
            _must(command[0] == "rollback" and not one.kills_only, f"{one}: a release is gone", said)
            said, wanted = self.site.run("deploy", "--json"), self._code()
        _must(said.status == 0, f"{one}: the next command ended with {said.status}", said)
        self._settled(one, wanted)
        return wanted

    def _is_failed(self, commit: str) -> bool:
        return any(one.commit == commit and one.state == "failed" for one in load_all(self.paths))

    def _settled(self, one: Draw, wanted: str) -> None:
        """Exactly the wanted release, and nothing left behind."""
        _must(not (problem := self._serving({wanted})), f"{one}: after the next deploy: {problem}")
        shown = self._status(one)
        serving = {worker["release"] for slot in shown["slots"].values() for worker in slot["workers"]
                   if worker["state"] == "serving"}  # fmt: skip
        _must(serving == {wanted}, f"{one}: status says that {serving} serve")
        _must(shown["current"] == shown["stable"] == wanted, f"{one}: status: {shown['current']} {shown['stable']}")
        for name, role in shown["roles"].items():
            runs = [process["release"] for process in role["processes"]]
            _must(runs == [wanted] * role["wanted"], f"{one}: the role {name} runs {runs}: {role['problem']}")
        _must(bool(shown["container"]["running"]), f"{one}: status says that the container does not run")
        _must(not (found := self.leftovers()), f"{one}: left behind: {found}")
        for release in load_all(self.paths):
            wrong = verify_tree(self.paths, Mirror(self.paths), release.commit)
            _must(not wrong, f"{one}: release {release.commit} is not whole: {wrong[:3]}")

    def _status(self, one: Draw) -> dict[str, Any]:
        """The facts that `lightship status` shows; by the command itself only now and then, as that takes a while."""
        if one.seed % 5 == 0:
            found: dict[str, Any] = self.site.run("status", "--json", expect=0).result["servers"][0]["facts"]
            return found
        instances = Instances(self.paths, agent_container.Engine(), self.site.name, lambda: None)
        return facts.gather(self.paths, instances, Journal(self.paths))

    def leftovers(self) -> list[str]:
        """What no settled service has."""
        home, container = self.site.home, self.site.container()
        number = container.rpartition("-")[2]
        found = [name for name in self.site.containers() if name != container]
        for folder in (home, home / "code", home / "code" / "releases", home / "code" / "instances", home / "state"):
            found += [str(path) for path in folder.iterdir() if re.match(r"\.|build-", path.name)]
        own = (f"{number}.json", f"{number}.conf")
        found += [str(path) for path in (home / "code" / "instances").iterdir() if path.name not in own]
        found += [str(path) for path in (home / "run").iterdir() if path.name != number]
        found += [str(path) for path in (home / "code").glob("opened-*")]
        found += [str(path) for path in (home / "state").glob("env.*") if path.name != f"env.{number}"]
        found += [str(path) for path in (home / "repo.git").rglob("*.lock")]
        trees = {path.name for path in (home / "code" / "releases").iterdir()}
        known = {path.stem for path in (home / "state" / "releases").iterdir()}
        found += [f"release {name} without its other half" for name in trees ^ known]
        found += ["a rollout in the journal"] if Journal(self.paths).pending() else []
        found += [] if lock_is_free(home / "state" / "lock") else ["the lock"]
        return found

    def _watched(self, seen: Any, allowed: set[str | None]) -> None:
        _must(seen.missing_count == 0, f"current was missing {seen.missing_count} times")
        _must(not seen.incomplete, f"current named half a release: {seen.incomplete[:3]}")
        _must(set(seen.distinct) <= allowed, f"current named {set(seen.distinct) - allowed}")

    def evidence(self) -> str:
        """What a person needs to understand a violation: the container's life, its last words, the journal."""
        engine, name = self.site.engine, self.site.container()
        state = "{{.State.Status}} since {{.State.StartedAt}}, restarts {{.RestartCount}}"
        words = subprocess.run(
            ["docker", "logs", "--timestamps", "--tail", "80", name], capture_output=True, text=True, check=False
        )
        journal = self.site.home / "state" / "journal"
        lines = journal.read_text().splitlines()[-30:] if journal.is_file() else []
        life = f"{name}: {engine.docker('inspect', '--format', state, name, check=False)}, now {time.time():.3f}"
        return "\n".join([life, words.stdout + words.stderr, *lines])


def _must(holds: bool, what: str, said: Said | None = None) -> None:
    if not holds:
        more = f"\n{said.stdout[-3000:]}\n{said.stderr[-3000:]}" if said else ""
        raise Violation(f"{what}{more}")


def lock_is_free(path: Path) -> bool:
    """Whether nobody holds the service's lock."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _processes() -> Iterator[tuple[int, int]]:
    """Every process with its parent."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if fields[0] != "Z":
                    yield int(entry.name), int(fields[1])


def children(process: int) -> list[int]:
    """The agents that a controller has started."""
    return [pid for pid, parent in _processes() if parent == process and b"agent" in _command(pid)]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def inside(engine: Engine, container: str, what: str) -> list[int]:
    """The processes of a container that are of this kind, by their numbers on this machine."""
    first = int(engine.docker("inspect", "--format", "{{.State.Pid}}", container, check=False) or 0)
    if not first:
        return []
    family, added = {first}, True
    processes = list(_processes())
    while added:
        more = {pid for pid, parent in processes if parent in family} - family
        family, added = family | more, bool(more)
    parents = dict(processes)
    uwsgi = {pid for pid in family if b"uwsgi" in _command(pid)}
    kinds: dict[str, Callable[[int], bool]] = {
        "supervisord": lambda pid: pid == first,
        "keeper": lambda pid: b"keeper.py" in _command(pid),
        "master": lambda pid: pid in uwsgi and parents.get(pid) not in uwsgi,
        "worker": lambda pid: pid in uwsgi and parents.get(pid) in uwsgi,
    }
    return sorted(pid for pid in family if kinds[what](pid))


# --- by hand --------------------------------------------------------------------------------------------------------


def every(points: Mapping[str, Sequence[str]]) -> list[Draw]:
    """Each point of each operation, with a kill."""
    return [Draw(operation, f"{point}=kill") for operation in points for point in points[operation]]


def main(arguments: Sequence[str] | None = None) -> int:
    """``make torture``."""
    parser = argparse.ArgumentParser(description="Cut deploys off at random places, and see what holds.")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--every", action="store_true", help="instead, a kill at each point of each operation")
    parser.add_argument("--operation", action="append", default=[], choices=OPERATIONS)
    options = parser.parse_args(arguments)
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was made is removed
    engine = Engine(f"torture{os.getpid()}", os.getpid() % 4 + 5, ensure())
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        torture = Torture.begin(engine, Path(folder) / "site")
        try:
            points = torture.record()
            draws = every(points) if options.every else []
            chosen = options.operation or list(OPERATIONS)
            draws = draws or [draw(seed + number, points, chosen) for number in range(options.runs)]
            return _runs(torture, [one for one in draws if one.operation in chosen])
        finally:
            torture.site.close()
            engine.clean()


def _runs(torture: Torture, draws: Sequence[Draw]) -> int:
    for start in range(0, len(draws), 50):
        with torture.load():
            for number, one in enumerate(draws[start : start + 50], start + 1):
                begun = time.monotonic()
                try:
                    how = torture.run(one)
                except Exception as found:
                    if not isinstance(found, Violation):
                        traceback.print_exc()
                    print(f"{number}/{len(draws)} {one}: VIOLATED\n{found}\n{torture.evidence()}\n")
                    print(f"this run again: make torture N=1 SEED={one.seed}")
                    print(f"with all that came before it: make torture N={number} SEED={draws[0].seed}")
                    return 1
                print(f"{number}/{len(draws)} {one}: {how} ({time.monotonic() - begun:.1f} s)", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
