"""Whatever comes from outside is shown inert: it can be read, and do nothing else."""

from __future__ import annotations

import io
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightship.errors import RefusedError
from lightship.model import Change, Commit, Container, Facts, FileChange, Plan, Release, Step
from lightship.output.human import LiveProgress, PlainProgress, colours, show
from lightship.output.text import LONGEST, last_line, printable, printable_lines
from lightship.output.words import error_lines, plan_lines, releases_lines, status_lines
from lightship.result import PlanResult, ReleasesResult, ServerReleases, ServerStatus, StatusResult
from lightship.rollout.events import LogLine, Note, PlanMade, StepDone, StepFailed, StepStarted

HOSTILE = [
    "\x1b]52;c;Y3VybA==\x07",
    "\x1b[2J\x1b[HDeploy OK",
    "\u202egnp.exe",
    "\udcff\x00",
    "a\rb\x08\x7f\x9b2J",
    "\u2028\u2066\ufeff\u200b",
    "[bold]markup[/bold] [link=x]",
]
COMMIT = "a" * 40


def inert(text: str) -> bool:
    return all(character == "\n" or unicodedata.category(character)[0] not in "C" for character in text)


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, ", 0 bytes"), (812, ", 812 bytes"), (2048, ", 2.0 KiB"), (5 << 20, ", 5.0 MiB"), (3 << 40, ", 3072.0 GiB"),
     (-1, ""), (True, ""), (10**400, ""), ("x", ""), (None, "")],
)  # fmt: skip
def test_a_step_says_how_much_was_sent_for_it(count: object, shown: str) -> None:
    stream = io.StringIO()
    PlainProgress("shop", stream)(StepDone("web1", "push", 0.5, {"bytes": count}))
    assert stream.getvalue() == f"web1: push 0.50 s{shown}\n"


def test_a_plan_says_how_the_code_comes() -> None:
    for source, told in (("push", True), ("pull", False), ("", False)):
        lines = plan_lines(PlanResult("shop", "main", COMMIT, "", "nothing", (), source))
        assert any("the code is sent from here" in text for line in lines for text, _ in line) is told


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_inert(text: str) -> None:
    assert inert(printable(text))


@given(st.one_of(st.text(), st.binary()))
def test_any_text_is_inert_and_short(text: str | bytes) -> None:
    assert inert(printable(text))
    assert all(inert(line) and "\n" not in line for line in printable_lines(text))


@given(st.text(alphabet=st.characters(categories=["L", "N", "P", "S"]), max_size=100))
def test_plain_text_is_left_alone(text: str) -> None:
    assert printable(text) == text


def test_bytes_that_are_no_text_are_escaped() -> None:
    assert printable(b"\xff\x00ok") == "\\xff\\x00ok"


def test_a_line_of_200_mb_is_cut() -> None:
    assert len(printable("x" * 200_000_000)) == LONGEST + 1


def test_the_last_line_of_a_traceback_is_the_exception() -> None:
    assert last_line("Traceback:\n  File x\nImportError: no \x1b[2J\n\n") == "ImportError: no \\x1b[2J"


def shown(hostile: str, stream: io.StringIO) -> None:
    change = Change(
        COMMIT,
        hostile,
        commits=(Commit(COMMIT, hostile),),
        count=1,
        files=(FileChange(hostile, hostile),),
        files_count=1,
    )
    plan = Plan("code", COMMIT, (hostile,), (Step(hostile, hostile),), change, hostile)
    release = Release(COMMIT, subject=hostile, state=hostile, why=hostile)
    container = Container(hostile, status=hostile, image=hostile)
    facts = Facts(hostname=hostile, current=COMMIT, releases=(release,), container=container)
    error = RefusedError(hostile, hint=hostile, detail={"traceback": f"{hostile}\n{hostile}"})
    show(error_lines(error), stream)
    show(error_lines(error, verbose=True), stream)
    show(plan_lines(PlanResult("shop", hostile, COMMIT, hostile, "code", (("local", plan),))), stream)
    status = ServerStatus("local", COMMIT, COMMIT, (), facts)
    show(status_lines(StatusResult("shop", hostile, None, hostile, (status,))), stream)
    show(releases_lines(ReleasesResult("shop", (ServerReleases("local", COMMIT, None, None, facts.releases),))), stream)
    for progress in (PlainProgress("shop", stream, verbose=True), LiveProgress("shop", stream, verbose=True)):
        with progress:
            progress(PlanMade(hostile, plan))
            progress(StepStarted(hostile, hostile))
            progress(LogLine(hostile, "stdout", hostile))
            progress(Note(hostile, hostile))
            progress(StepFailed(hostile, hostile, 0.1))
            progress(StepDone(hostile, "b", 0.1))


@pytest.mark.parametrize("hostile", HOSTILE)
def test_everything_that_is_shown_is_inert(hostile: str) -> None:
    stream = io.StringIO()
    shown(hostile, stream)
    text = stream.getvalue()
    assert text
    assert inert(text)


def test_rich_markup_is_no_markup() -> None:
    stream = io.StringIO()
    shown("[bold]x[/bold]", stream)
    assert "[bold]x[/bold]" in stream.getvalue()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colours_are_for_terminals_that_want_them() -> None:
    assert colours(Terminal(), {"TERM": "xterm"})
    assert not colours(Terminal(), {"TERM": "xterm", "NO_COLOR": "1"})
    assert not colours(Terminal(), {"TERM": "dumb"})
    assert not colours(io.StringIO(), {"TERM": "xterm"})


def test_a_stream_without_unicode_gets_escapes() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
    show([[("naïve ✓", "")]], stream)
    assert raw.getvalue() == b"na\\xefve \\u2713\n"


def test_a_refusal_shows_the_exception_and_the_rest_on_request() -> None:
    error = RefusedError("shop does not start", hint="fix it", detail={"traceback": "Traceback:\n one\nKeyError: 'x'"})
    short = ["".join(text for text, _ in line) for line in error_lines(error)]
    long = ["".join(text for text, _ in line) for line in error_lines(error, verbose=True)]
    assert short == ["error: shop does not start", "  KeyError: 'x'", "hint: fix it", "      more with --verbose"]
    assert "  Traceback:" in long
