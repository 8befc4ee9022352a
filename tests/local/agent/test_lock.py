"""At most one holds the lock; it dies with its process; one that was overtaken notices."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from lightship_agent import lock
from lightship_agent.errors import AgentFailure, Locked, Refused
from lightship_agent.lock import Holder
from lightship_agent.paths import ServicePaths

CHILD = """
import sys
from lightship_agent import lock
from lightship_agent.errors import AgentFailure
from lightship_agent.paths import ServicePaths
held = lock.acquire(ServicePaths.at(sys.argv[1], "shop"), who="child@host", why="deploy x")
held.at_work("idle" not in sys.argv)
if "left alone" in sys.argv:
    held.left_alone()
    held.at_work(True)
print("held", held.fence, flush=True)
sys.stdin.readline()
try:
    held.check_fence()
    print("ours", flush=True)
except AgentFailure as error:
    print(error.code, flush=True)
"""


@contextlib.contextmanager
def holder(paths: ServicePaths, *words: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(paths.root), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **env},
    ) as child:
        try:
            assert child.stdout is not None
            child.first_line = child.stdout.readline()  # type: ignore[attr-defined]
            yield child
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)


def take(paths: ServicePaths, **words: object) -> lock.ServiceLock:
    return lock.acquire(paths, who="me@here", why="deploy y", **words)  # type: ignore[arg-type]


def test_the_lock_is_taken_given_back_and_counted(paths: ServicePaths) -> None:
    with take(paths) as first:
        assert first.fence == 1
        first.check_fence()
        found = lock.read_holder(paths)
        assert found is not None
        assert (found.who, found.why, found.pid, found.fence) == ("me@here", "deploy y", os.getpid(), 1)
    with pytest.raises(Refused):
        first.check_fence()
    with take(paths) as second:
        assert second.fence == 2


def test_the_number_only_rises_even_if_its_file_is_lost(paths: ServicePaths) -> None:
    take(paths).release()
    take(paths).release()
    paths.fence.unlink()
    with take(paths) as found:
        assert found.fence == 3


def test_one_who_waits_is_told_who_holds_it(paths: ServicePaths) -> None:
    told: list[Holder] = []
    with holder(paths) as child:
        begun = time.monotonic()
        with pytest.raises(Locked) as caught:
            take(paths, wait_seconds=0.2, on_wait=told.append)
        assert 0.2 <= time.monotonic() - begun < 2
        assert [(one.who, one.why, one.pid) for one in told] == [("child@host", "deploy x", child.pid)]
        assert caught.value.code == "locked"
        assert caught.value.detail["pid"] == child.pid
        assert {"who", "since", "why", "pid"} == set(caught.value.detail)
        assert "child@host" in caught.value.message


def test_a_killed_holder_leaves_no_lock(paths: ServicePaths) -> None:
    with holder(paths) as child:
        os.kill(child.pid, signal.SIGKILL)
        with take(paths, wait_seconds=2) as found:
            assert found.fence == 2


def test_one_that_was_left_alone_is_waited_for_unasked(paths: ServicePaths) -> None:
    told: list[Holder] = []

    def let_it_end(found: Holder) -> None:
        told.append(found)
        assert child.stdin is not None
        child.stdin.close()

    with holder(paths, "left alone") as child:
        with take(paths, on_wait=let_it_end) as found:
            assert found.fence == 2
        assert child.wait(5) == 0
    assert [(one.left_alone, one.at_work) for one in told] == [(True, True)]
    # The next holder's controller is there.
    with take(paths):
        after = lock.read_holder(paths)
        assert after is not None
        assert not after.left_alone


@pytest.mark.parametrize("point", ["lock.taken", "lock.fence", "lock.acquired"])
def test_a_kill_while_the_lock_is_taken_needs_no_repair(paths: ServicePaths, point: str) -> None:
    with holder(paths, LIGHTSHIP_TESTING="1", LIGHTSHIP_FAILPOINTS=f"{point}=kill") as child:
        assert child.wait(5) == -signal.SIGKILL
    with take(paths) as found:
        found.check_fence()


def test_a_stopped_holder_is_overtaken_and_notices(paths: ServicePaths) -> None:
    with holder(paths, "idle") as child:
        os.kill(child.pid, signal.SIGSTOP)
        with pytest.raises(Locked):
            take(paths, wait_seconds=0.1)
        with take(paths, wait_seconds=0.1, take_over=True) as found:
            assert found.fence == 2
            os.kill(child.pid, signal.SIGCONT)
            answer, _ = child.communicate("\n", timeout=5)
            assert answer == "fenced\n"
            found.check_fence()
            with pytest.raises(Locked):
                take(paths)


def test_a_holder_that_works_is_killed_by_whoever_takes_over(paths: ServicePaths) -> None:
    with holder(paths) as child, take(paths, take_over=True) as found:
        assert child.wait(5) == -signal.SIGKILL
        assert found.fence == 2
        found.check_fence()


def test_a_holder_that_is_stopped_at_work_is_killed_since_it_would_go_on_with_it(paths: ServicePaths) -> None:
    with holder(paths) as child:
        os.kill(child.pid, signal.SIGSTOP)
        with take(paths, take_over=True) as found:
            assert child.wait(5) == -signal.SIGKILL
            found.check_fence()


def test_a_process_that_only_has_the_holder_s_number_is_left_alone(paths: ServicePaths) -> None:
    with holder(paths) as child, subprocess.Popen(["sleep", "60"]) as other:
        told = json.loads(paths.lock.read_text().partition("\n")[0])
        paths.lock.write_text(json.dumps({**told, "pid": other.pid}) + "\n1")
        with take(paths, take_over=True) as found:
            found.check_fence()
            assert other.poll() is None
            answer, _ = child.communicate("\n", timeout=5)
            assert answer == "fenced\n"
        other.kill()


def test_a_removed_lock_file_fences(paths: ServicePaths) -> None:
    with take(paths) as found:
        paths.lock.unlink()
        with pytest.raises(Refused) as caught:
            found.check_fence()
        assert caught.value.code == "fenced"


def test_the_lock_is_never_opened_through_a_link(paths: ServicePaths) -> None:
    victim = paths.state / "victim"
    victim.write_text("safe")
    paths.lock.symlink_to("victim")
    with pytest.raises(AgentFailure) as caught:
        take(paths)
    assert caught.value.code == "state-damaged"
    paths.lock.unlink()
    os.mkfifo(paths.lock)
    with pytest.raises(AgentFailure):
        take(paths)
    assert victim.read_text() == "safe"


def test_children_do_not_inherit_the_lock(paths: ServicePaths) -> None:
    found = take(paths)
    with subprocess.Popen(["sleep", "5"]) as child:
        found.release()
        with take(paths):
            pass
        child.kill()


def test_words_of_the_holder_are_shown_inert(paths: ServicePaths) -> None:
    with lock.acquire(paths, who="\x1b[2J\u202e", why="w" * 1000), pytest.raises(Locked) as caught:
        take(paths)
    assert caught.value.message.isascii()
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 400
