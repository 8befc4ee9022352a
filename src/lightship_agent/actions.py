"""The operations of the protocol, for one service, within one conversation."""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from lightship_agent import TYPE_CHECKING, VERSION, facts, handover, protocol, recovery, rollout
from lightship_agent import lock as locks
from lightship_agent import release as releases
from lightship_agent.container import Engine, exec_command
from lightship_agent.errors import AgentFailure, ProtocolError, Refused
from lightship_agent.failpoints import fail_point, register
from lightship_agent.git import Mirror, glob_match
from lightship_agent.infra import infra_of_both
from lightship_agent.instance import Instances, make_directories, render_env
from lightship_agent.journal import Journal
from lightship_agent.names import printable, valid_branch, valid_commit, valid_service, valid_url
from lightship_agent.paths import CONTAINER_CODE, ServicePaths
from lightship_agent.redaction import Redaction
from lightship_agent.requests import PrepareRequest, Reader, ReceiveRequest, proxy_claim
from lightship_agent.situation import Tools
from lightship_agent.space import require_space
from lightship_agent.state import load_state
from lightship_agent.system import Completed, read_trusted, run

if TYPE_CHECKING:
    from typing import Any

    from lightship_agent.images import Images
    from lightship_agent.proxy import Proxy
    from lightship_agent.receive import Receiver

    Emit = Callable[[dict[str, Any]], None]

__all__ = ["Actions"]

register(
    recover__begin="what an earlier rollout left is about to be finished or undone",
    recover__end="what an earlier rollout left has been finished or undone",
    finish__begin="the conversation is over, and its rollout about to be finished or undone",
    finish__end="the conversation is over, and its rollout too",
)

IMAGE_OPERATIONS = ("image", "build", "push", "pull", "save", "load")
BEGINNINGS = ("inspect", "build", "pull", "load")
"""A rollout's work begins with the first of these."""
EXEC_SECONDS = 86400.0
FILES_SHOWN = 500
COMMITS_SHOWN = 50
MAX_PAGE = 200_000
TRACE_ID = r"[0-9a-f]{32}"


