"""What may be said of names, refs, URLs and paths that come from outside.

Every rule is an allow-list that must match the whole string; nothing is cleaned up or guessed. What does not match
raises ``ProtocolError`` with the code ``bad-value`` before anything was done.

Rules are texts, here as in all of the agent: ``re`` compiles one when it is first used, and keeps it. To compile all of
them whenever an agent starts costs more than what most agents do with them.
"""

from __future__ import annotations

import re

from lightship_agent.errors import ProtocolError

__all__ = [
    "printable",
    "redact_text",
    "redact_url",
    "valid_branch",
    "valid_commit",
    "valid_path",
    "valid_service",
    "valid_url",
]

_COMMIT = r"[0-9a-f]{40}"
_SERVICE = r"[a-z0-9][a-z0-9-]{0,62}"
_BRANCH = r"[A-Za-z0-9_#@][A-Za-z0-9_#@.+=,%/-]{0,199}"

_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252})|\[[0-9A-Fa-f:.]{2,45}\])"
_PORT = r"(?::[0-9]{1,5})?"
_USER = r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,63}"
_PATH = r"/[A-Za-z0-9._~%+,=:@/-]{0,1024}"
_USERINFO = r"[A-Za-z0-9._~%!$&'()*+,;=][A-Za-z0-9._~%!$&'()*+,;=:-]{0,1024}"
_URLS = (
    _PATH,
    rf"(?P<scheme>https)://(?:(?P<secret>{_USERINFO})@)?(?P<rest>{_HOST}{_PORT}{_PATH})",
    rf"ssh://(?:{_USER}@)?{_HOST}{_PORT}{_PATH}",
    # Credentials would go over the wire for all to read.
    rf"http://{_HOST}{_PORT}{_PATH}",
    rf"file://{_PATH}",
    # scp-like. What has :// is a URL, and none but those above.
    rf"(?:{_USER}@)?{_HOST}:(?![-/:])[A-Za-z0-9._~%+,=/-]{{1,1024}}",
    rf"(?:{_USER}@)?{_HOST}:(?!//){_PATH}",
)
_SHOWN = 80
_NAME_BYTES = 255
_PATH_BYTES = 1024
# Userinfo in running text. Possessive-like: no white space, no slash, so one scan is enough.
_TEXT_USERINFO = r"([A-Za-z][A-Za-z0-9+.-]{0,15}://)([^\s/'\"<>]*)@"


def printable(value: object) -> str:
    """The value as ASCII that cannot move a cursor or hide a character, at most 80 characters long."""
    # Cut before it is escaped: a value may be megabytes long.
    text = ascii(value[: _SHOWN + 1] if isinstance(value, (str, bytes)) else type(value).__name__)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _bad(field: str, shown: object, rule: str) -> ProtocolError:
    return ProtocolError(
        "bad-value",
        f"{field}: {printable(shown)} is not allowed: {rule}",
        detail={"field": field, "rule": rule},
    )


def valid_commit(value: object, field: str = "commit") -> str:
    """A full commit id: 40 lower-case hexadecimal digits."""
    if isinstance(value, str) and re.fullmatch(_COMMIT, value):
        return value
    raise _bad(field, value, "a commit is 40 lower-case hexadecimal digits")


def valid_service(value: object, field: str = "service") -> str:
    """The name of a service: 1 to 63 of a-z, 0-9 and '-', not starting with '-'."""
    if isinstance(value, str) and re.fullmatch(_SERVICE, value):
        return value
    raise _bad(field, value, "a service is 1 to 63 of a-z, 0-9 and '-', and starts with a letter or a digit")


def valid_branch(value: object, field: str = "branch") -> str:
    """The name of a branch or a tag, without ``refs/heads/``: a part of what git's check-ref-format takes."""
    if isinstance(value, str) and re.fullmatch(_BRANCH, value) and value != "@" and ".." not in value:
        parts = value.split("/")
        if not any(part == "" or part.startswith((".", "-")) or part.endswith((".", ".lock")) for part in parts):
            return value
    raise _bad(
        field,
        value,
        "a branch is at most 200 of A-Z a-z 0-9 _ # @ . + = , % / -, without '..', with no part that is empty, starts "
        "with '.' or '-', or ends in '.' or '.lock'",
    )


def valid_url(value: object, field: str = "repository") -> str:
    """The address of a git repository, of a kind that cannot be taken for an option or run a program."""
    if isinstance(value, str) and any(re.fullmatch(rule, value) for rule in _URLS):
        return value
    raise _bad(
        field,
        redact_url(value) if isinstance(value, str) else value,
        "a repository is https://, http://, ssh:// or file:// with a plain host and path, user@host:path, "
        "or an absolute path, without white space; only https takes credentials",
    )


def valid_path(value: object, field: str = "path") -> str:
    """A relative path that stays inside a tree, in its plain form ('a/b', not './a//b/')."""
    rule = "a path is relative, has no part that is empty, '.', '..' or '.git', no backslash and no control character"
    if not isinstance(value, str) or not value.isprintable() or "\\" in value:
        raise _bad(field, value, rule)
    parts = value.split("/")
    if any(part in ("", ".", "..") or part.lower() == ".git" for part in parts):
        raise _bad(field, value, rule)
    if len(value.encode()) > _PATH_BYTES or any(len(part.encode()) > _NAME_BYTES for part in parts):
        raise _bad(field, value, f"a path has at most {_PATH_BYTES} bytes, its parts {_NAME_BYTES}")
    return value


def redact_url(url: str) -> str:
    """The URL without what may be a secret. Of https, the user goes too: tokens are often given as the user."""
    for rule in _URLS:
        match = re.fullmatch(rule, url)
        if match is None:
            continue
        if match.groupdict().get("secret"):
            return f"{match['scheme']}://***@{match['rest']}"
        return url
    # Not one we take: it is only shown, so rather hide too much.
    scheme, mark, rest = url.rpartition("@")
    if not mark:
        return url
    prefix = re.match(r"[A-Za-z][A-Za-z0-9+.-]{0,15}://", scheme)
    return f"{prefix.group() if prefix else ''}***@{rest}"


def redact_text(text: str) -> str:
    """Running text (git's messages) with the userinfo of every URL in it hidden."""
    return re.sub(_TEXT_USERINFO, _redact_match, text)


def _redact_match(match: re.Match[str]) -> str:
    keep = match[1].lower() == "ssh://" and ":" not in match[2]
    return match.group() if keep else f"{match[1]}***@"
