"""The traces on this machine: private, bounded, told apart by service, and never in a deploy's way."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from lightship.trace.spans import MOST_SPANS, Span, Trace
from lightship.trace.store import KEPT, MOST_SERVICES, Store

ROOT = Span("deploy", 0.0, 2.0, children=(Span("prepare", 0.5, 1.5, "web1", "phase", "failed"),))


def trace(number: int = 1, **changes: Any) -> Trace:
    values = {"outcome": "done", "kind": "code", "ref": "main", "commit": "b" * 40, "outcomes": {"web1": "done"}}
    return Trace(f"{number:032x}", "deploy", "shop", 1700000000.0 + number, "me", ROOT, servers=1, **values | changes)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def test_what_was_kept_comes_back_the_newest_first() -> None:
    store = Store("shop", "/a/lightship.yml", "")
    assert list(store.traces()) == []
    for number in (2, 3, 1):
        assert store.keep(trace(number))
    assert list(store.traces()) == [trace(3), trace(2), trace(1)]


def test_they_are_bounded_and_for_nobody_else(state: Path) -> None:
    store = Store("shop")
    for number in range(KEPT + 3):
        store.keep(trace(number))
    files = list(store.directory.iterdir())
    assert len(files) == KEPT
    assert next(store.traces()) == trace(KEPT + 2)
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert store.directory.stat().st_mode & 0o777 == 0o700
    assert store.directory.is_relative_to(state / "lightship")


def test_services_of_one_name_are_told_apart() -> None:
    places = [("shop", "/a/lightship.yml", ""), ("shop", "/b/lightship.yml", ""), ("shop", "/a/lightship.yml", "x")]
    stores = [Store(*place) for place in places]
    for number, store in enumerate(stores):
        store.keep(trace(number))
    assert [[one.id for one in store.traces()] for store in stores] == [[trace(n).id] for n in range(3)]


def test_of_very_many_services_the_ones_deployed_last_are_kept() -> None:
    stores = [Store(f"shop{number}") for number in range(MOST_SERVICES + 3)]
    for number, store in enumerate(stores):
        store.keep(trace(number))
        os.utime(store.directory, (number + 1, number + 1))
    assert sum(1 for _ in stores[0].directory.parent.iterdir()) == MOST_SERVICES
    assert [len(list(store.traces())) for store in stores[:4]] == [0, 0, 0, 1]
    assert next(stores[-1].traces()) == trace(MOST_SERVICES + 2)


def test_what_cannot_be_kept_is_no_error(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state.write_text("a file")
    assert not Store("shop").keep(trace())
    assert list(Store("shop").traces()) == []
    state.unlink()
    Store("shop").directory.mkdir(parents=True)
    Store("shop").directory.chmod(0o777)
    assert not Store("shop").keep(trace()), "somebody else could have put something there"
    assert list(Store("shop").traces()) == []
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(Path, "home", _homeless)
    assert not Store("shop").keep(trace())


def _homeless() -> Path:
    raise RuntimeError("no home")


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"\xff\0", b'{"id":1}', b"[" * 5000, b'{"id":"' + b"0" * 32 + b'"}']
)
def test_what_is_no_trace_is_passed_over(data: bytes) -> None:
    store = Store("shop")
    store.keep(trace(1))
    (store.directory / f"1800000000000-{'f' * 32}.json").write_bytes(data)
    os.mkfifo(store.directory / "fifo")
    assert list(store.traces()) == [trace(1)]


def deep(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {"name": "x", "start": 0, "end": 1}
    for _ in range(levels):
        value = {"name": "x", "start": 0, "end": 1, "spans": [value]}
    return value


HOSTILE_ROOTS: list[Any] = [
    {"name": 5, "start": float("nan"), "end": float("inf")},
    {"name": "x", "start": 10**400, "end": -1},
    {"name": "x", "start": 5, "end": 1},
    {"name": "x" * 10**6, "start": 0, "end": 1, "server": ["a"], "grade": "king", "state": {}},
    {"name": "x", "start": 0, "end": 1, "spans": {"a": 1}},
    {"name": "x", "start": 0, "end": 1, "spans": [None, 1, "x", {"start": -5, "end": 99}]},
    {"name": "x", "start": 0, "end": 1, "spans": [{"name": "y"}] * (MOST_SPANS * 2)},
    deep(30),
    json.loads('{"name": "\\ud800", "start": 1e308, "end": 1e308}'),
]


@pytest.mark.parametrize("root", HOSTILE_ROOTS, ids=range(len(HOSTILE_ROOTS)))
def test_whatever_a_server_says_a_trace_is_small_and_its_spans_lie_in_one_another(root: Any) -> None:
    found = Trace.from_json({**trace().as_dict(), "root": root, "outcomes": {"a": "king", "b" * 999: "done"}})
    assert found is not None
    spans = list(found.root.walk())
    assert len(spans) <= MOST_SPANS
    for span in spans:
        assert len(span.name) <= 80
        assert 0 <= span.start <= span.end <= 1e9
        assert all(span.start <= one.start <= one.end <= span.end for one in span.children)
    assert found.outcomes == {"b" * 80: "done"}


@pytest.mark.parametrize(
    "change",
    [{"id": "x"}, {"id": "A" * 32}, {"id": None}, {"root": None}, {"root": []}, {"began": "now"},
     {"began": float("nan")}, {"began": 1e300}],
)  # fmt: skip
def test_without_an_id_a_time_and_spans_it_is_no_trace(change: dict[str, Any]) -> None:
    assert Trace.from_json({**trace().as_dict(), **change}) is None


def test_other_words_of_a_server_are_left_out() -> None:
    wrong = {"outcome": "king", "kind": ["code"], "commit": "HEAD", "previous": 5, "servers": -3, "who": "x" * 999}
    found = Trace.from_json({**trace().as_dict(), **wrong})
    assert found is not None
    assert (found.outcome, found.kind, found.commit, found.previous, found.servers) == ("", "", None, None, 0)
    assert len(found.who) == 200