class Actions:
    """One conversation's operations. ``emit`` sends an event; ``called_off`` says whether anybody still listens."""

    def __init__(self, emit: Emit, called_off: Callable[[], bool]) -> None:
        self._redaction = Redaction()
        self._emit: Emit = lambda event: emit(self.clean(event))
        self._called_off = called_off
        self._lock: locks.ServiceLock | None = None
        self._rollout: rollout.Rollout | None = None
        self._paths: ServicePaths | None = None
        self._who = ""
        self._began: float | None = None
        self._images: Images | None = None
        self._receiver: Receiver | None = None

    # --- the conversation ---------------------------------------------------------

    def perform(self, operation: str, args: Mapping[str, Any]) -> dict[str, Any]:
        """Do one operation; raises ``AgentFailure``."""
        if operation == "hello":
            if self._paths is not None:
                raise ProtocolError("hello-twice", "a conversation has one hello, and this one had it")
            with self._at_work():
                return self._hello(args)
        if self._paths is None:
            raise ProtocolError("no-hello", f"{operation} came before hello")
        if operation in protocol.LOCKING_OPERATIONS and self._lock is None:
            raise ProtocolError("no-lock", f"{operation} needs the lock: say hello with lock: true")
        if self._began is None and operation in BEGINNINGS:
            self._began = time.time()
        with self._at_work():
            where: Any = self._with_images() if operation in IMAGE_OPERATIONS else self
            name = operation if operation in IMAGE_OPERATIONS else f"_{operation}"
            result: dict[str, Any] = getattr(where, name)(args)
        return result

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Whoever wants to take the lock over sees whether we are in the middle of something."""
        if self._lock is not None:
            self._lock.at_work(True)
        try:
            yield
        finally:
            if self._lock is not None:
                self._lock.at_work(False)

    def left_alone(self) -> None:
        """Nobody asks any more; whoever waits for the lock may know that it is given back soon. From any thread."""
        if self._lock is not None:
            self._lock.left_alone()

    def clean(self, told: Any) -> Any:
        """What is told, without the service's secrets."""
        return self._redaction.clean(told)

    def finish(self) -> None:
        """The conversation is over, whether it was ended or broke: undo what is only prepared, finish what is live."""
        pending, self._rollout = self._rollout, None
        if pending is None:
            return
        # Somebody who took over has undone or finished it already.
        self._guard()
        fail_point("finish.begin")
        with self._at_work():
            pending.finish()
        fail_point("finish.end")

    def _hello(self, args: Mapping[str, Any]) -> dict[str, Any]:
        read = Reader(args)
        if args.get("protocol") != protocol.VERSION:
            raise ProtocolError(
                "protocol-version",
                f"this agent speaks protocol {protocol.VERSION}, the controller {printable(args.get('protocol'))}",
                hint="run the same version of lightship on both sides",
            )
        paths = ServicePaths.at(_absolute(read.text("root", "/srv/lightship")), valid_service(args.get("service")))
        wanted = args.get("container")
        self._prefix = valid_service(paths.service if wanted is None else wanted, "container")
        self._who = read.text("who", "")
        why, wait, lock = read.text("why", ""), read.seconds("wait", 0.0), read.flag("lock")
        take_over = read.flag("take_over")
        self._paths = paths
        self._engine = Engine(self._run)
        self._journal = Journal(paths, self.clean)
        self._mirror = Mirror(paths, self._run)
        self._instances = Instances(paths, self._engine, self._prefix, self._guard)
        self._redaction.load(paths)
        recovered = None
        if lock:
            recovered = self._take_lock(why, wait, take_over)
        return {
            "protocol": protocol.VERSION,
            "agent": VERSION,
            "fence": self._lock.fence if self._lock else None,
            "recovered": recovered,
            "facts": facts.gather(paths, self._instances, self._journal),
        }

    def _take_lock(self, why: str, wait: float, take_over: bool) -> dict[str, Any] | None:
        make_directories(self._known_paths)
        self._lock = locks.acquire(
            self._known_paths,
            who=self._who,
            why=why,
            wait_seconds=wait,
            take_over=take_over,
            on_wait=lambda holder: self._emit(
                {
                    "event": "step",
                    "step": "lock",
                    "state": "start",
                    "detail": {
                        "who": holder.who,
                        "why": holder.why,
                        "since": holder.since,
                        "left_alone": holder.left_alone,
                    },
                }
            ),
        )
        if self._called_off():
            self._lock.left_alone()
        pending = self._journal.pending()
        if pending is None:
            releases.clean_unfinished(self._known_paths)
            recovery.adopt(self._tools())
            self._heal_proxy()
            return None
        with self._step("recover") as detail:
            fail_point("recover.begin")
            told = recovery.recover(self._tools(), pending)
            recovery.adopt(self._tools())
            self._heal_proxy()
            fail_point("recover.end")
            detail.update(outcome=told["outcome"])
        return told

    # Most conversations have neither an image nor a pack nor a proxy: what is for those is imported when it is needed.

    def _with_images(self) -> Images:
        from lightship_agent.images import Images  # noqa: PLC0415

        if self._images is None:
            self._images = Images(
                paths=self._known_paths,
                engine=self._engine,
                mirror=self._mirror,
                run=self._run,
                step=self._step,
                emit=self._emit,
                learn=self._redaction.learn,
                guard=self._guard,
                heard=self._end_unheard,
            )
        return self._images

    def _with_receiver(self) -> Receiver:
        from lightship_agent.receive import Receiver  # noqa: PLC0415

        if self._receiver is None:
            self._receiver = Receiver(self._known_paths, self._mirror, self._mirror_lock)
        return self._receiver

    def _with_proxy(self, guard: Callable[[], None]) -> Proxy:
        from lightship_agent.proxy import Proxy  # noqa: PLC0415

        return Proxy(self._known_paths, self._engine, guard)

    def _heal_proxy(self) -> None:
        """What the proxy lacks is put right; what cannot be is for the rollout to say, which needs it or not."""
        with suppress(AgentFailure):
            handover.heal(self._tools(), load_state(self._known_paths).instance)

    def _run(self, argv: Sequence[str], **options: Any) -> Completed:
        """Run a program with the lock as its own: what it changes is over before anybody else begins, even if this
        process is killed meanwhile."""
        held = {"inherit": (self._lock.descriptor,) if self._lock else ()}
        return run(argv, **{**held, **options})

    @property
    def _known_paths(self) -> ServicePaths:
        assert self._paths is not None  # noqa: S101 - perform() has seen to it
        return self._paths

    def _tools(self) -> Tools:
        return Tools(
            paths=self._known_paths,
            mirror=self._mirror,
            journal=self._journal,
            instances=self._instances,
            step=self._step,
            run=self._run,
            guard=self._guard,
            checkpoint=self._checkpoint,
            who=self._who,
            began=self._began,
        )

    def _guard(self) -> None:
        if self._lock is None:
            raise ProtocolError("no-lock", "nothing is changed without the lock")
        self._lock.check_fence()

    def _checkpoint(self) -> None:
        if self._called_off():
            raise Refused("called-off", "the rollout was called off before anything changed")

    @contextmanager
    def _step(self, name: str) -> Iterator[dict[str, Any]]:
        """Tell of a step: its start, and how it ended after how many seconds."""
        detail: dict[str, Any] = {}
        started = time.monotonic()
        self._emit({"event": "step", "step": name, "state": "start"})
        state = "failed"
        try:
            yield detail
            state = "done"
        finally:
            seconds = round(time.monotonic() - started, 4)
            self._emit({"event": "step", "step": name, "state": state, "seconds": seconds, "detail": detail})

    def _log(self, stream: str, text: str) -> None:
        self._emit({"event": "log", "stream": stream, "text": text})

    # --- looking ------------------------------------------------------------------

    def _status(self, _args: Mapping[str, Any]) -> dict[str, Any]:
        return facts.gather(self._known_paths, self._instances, self._journal)

    def _inspect(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Bring the commit here, if it is not, and say what it changes. Without a repository nobody is asked for it."""
        read = Reader(args)
        wanted = args.get("commit")
        commit = valid_commit(wanted) if wanted is not None else None
        named, address = args.get("ref"), args.get("repository")
        url, ref = (
            None if address is None else valid_url(address),
            valid_branch("HEAD" if named is None else named, "ref"),
        )
        # All of the arguments first: a wrong one is refused before anything is fetched.
        globs, migrations, env = read.texts("infra"), read.texts("migrations"), read.environment("env")
        if commit is None or not self._mirror.has_commit(commit):
            if url is None:
                raise Refused("commit-missing", f"the commit {commit or ref} is not here, and no git host was named")
            with self._step("fetch"), self._mirror_lock() as waited:
                require_space(self._known_paths.home, "a fetch")
                commit = self._mirror.fetch(url, ref, commit, look=waited)
        live, compared = self._compared(releases.current_commit(self._known_paths), commit, migrations)
        info = self._mirror.commit_info(commit)
        keep = self._lock is not None
        infra, infra_live = infra_of_both(self._known_paths, self._mirror, commit, live, globs, keep=keep)
        answer: dict[str, Any] = {
            "commit": commit,
            "subject": info.subject,
            "author": info.author,
            "time": info.time,
            "live": live,
            "infra": infra,
            "infra_live": infra_live,
            "env_changed": args.get("env") is not None and self._env_changed(env),
        }
        return {**answer, **compared}

    def _receive(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Take a commit's objects from the controller."""
        receiver = self._with_receiver()
        try:
            return receiver.take(ReceiveRequest.parse(args))
        except BaseException:
            receiver.forget()
            raise

    def _compared(self, live: str | None, commit: str, migrations: Sequence[str]) -> tuple[str | None, dict[str, Any]]:
        """What lies between the live release and the commit. A mirror that was made anew may lack the live one."""
        if live is None or live == commit:
            nothing = {"commits": [], "count": 0, "ahead": True, "files": [], "files_count": 0, "migrations": []}
            return live, nothing
        try:
            return live, self._between(live, commit, migrations)
        except AgentFailure:
            if self._mirror.has_commit(live):
                raise
            return self._compared(None, commit, migrations)

    def _between(self, live: str, commit: str, migrations: Sequence[str]) -> dict[str, Any]:
        files = self._mirror.changed(live, commit)
        between = self._mirror.log(live, commit, COMMITS_SHOWN)
        return {
            "commits": [{"commit": one.commit, "subject": one.subject} for one in between.commits],
            "count": between.count,
            "ahead": between.ahead,
            "files": [{"status": one.status, "path": one.path} for one in files[:FILES_SHOWN]],
            "files_count": len(files),
            "migrations": _matching([one.path for one in files if one.status != "D"], migrations),
        }

    def _env_changed(self, env: Mapping[str, str]) -> bool:
        return read_trusted(self._known_paths.env, 1024 * 1024) != render_env(env)

    @contextmanager
    def _mirror_lock(self) -> Iterator[bool]:
        """Make this the only git that writes to the mirror: a plan fetches too, without the service's lock.

        Says whether somebody else was waited for, who may have brought what is wanted.
        """
        make_directories(self._known_paths)
        descriptor = os.open(self._known_paths.state / "mirror.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            waited = False
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waited = True
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield waited
        finally:
            os.close(descriptor)

    def _logs(self, args: Mapping[str, Any]) -> dict[str, Any]:
        read = Reader(args)
        lines, follow = read.whole("lines", 100, 0, 1_000_000), read.flag("follow")
        name = self._container_name()
        command = ["docker", "logs", "--tail", str(lines), *(["--follow"] if follow else []), name]
        done = run(
            command,
            timeout=EXEC_SECONDS if follow else 60.0,
            on_line=self._log,
            meanwhile=self._end_unheard,
            max_output=4096,
        )
        if done.status != 0 and not follow:
            raise AgentFailure("docker-failed", f"could not read the log of {name}: {done.err.strip()[-300:]}")
        return {"status": done.status}

    def _end_unheard(self) -> None:
        if self._called_off():
            raise Refused("called-off", "nobody listens any more")

    def _exec(self, args: Mapping[str, Any]) -> dict[str, Any]:
        command = Reader(args).texts("command")
        if not command:
            raise ProtocolError("bad-value", "exec: there is no command")
        container = self._instances.find(load_state(self._known_paths).instance)
        if container is None or not container.running:
            raise Refused(
                "container-down", "the service's container is not running", hint="`lightship deploy` starts it"
            )
        current = releases.current_commit(self._known_paths)
        # In the container too the command ends with this conversation, which holds its input open.
        wrapped = [
            container.python,
            "-I",
            "-S",
            f"{CONTAINER_CODE}/boot/command.py",
            f"{EXEC_SECONDS:g}",
            "0",
            *command,
        ]
        folder = f"{CONTAINER_CODE}/releases/{current}" if current else "/"
        done = run(
            exec_command(container.name, folder, wrapped, user=container.user, interactive=True),
            timeout=EXEC_SECONDS,
            on_line=self._log,
            meanwhile=self._end_unheard,
            hold_input=True,
            max_output=4096,
        )
        return {"status": done.status}

    def _container_name(self) -> str:
        instance = load_state(self._known_paths).instance
        if not instance:
            raise Refused("no-container", "the service has no container here", hint="`lightship deploy` makes one")
        return self._instances.name(instance)

    # --- the proxy ----------------------------------------------------------------

    def _proxy(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Bring the proxy in line with what the service wants of it: host names, ports, certificates, its image."""
        claim = proxy_claim(Reader(args).inner("claim"))
        if claim is None:
            raise ProtocolError("bad-value", "proxy: there is no claim")
        proxy = self._with_proxy(self._guard)
        before = proxy.entry()
        with self._step("proxy"):
            proxy.require(claim, self._published() if before is None else ())
            restarted = proxy.restart(claim.image)
            proxy.run(claim.image)
            if before is not None:
                proxy.claim(claim, before.instance, before.upstream)
        after = proxy.entry()
        return {"restarted": restarted, "changed": restarted or before != after, "proxy": proxy.facts()}

    def _published(self) -> list[int]:
        """The ports that the service's own container has, which it gives up when the proxy takes its place."""
        found = self._instances.find(load_state(self._known_paths).instance)
        return list(handover.published_ports(found)) if found is not None else []

    def _maintenance(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Turn visitors away with a page, or let them in again. A deploy may go on meanwhile, so it takes no lock."""
        read = Reader(args)
        on, page = read.flag("on"), read.text("page", "")
        if len(page) > MAX_PAGE:
            raise ProtocolError("bad-value", f"page: it has more than {MAX_PAGE} characters")
        if on and not page:
            raise ProtocolError("bad-value", "page: there is none")
        proxy = self._with_proxy(lambda: None)
        known = proxy.entry()
        already = known is not None and (known.maintenance is not None) == on
        with self._step("maintenance"):
            proxy.maintenance((known.maintenance if known and already else time.time()) if on else None, page)
        return {"changed": not already, "proxy": proxy.facts()}

    # --- the phases of a rollout ---------------------------------------------------

    def _prepare(self, args: Mapping[str, Any]) -> dict[str, Any]:
        if self._rollout is not None:
            raise ProtocolError("rollout-open", "a rollout is open already in this conversation")
        request = PrepareRequest.parse(args)
        if request.env is not None:
            self._guard()
            self._redaction.remember(self._known_paths, request.secrets, request.env)
        try:
            tools, self._began = self._tools(), None
            self._rollout, answer = rollout.Rollout.prepare(tools, request)
        except Refused:
            raise
        except AgentFailure as error:
            if error.outcome != "failed":
                raise
            raise Refused(error.code, error.message, error.hint, error.detail) from error
        return answer

    def _open_rollout(self, operation: str) -> rollout.Rollout:
        if self._rollout is None:
            raise ProtocolError("no-rollout", f"{operation} came before prepare")
        return self._rollout

    def _activate(self, _args: Mapping[str, Any]) -> dict[str, Any]:
        if self._open_rollout("activate").activated:
            raise ProtocolError("activated", "the release was activated before")
        return self._live("activate", rollout.Rollout.activate)

    def _verify(self, _args: Mapping[str, Any]) -> dict[str, Any]:
        if not self._open_rollout("verify").activated:
            raise ProtocolError("not-activated", "verify came before activate")
        return self._live("verify", rollout.Rollout.verify)

    def _live(self, operation: str, phase: Callable[[rollout.Rollout], dict[str, Any]]) -> dict[str, Any]:
        """A phase after which the new release may be live: when it fails, the old one is brought back."""
        current = self._open_rollout(operation)
        try:
            return phase(current)
        except AgentFailure as error:
            if not current.activated:
                raise
            self._rollout = None
            raise rollout.revert_or_raise(current, error) from error

    def _commit(self, args: Mapping[str, Any]) -> dict[str, Any]:
        current = self._open_rollout("commit")
        if not current.verified:
            raise ProtocolError("not-verified", "commit came before verify")
        answer = current.commit(Reader(args).whole("keep", current.situation.keep, 1, 1000))
        self._rollout = None
        return answer

    def _revert(self, _args: Mapping[str, Any]) -> dict[str, Any]:
        current = self._open_rollout("revert")
        if not current.activated:
            raise Refused("not-activated", "there is nothing to go back from")
        self._rollout = None
        return current.revert("the controller asked for it")

    def _abort(self, _args: Mapping[str, Any]) -> dict[str, Any]:
        current = self._rollout
        if current is not None and current.activated:
            raise ProtocolError("activated", "the release is active: it can be verified or reverted, and not aborted")
        self._rollout = None
        if current is not None:
            current.abort()
        return {}

    def _bye(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """All is said. What the controller says of where the time went is kept, if that can be done."""
        trace = Reader(args).inner("trace")
        if trace is None:
            return {}
        identity = Reader(trace, "trace.").text("id", None, TRACE_ID)
        if self._lock is None:
            return {}
        with suppress(AgentFailure, OSError):
            self._guard()
            self._journal.keep_trace(identity, self._lock.fence, trace)
        return {}

    def _traces(self, _args: Mapping[str, Any]) -> dict[str, Any]:
        return {"traces": self._journal.traces()}


def _matching(paths: Sequence[str], globs: Sequence[str]) -> list[str]:
    patterns = [glob_match(glob) for glob in globs]
    return [path for path in paths if any(pattern.fullmatch(path) for pattern in patterns)][:FILES_SHOWN]


def _absolute(root: str) -> str:
    if not re.fullmatch(r"/[A-Za-z0-9._/-]{0,200}", root) or ".." in root.split("/"):
        raise ProtocolError("bad-value", f"root: {printable(root)} is not a plain absolute path")
    return root
