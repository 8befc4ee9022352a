"""What is run in the new release's tree before it goes live: the configured checks, and the migrations.

Both run in the container the release is to serve in, as the workers' user, while the old release serves.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lightship_agent import TYPE_CHECKING
from lightship_agent.container import Container, exec_command
from lightship_agent.errors import AgentFailure, Refused
from lightship_agent.failpoints import fail_point, register
from lightship_agent.paths import CONTAINER_CODE, ServicePaths
from lightship_agent.requests import Check, Migration
from lightship_agent.system import Completed, Run, atomic_write, make_directory, run

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from typing import Any

    Step = Callable[[str], AbstractContextManager[dict[str, Any]]]

__all__ = ["Warnings", "prepare_shared", "run_checks", "run_in_release", "run_migration"]

register(
    check__start="a check is about to run",
    check__done="a check has run",
    migrate__before="the migrations are about to run",
    migrate__after="the migrations have run",
)

MAX_SHOWN = 16_000
MAX_KEPT = 4 * 1024 * 1024
KEPT_LOGS = 20
# How much longer than the command's own limit the whole `docker exec` may take.
EXEC_MARGIN = 15.0
TIMED_OUT = 124
# Checks stand back for the processes that answer visitors; the migrations do not, for locks are held meanwhile.
NICENESS = 10


def run_in_release(
    container: Container, commit: str, command: Sequence[str], timeout: float, runner: Run = run, *, niceness: int = 0
) -> Completed:
    """Run a command in a release's tree, ended within the container after ``timeout`` seconds or with this process."""
    wrapped = [
        container.python,
        "-I",
        "-S",
        f"{CONTAINER_CODE}/boot/command.py",
        f"{timeout:g}",
        str(niceness),
        *command,
    ]
    folder = f"{CONTAINER_CODE}/releases/{commit}"
    argv = exec_command(container.name, folder, wrapped, user=container.user, interactive=True)
    return runner(argv, timeout=timeout + EXEC_MARGIN, hold_input=True, max_output=MAX_KEPT)


def prepare_shared(paths: ServicePaths, container: Container, shared: Sequence[str]) -> None:
    """Have the container make the shared folders that are not there yet: its release may be used before it boots.

    The container does it, as it does before each boot: it may write there, and whatever it finds there is its own.
    """
    missing = [path for path in shared if not _is_folder(paths.shared, path)]
    if not missing:
        return
    command = [container.python, "-I", "-S", f"{CONTAINER_CODE}/boot/launcher.py", "shared", *missing]
    done = run(exec_command(container.name, "/", command, user="root"), timeout=EXEC_MARGIN)
    if not done.ok:
        raise Refused(
            "shared-failed",
            f"the shared paths {', '.join(missing)} cannot be made",
            hint="what is live was not touched",
            detail={"output": _output(done), "status": done.status},
        )


def _is_folder(shared: Path, path: str) -> bool:
    """Whether there are folders all the way; a link is none, and is not followed."""
    for part in path.split("/"):
        shared /= part
        try:
            if not stat.S_ISDIR(os.lstat(shared).st_mode):
                return False
        except OSError:
            return False
    return True


def _output(done: Completed) -> str:
    return (done.out + done.err)[-MAX_SHOWN:]


def _timed_out(done: Completed) -> bool:
    return done.timed_out or done.status == TIMED_OUT


def run_checks(step: Step, container: Container, commit: str, checks: Sequence[Check]) -> list[dict[str, Any]]:
    """Run each check; raises ``Refused`` (``check-failed``) for a required one that fails."""
    return [_run_check(step, container, commit, check) for check in checks]


