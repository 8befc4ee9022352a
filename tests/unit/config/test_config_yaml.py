"""The strict reader: what it refuses, where it says it stands, and that it costs no more than the file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightship.config.resolved import yaml_text
from lightship.config.yaml import LARGEST, Document, parse, read
from lightship.errors import ConfigurationError


def parsed(text: str | bytes) -> Document:
    return parse(text.encode() if isinstance(text, str) else text, "f.yml")


def problems(text: str | bytes) -> list[str]:
    """All that is said about a text, whether it stops the reading or not."""
    try:
        return [str(problem) for problem in parsed(text).problems]
    except ConfigurationError as error:
        assert error.exit_status == 2
        return [line.strip() for line in error.message.splitlines()[1:]]


def test_values() -> None:
    text = "a: true\nb: [1, -2, 1.5, \"on\", '0123', text, 8000:8000, 1.2.3]\nc: {d: null, e: ~, f: }\n"
    assert parsed(text).value == {
        "a": True,
        "b": [1, -2, 1.5, "on", "0123", "text", "8000:8000", "1.2.3"],
        "c": {"d": None, "e": None, "f": None},
    }
    assert parsed("").value is None


def test_every_key_and_value_knows_its_place() -> None:
    document = parsed("a:\n  - x\n  - b: {c: d}\n")
    assert document.mark(("a", 1, "b", "c")) == (3, 12)
    assert document.mark(("a", 1, "b", "c"), key=True) == (3, 9)
    assert document.mark(("a", 1, "b", "nothing", "here")) == (3, 8)


@pytest.mark.parametrize(
    "word",
    [
        "on",
        "On",
        "ON",
        "off",
        "yes",
        "Yes",
        "NO",
        "no",
        "y",
        "n",
        "True",
        "FALSE",
        "Null",
        "0123456",
        "0o17",
        "0x1F",
        "0b1",
        "1_000",
        "22:22",
        "1:30",
        "190:20:30.15",
        "2026-01-01",
        "2001-12-14T21:59:43.10-05:00",
        ".inf",
        "-.INF",
        ".nan",
        "1.",
        ".5",
        "1e3",
        "12345678901234567890",
        "=",
        "<<",
    ],
)
def test_ambiguous_words_must_be_quoted(word: str) -> None:
    (said,) = problems(f"a:\n  key: {word}\n")
    assert said.startswith("f.yml:2:8: a.key: ")
    assert "quotes" in said
    assert word in said
    assert parsed(f'a: "{word}"').value == {"a": word}
    (said,) = problems(f"{word}: a\n")
    assert said.startswith("f.yml:1:1: ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            'a: !!python/object/apply:os.system ["id"]',
            "f.yml:1:4: 'tag:yaml.org,2002:python/object/apply:os.system': tags",
        ),
        ("a: !!str 1", "tags are not allowed"),
        ("a: ! 1", "tags are not allowed"),
        ("a: &x [1]\nb: *x", "f.yml:1:4: '&x': anchors are not allowed"),
        ("b: *x", "aliases are not allowed"),
        ("<<: {a: b}", "merge keys are not allowed"),
        ("a: 1\nb: 2\na: 3", "f.yml:3:1: a: the same key twice, first in line 1"),
        ('a: {b: 1, "b": 2}', "a.b: the same key twice"),
        ("a: 1\n---\nb: 2", "one document"),
        ("%YAML 1.1\n---\na: 1", "directives"),
        ("? [a]\n: b", "a key must be text"),
        ("a: [1", "is not YAML: while parsing a flow sequence"),
        ("a: 'x\x1b[2J'", "control and invisible characters"),
        ("a: x\u202egnp.exe", "f.yml:1:5: '\\u202e'"),
        (b"a: 1\nbb: \xff\x00", "f.yml:2:5: b'\\xff': must be UTF-8"),
        (b"a: \x00", "control"),
        (b"\xff\xfea\x00", "must be UTF-8"),
        ("[" * 100_000, "nested at most 20 deep"),
        ("{a: " * 100_000, "nested at most 20 deep"),
        ("- " * 100_000, "nested at most 20 deep"),
    ],
)
def test_refused(text: str | bytes, said: str) -> None:
    found = problems(text)
    assert len(found) == 1
    assert said in found[0]


def test_an_alias_bomb_is_refused_at_its_first_anchor() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    (said,) = problems("\n".join(lines))
    assert "anchors are not allowed" in said


def test_size_is_limited(tmp_path: Path) -> None:
    assert "at most 1 MiB" in problems(b"#" * (LARGEST + 1))[0]
    path = tmp_path / "big.yml"
    path.write_bytes(b"#" * (LARGEST + 1))
    with pytest.raises(ConfigurationError, match="at most 1 MiB"):
        read(path)


def test_problems_are_collected_but_not_without_end() -> None:
    assert len(problems("[on, off, 0123]")) == 3
    assert len(problems("[" + "on, " * 10_000 + "]")) == 50


@pytest.mark.timeout(5)
def test_only_regular_files_are_read(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo.yml"
    os.mkfifo(fifo)
    for path in (fifo, tmp_path, tmp_path / "missing.yml"):
        with pytest.raises(ConfigurationError):
            read(path)


def test_a_wrong_secret_is_not_repeated() -> None:
    assert "0123456" not in problems("services: {shop: {secrets: {A: 0123456}}}")[0]


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**17), 10**17) | TEXT | st.sampled_from(["on", "1:30", "y", "0x1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_what_is_written_reads_back(value: object) -> None:
    document = parsed(yaml_text(value))
    assert document.value == value
    assert not document.problems


@given(st.binary(max_size=200) | TEXT.map(str.encode))
def test_any_bytes_give_a_document_or_a_configuration_error(data: bytes) -> None:
    try:
        parse(data, "f.yml")
    except ConfigurationError as error:
        assert error.message.startswith("f.yml has ")
