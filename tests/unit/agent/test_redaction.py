"""The agent tells and keeps no secret of the service's, also one that the controller does not know (any more)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightship_agent.journal import Journal
from lightship_agent.paths import ServicePaths
from lightship_agent.redaction import Redaction, parts

VALUE = "hunter2-geheim"


@pytest.fixture
def paths(tmp_path: Path) -> ServicePaths:
    paths = ServicePaths(tmp_path, "shop")
    paths.state.mkdir(parents=True)
    return paths


def known(*values: str) -> Redaction:
    redaction = Redaction()
    redaction.learn(values)
    return redaction


def test_texts_of_others_are_cleaned_and_names_are_left_alone() -> None:
    told = {
        "error": {"outcome": "refused", "code": VALUE, "message": f"no {VALUE}", "hint": VALUE, "detail": {
            "traceback": f"KeyError: '{VALUE}'", "checks": [{"name": VALUE, "output": VALUE}], "commit": VALUE}},
    }  # fmt: skip
    assert known(VALUE).clean(told) == {
        "error": {"outcome": "refused", "code": VALUE, "message": "no ***", "hint": "***", "detail": {
            "traceback": "KeyError: '***'", "checks": [{"name": VALUE, "output": "***"}], "commit": VALUE}},
    }  # fmt: skip


def test_the_values_come_from_what_the_containers_were_given(paths: ServicePaths) -> None:
    Redaction().remember(paths, ["TOKEN"], {"TOKEN": VALUE, "DEBUG": "true"})
    assert json.loads(paths.secret_names.read_text()) == ["TOKEN"]
    assert VALUE not in paths.secret_names.read_text()
    paths.env.write_text(f"DEBUG=true\nTOKEN={VALUE}\n")
    (paths.state / "env.3").write_text("TOKEN=the=old,one\n")
    redaction = Redaction()
    redaction.load(paths)
    assert redaction.text(f"{VALUE} the=old,one true") == "*** *** true"


def test_names_are_added_to_and_a_damaged_list_ends_nothing(paths: ServicePaths) -> None:
    Redaction().remember(paths, ["A"], {})
    Redaction().remember(paths, ["B"], {})
    assert json.loads(paths.secret_names.read_text()) == ["A", "B"]
    assert paths.secret_names.stat().st_mode & 0o777 == 0o600
    paths.secret_names.write_text("{")
    Redaction().load(paths)


def test_the_journal_keeps_none(paths: ServicePaths) -> None:
    journal = Journal(paths, known(VALUE).clean)
    journal.begin("1", kind="code", commit="a" * 40, previous=None)
    journal.doing("revert", {"reason": f"500: {VALUE}"})
    assert VALUE not in paths.journal.read_text()


@pytest.mark.parametrize("text", [VALUE[3:] + " and more" * 100, "it is " * 100 + VALUE[:-3]])
def test_a_text_that_was_cut_within_one_shows_no_part_of_it(text: str) -> None:
    shown = known(VALUE).text(text)
    assert "***" in shown
    assert VALUE[3:-3] not in shown


def test_what_is_too_short_to_be_a_secret_is_left_alone() -> None:
    assert known("1", "abc").text("a1 abc") == "a1 abc"
    assert Redaction().clean({"text": VALUE}) == {"text": VALUE}


@given(st.text(st.characters(codec="utf-8"), min_size=5, max_size=24).filter(lambda text: len(set(text)) > 3))
def test_disguises_are_found(value: str) -> None:
    redaction = known(value)
    for disguise in (value, repr(value), ascii(value), json.dumps(value), value.encode().hex(), repr(value.encode())):
        assert "***" in redaction.text(f"x {disguise} y"), disguise


def test_a_file_s_secret_is_found_line_by_line_and_word_by_word() -> None:
    redaction = Redaction()
    redaction.learn(parts(f"[global]\nextra-index = https://pypi.example\n  password = {VALUE}\n"))
    for text in (f"password = {VALUE}", VALUE, f"found {VALUE}."):
        assert VALUE not in redaction.text(text)
    assert redaction.text("a = b") == "a = b"
    assert parts("one line = one value") == ["one line = one value"]