def _run_check(step: Step, container: Container, commit: str, check: Check) -> dict[str, Any]:
    with step(f"check {check.name}") as detail:
        fail_point("check.start")
        done = run_in_release(container, commit, check.command, check.timeout, niceness=NICENESS)
        fail_point("check.done")
        status = "timeout" if _timed_out(done) else ("passed" if done.ok else "failed")
        output = _output(done)
        detail.update(status=status, required=check.required)
        if status != "passed":
            detail.update(output=output)
            if check.required:
                what = f"took longer than {check.timeout:g} s" if status == "timeout" else "failed"
                raise Refused(
                    "check-failed",
                    f"the check {check.name} {what} on {commit[:7]}",
                    hint="fix it and deploy again; what is live was not touched",
                    detail={"check": check.name, "output": output, "status": done.status},
                )
        return {"name": check.name, "status": status, "seconds": round(done.seconds, 3), "output": output}


class Warnings:
    """The checks that only warn: they run beside the boot and the flip, and nothing waits for them but the report."""

    def __init__(self, step: Step, container: Container, commit: str, checks: Sequence[Check]) -> None:
        self.results: list[dict[str, Any]] = []
        self._work = (step, container, commit, checks)
        self._thread = threading.Thread(target=self._run, daemon=True)
        if checks:
            self._thread.start()

    def _run(self) -> None:
        step, container, commit, checks = self._work
        for check in checks:
            try:
                self.results.append(_run_check(step, container, commit, check))
            except AgentFailure as error:
                # A check that cannot even be run warns of that.
                failed = {"name": check.name, "status": "failed", "seconds": 0.0, "output": error.message}
                self.results.append(failed)

    def wait(self) -> list[dict[str, Any]]:
        """The results, when all have run; each has a limit of its own."""
        if self._thread.ident is not None:
            self._thread.join()
        return self.results


def run_migration(
    step: Step, paths: ServicePaths, container: Container, commit: str, migration: Migration, runner: Run = run
) -> dict[str, Any]:
    """Run the migrations from the new release; a failure is ``Refused`` and says in which state the schema is.

    They are never undone: only the people who wrote them know how. The output is kept in ``state/logs/``.
    """
    with step("migrate") as detail:
        fail_point("migrate.before")
        done = run_in_release(container, commit, migration.command, migration.timeout, runner)
        fail_point("migrate.after")
        kept = _keep(paths, commit, done)
        detail.update(status=done.status, log=kept)
        if done.ok:
            return {"status": "done", "seconds": round(done.seconds, 3), "output": _output(done), "log": kept}
        state = _schema_state(container, commit, migration)
        timed_out = _timed_out(done)
        raise Refused(
            "migration-timeout" if timed_out else "migration-failed",
            f"the migrations of {commit[:7]} "
            + (f"took longer than {migration.timeout:g} s and were ended" if timed_out else "failed"),
            hint="the old release still serves; "
            + (
                f"the schema now: {_in_short(state)}"
                if state
                else "see in which state the schema is before the next try"
            ),
            detail={"output": _output(done), "schema": state, "log": kept, "status": done.status},
        )


def _schema_state(container: Container, commit: str, migration: Migration) -> str | None:
    """What the configured command says of the schema, or None when there is none or it fails."""
    if not migration.state:
        return None
    done = run_in_release(container, commit, migration.state, min(migration.timeout, 60.0))
    return _output(done) if done.ok else None


def _in_short(state: str) -> str:
    """The lines that say something is not applied, as Django's ``showmigrations`` marks them; else the last line."""
    lines = [line.strip() for line in state.strip().splitlines()]
    open_ones = [line for line in lines if line.startswith("[ ]")]
    if open_ones:
        return f"{len(open_ones)} not applied ({', '.join(line[3:].strip() for line in open_ones[:5])})"
    return lines[-1] if lines else "unknown"


def _keep(paths: ServicePaths, commit: str, done: Completed) -> str:
    """Keep the output for root to read; only the newest few logs stay."""
    folder = paths.state / "logs"
    make_directory(folder, 0o700)
    path = folder / f"{int(time.time() * 1000):013d}-migrate-{commit[:12]}.log"
    atomic_write(path, done.stdout + b"\n" + done.stderr, 0o600)
    for old in sorted(folder.glob("*.log"))[:-KEPT_LOGS]:
        old.unlink()
    return str(path)
