"""What a command and the pool of kept connections say to each other, and where they meet."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightship.errors import LightshipError
from lightship.model import Server
from lightship.operations.connections import Closed, Connections, Kept, Problem
from lightship.output.connections import closed_lines, connections_lines
from lightship.output.words import Line
from lightship.pool import wire
from lightship.pool.wire import LONGEST_PATH, Wanted, answer_of, encode, place, socket_path
from lightship_agent.records import asdict

AGENT = Path("/cache/agent-1.pyz")


def test_whatever_decides_how_a_connection_is_made_has_a_pool_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = {"HOME": "/home/ada", "SSH_AUTH_SOCK": "/tmp/agent", "LIGHTSHIP_SSH_CONFIG": ""}
    folder = Path("/run/user/1/lightship")
    paths = {socket_path(folder, usual | {name: "/another"}) for name in usual}
    assert len(paths | {socket_path(folder, usual)}) == 4
    assert socket_path(folder, usual | {"EDITOR": "vi"}) == socket_path(folder, usual)
    monkeypatch.setattr(wire, "__version__", "99.0")
    assert socket_path(folder, usual) not in paths


def test_the_place_is_made_for_its_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = _short(tmp_path, monkeypatch)
    assert place().parent == short / "lightship"
    assert place().parent.stat().st_mode & 0o777 == 0o700
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setenv("HOME", str(short))
    assert place().parent == short / ".cache" / "lightship"


def test_there_is_none_where_others_could_write_or_the_path_is_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = _short(tmp_path, monkeypatch)
    place().parent.chmod(0o770)
    with pytest.raises(LightshipError, match="others can write there"):
        place()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short / ("x" * LONGEST_PATH)))
    with pytest.raises(LightshipError, match="too long for a socket") as told:
        place()
    assert (told.value.code, "XDG_RUNTIME_DIR" in told.value.hint) == ("pool-place", True)
    (short / "file").touch()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short / "file"))
    with pytest.raises(LightshipError, match="Not a directory"):
        place()


def _short(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A name for the folder from which a socket's path is short enough, wherever the tests are run."""
    monkeypatch.chdir(folder)
    short = Path(f"/proc/{os.getpid()}/cwd")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short))
    return short


def test_the_same_way_is_the_same_connection_whatever_the_server_is_called() -> None:
    one = Wanted.of(Server("web1", "10.0.0.1", user="deploy"), AGENT)
    assert one.way == Wanted.of(Server("www", "10.0.0.1", user="deploy"), Path("/cache/agent-2.pyz")).way
    for other in (
        Server("web1", "10.0.0.2", user="deploy"),
        Server("web1", "10.0.0.1", user="root"),
        Server("web1", "10.0.0.1", user="deploy", port=2222),
        Server("web1", "10.0.0.1", user="deploy", sudo=True),
        Server("web1", "10.0.0.1", user="deploy", key_file="/k"),
    ):
        assert Wanted.of(other, AGENT).way != one.way
    assert Wanted(**json.loads(encode(asdict(one)))) == one
    assert one.login == Server("web1", "10.0.0.1", user="deploy")


@given(
    st.one_of(st.binary(max_size=200), st.recursive(st.none() | st.text(), st.lists).map(json.dumps).map(str.encode))
)
def test_what_cannot_be_understood_says_nothing(line: bytes) -> None:
    assert isinstance(answer_of(line), dict)


def test_neither_does_what_is_nested_without_end() -> None:
    assert answer_of(b"[" * 1_000_000) == {}


def test_people_see_what_is_kept_and_what_is_not() -> None:
    kept = (
        Kept("web1", "deploy", "10.0.0.1", 1.0, 299.9, 1, in_use=False),
        Kept("web10", "deploy", "10.0.0.10", 1.0, 30.0, 4, in_use=True),
    )
    shown = _text(connections_lines(Connections(kept, (Problem("web2", "no \x1b[2J answer"),), 7)))
    assert shown == [
        "web1   deploy@10.0.0.1  4 min left, used 1 time",
        "web10  deploy@10.0.0.10  in use, used 4 times",
        "web2 is not kept: no \\x1b[2J answer",
    ]
    assert "keep_connected" in _text(connections_lines(Connections()))[0]
    assert _text(closed_lines(Closed(1, 0))) == ["1 connection closed"]
    assert len(_text(closed_lines(Closed(2, 1)))) == 2


def _text(lines: list[Line]) -> list[str]:
    return ["".join(text for text, _ in line) for line in lines]
