"""The journal tells what a killed rollout had begun; the history what ended."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lightship_agent.journal import HISTORY_LIMIT, LARGEST_TRACE, TRACES_LIMIT, Journal
from lightship_agent.paths import ServicePaths

A, B = "a" * 40, "b" * 40


def begin(journal: Journal, rollout: str = "r1") -> None:
    journal.begin(rollout, kind="code", commit=A, previous=B, who="u@h", data={"slot": 1})


def test_nothing_is_pending_at_first(paths: ServicePaths) -> None:
    journal = Journal(paths)
    assert journal.pending() is None
    assert journal.end("done") is None
    assert journal.history() == []


def test_steps_are_known_as_begun_and_as_done(paths: ServicePaths) -> None:
    journal = Journal(paths)
    begin(journal)
    journal.doing("fetch")
    journal.done("fetch", {"tree": "moved"})
    journal.doing("activate", {"from": B})
    pending = Journal(paths).pending()
    assert pending is not None
    assert (pending.rollout, pending.kind, pending.commit, pending.previous, pending.who) == ("r1", "code", A, B, "u@h")
    assert pending.data == {"slot": 1}
    assert [(step.step, step.done) for step in pending.steps] == [("fetch", True), ("activate", False)]
    assert pending.steps[0].result == {"tree": "moved"}
    last = pending.last("activate")
    assert last is not None
    assert last.data == {"from": B}
    assert pending.last("verify") is None
    with pytest.raises(RuntimeError):
        begin(journal, "r2")


def test_an_ended_rollout_is_history(paths: ServicePaths) -> None:
    journal = Journal(paths)
    for number in range(3):
        begin(journal, f"r{number}")
        journal.doing("activate")
        journal.end("done")
    assert journal.pending() is None
    assert [past.id for past in journal.history()] == ["r2", "r1", "r0"]
    assert [past.id for past in journal.history(1)] == ["r2"]
    past = journal.history()[0]
    assert (past.outcome, past.commit, past.previous, past.steps, past.who) == ("done", A, B, ("activate",), "u@h")
    assert past.as_dict()["id"] == "r2"


@pytest.mark.parametrize("torn", [b'{"phase":"do', b"\0\0\0\0", b'"text"\n[1]\n', b"\xff\xfe{\n"])
def test_a_torn_line_hides_nothing(paths: ServicePaths, torn: bytes) -> None:
    journal = Journal(paths)
    begin(journal)
    journal.doing("one")
    with paths.journal.open("ab") as file:
        file.write(torn)
    journal.doing("two")
    pending = journal.pending()
    assert pending is not None
    assert [step.step for step in pending.steps] == ["one", "two"]
    journal.end("reverted")
    with paths.history.open("ab") as file:
        file.write(torn)
    assert [past.outcome for past in journal.history()] == ["reverted"]


def test_the_history_is_bounded(paths: ServicePaths) -> None:
    line = b'{"id":"%d","kind":"code","commit":"x","previous":null,"outcome":"done","started":1.0,"seconds":1.0}\n'
    paths.history.write_bytes(b"".join(line % number for number in range(HISTORY_LIMIT * 2)))
    journal = Journal(paths)
    begin(journal)
    journal.end("done")
    assert paths.history.read_bytes().count(b"\n") == HISTORY_LIMIT
    assert [past.id for past in journal.history(2)] == ["r1", str(HISTORY_LIMIT * 2 - 1)]


CHILD = """
import sys; from lightship_agent.journal import Journal; from lightship_agent.paths import ServicePaths
journal = Journal(ServicePaths.at(sys.argv[1], "shop"))
journal.begin("r9", kind="code", commit="a" * 40, previous=None)
journal.doing("one"); journal.done("one"); journal.end("done")
"""


@pytest.mark.parametrize(
    ("point", "pending", "steps", "history"),
    [
        ("journal.begin", False, [], 0),
        ("journal.doing", True, [], 0),
        ("journal.done", True, [("one", False)], 0),
        ("journal.end", True, [("one", True)], 0),
        ("journal.ended", True, [("one", True)], 1),
    ],
)
def test_a_kill_at_any_point_leaves_what_was_begun(
    paths: ServicePaths, point: str, pending: bool, steps: list[tuple[str, bool]], history: int
) -> None:
    env = {**os.environ, "LIGHTSHIP_TESTING": "1", "LIGHTSHIP_FAILPOINTS": f"{point}=kill"}
    done = subprocess.run([sys.executable, "-c", CHILD, str(paths.root)], env=env, check=False)
    assert done.returncode == -9
    journal = Journal(paths)
    found = journal.pending()
    assert (found is not None) is pending
    assert [(step.step, step.done) for step in (found.steps if found else ())] == steps
    assert len(journal.history()) == history
    journal.end("aborted")
    assert journal.pending() is None
    assert len(journal.history()) == int(pending)


# --- where the time of rollouts went ----------------------------------------------------------------------------------


def kept(number: int) -> dict[str, object]:
    return {"id": f"{number:032x}", "root": {"name": "deploy"}}


def test_traces_are_bounded_private_and_newest_first(paths: ServicePaths) -> None:
    journal = Journal(paths)
    assert journal.traces() == []
    for number in range(TRACES_LIMIT + 5):
        # The lock's number has holes: not everything that takes the lock is a rollout.
        journal.keep_trace(f"{number:032x}", 3 * number + 1, kept(number))
    assert journal.traces() == [kept(number) for number in range(TRACES_LIMIT + 4, 4, -1)]
    assert len(list(paths.traces.iterdir())) == TRACES_LIMIT
    assert {path.stat().st_mode & 0o777 for path in paths.traces.iterdir()} == {0o600}
    assert paths.traces.stat().st_mode & 0o777 == 0o700


def test_a_trace_that_is_too_large_or_torn_is_passed_over(paths: ServicePaths) -> None:
    journal = Journal(paths)
    journal.keep_trace("1" * 32, 1, kept(1))
    journal.keep_trace("2" * 32, 2, {**kept(2), "more": "x" * LARGEST_TRACE})
    (paths.traces / f"{3:012d}-{'3' * 32}.json").write_bytes(b'{"id": "3')
    (paths.traces / "notes.txt").write_text("not ours")
    assert journal.traces() == [kept(1)]


def test_a_kill_while_one_is_written_leaves_the_others(paths: ServicePaths) -> None:
    Journal(paths).keep_trace("1" * 32, 1, kept(1))
    program = (
        "import sys; from lightship_agent.journal import Journal; from lightship_agent.paths import ServicePaths\n"
        "Journal(ServicePaths.at(sys.argv[1], 'shop')).keep_trace('2' * 32, 2, {'id': '2' * 32})"
    )
    env = {**os.environ, "LIGHTSHIP_TESTING": "1", "LIGHTSHIP_FAILPOINTS": "trace.keep=kill"}
    done = subprocess.run([sys.executable, "-c", program, str(paths.root)], env=env, check=False)
    assert done.returncode == -9
    assert Journal(paths).traces() == [kept(1)]
