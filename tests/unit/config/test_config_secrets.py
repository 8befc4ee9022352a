"""Secrets: no text shows them, each source works and fails without telling, redaction finds their disguises."""

from __future__ import annotations

import base64
import copy
import json
import logging
import pickle
import shlex
import sys
import traceback
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightship.config.schema import SecretSource
from lightship.config.secrets import Secret, redact, resolve, resolve_one
from lightship.errors import ConfigurationError

VALUE = "hunter2-geheim"


@pytest.mark.parametrize(
    "show",
    [
        str,
        repr,
        format,
        json.dumps,
        lambda s: f"{s} {s!r} {s!s:>20}",
        lambda s: "%s %r" % (s, s),  # noqa: UP031
        lambda s: json.dumps({"a": [s], s: 1}),
        lambda s: "".join([s, " x"]),
        lambda s: s + "x",
        lambda s: repr(pickle.dumps(s)),
        lambda s: repr(pickle.loads(pickle.dumps(s))),  # noqa: S301
        lambda s: repr([s, {"a": s}, ValueError(s)]),
        lambda s: str(s.encode()) + s.upper() + s[:],
        lambda s: logging.LogRecord("x", 1, "f", 1, "%s", (s,), None).getMessage(),
        lambda s: repr(ConfigurationError(s).as_dict()),
        lambda s: "".join(traceback.format_exception(RuntimeError(s))),
    ],
)
def test_a_secret_is_never_shown(show: Callable[[Secret], str]) -> None:
    text = show(Secret(VALUE))
    assert VALUE not in text
    assert VALUE.upper() not in text
    assert "***" in text


def test_a_secret_can_be_used() -> None:
    secret = Secret(VALUE)
    assert secret.reveal() == VALUE
    assert copy.deepcopy(secret).reveal() == copy.copy(secret).reveal() == VALUE
    assert secret == Secret(VALUE)
    assert secret != Secret("other")
    assert secret not in ("***", VALUE)
    assert len({secret, Secret(VALUE), Secret("other")}) == 2
    with pytest.raises(AttributeError):
        secret.anything = 1  # type: ignore[attr-defined]


def source(**keys: object) -> SecretSource:
    return SecretSource.model_validate(keys)


def resolved(tmp_path: Path, **keys: object) -> tuple[str, list[str]]:
    warnings: list[str] = []
    found = resolve({"A": source(**keys)}, tmp_path, warn=warnings.append, environment={"THERE": VALUE, "PATH": "/bin"})
    return found["A"].reveal(), warnings


def test_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(VALUE + "\n")
    path.chmod(0o600)
    assert resolved(tmp_path, file="key") == (VALUE, [])
    path.chmod(0o644)
    value, (warning,) = resolved(tmp_path, file="key")
    assert value == VALUE
    assert "chmod 600" in warning
    assert VALUE not in warning


def test_from_the_environment(tmp_path: Path) -> None:
    assert resolved(tmp_path, env="THERE") == (VALUE, [])


def test_from_a_command(tmp_path: Path) -> None:
    script = "import os; print(os.getcwd(), '$HOME; `id`')"
    assert resolved(tmp_path, command=[sys.executable, "-c", script])[0] == f"{tmp_path} $HOME; `id`"
    assert resolved(tmp_path, command=[sys.executable, "-c", "print('x\\r')"])[0] == "x"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"file": "missing"}, "cannot read"),
        ({"file": "empty"}, "empty"),
        ({"file": "lines"}, "more than one line"),
        ({"file": "binary"}, "not UTF-8"),
        ({"file": "huge"}, "longer than"),
        ({"file": "."}, None),
        ({"env": "MISSING"}, "is not set"),
        ({"command": ["no-such-command-here"]}, "cannot run"),
        (
            {"command": [sys.executable, "-c", f"print('{VALUE}'); raise SystemExit('bad {VALUE} x')"]},
            "status 1: bad *** x",
        ),
        ({"command": [sys.executable, "-c", "import time; time.sleep(60)"]}, "did not end"),
    ],
)
def test_failures_name_the_secret_and_not_its_value(
    tmp_path: Path, keys: dict[str, object], said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightship.config.secrets._COMMAND_SECONDS", 2.0 if said != "did not end" else 0.2)
    files = {
        "empty": b"\n",
        "lines": VALUE.encode() + b"\n\nx",
        "binary": b"\xff" + VALUE.encode(),
        "huge": b"x" * 70_000,
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    if keys == {"file": "."}:
        with pytest.raises(ValueError, match="must be a path"):
            source(**keys)
        return
    with pytest.raises(ConfigurationError, match="secret A: ") as caught:
        resolved(tmp_path, **keys)
    assert said in caught.value.message if said else True
    shown = "".join(traceback.format_exception(caught.value)) + str(caught.value.as_dict())
    assert VALUE not in shown.replace(repr(keys), "")


def test_one_source(tmp_path: Path) -> None:
    assert resolve_one("A", source(env="X"), tmp_path, warn=print, environment={"X": "y"}).reveal() == "y"
    assert str(source(file="a/b")) == "file a/b"
    assert str(source(env="X")) == "environment variable X"
    assert str(source(command=["pass", "show"])) == "command pass"


VALUES = st.text(st.characters(codec="utf-8", exclude_characters="*"), min_size=6, max_size=24).filter(
    lambda text: len(set(text)) > 3
)


@given(VALUES, st.sampled_from(["", "user:", "ab", "x"]), st.sampled_from(["", ":x", "zz"]))
def test_redaction_finds_disguises(value: str, before: str, after: str) -> None:
    secret = Secret(value)
    for disguise in (
        value,
        repr(value),
        ascii(value),
        repr(value.encode()),
        json.dumps(value),
        json.dumps(value, ensure_ascii=False),
        shlex.quote(value),
        urllib.parse.quote(value, safe=""),
        urllib.parse.quote(value),
        urllib.parse.quote_plus(value),
        value.encode().hex(),
    ):
        assert redact(f"{before}{disguise}{after}", [secret]).count("***") >= 1, disguise
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        text = encode((before + value + after).encode()).decode()
        assert "***" in redact(f"Authorization: Basic {text}", [secret])


def test_redaction_leaves_the_rest() -> None:
    assert redact("nothing here", [Secret("secret")]) == "nothing here"
    assert redact("a1b", [Secret("1")]) == "a1b"
    assert redact("x", []) == "x"
    assert redact("abcdefgh abcd", [Secret("abcd"), Secret("abcdefgh")]) == "*** ***"
