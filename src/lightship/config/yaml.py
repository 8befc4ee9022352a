"""A strict reader of YAML: what is read is what stands there, and everything knows its line.

PyYAML parses; the values are made here. Text that one version of YAML reads as text and another as something else
(``on``, ``0123``, ``22:22``, ``2026-01-01``) is an error, because whoever wrote it meant one of the two. Tags, anchors,
aliases and merge keys are errors too: a configuration needs none of them (``defaults`` is for what services share), and
without them the result cannot be bigger than the file.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeAlias

from lightship.config.problems import Problem, configuration_error, path_text, shown
from lightship.errors import ConfigurationError
from lightship_agent.records import dataclass, field

__all__ = ["LARGEST", "Document", "KeyPath", "Mark", "is_plain_text", "parse", "read"]

LARGEST = 1024 * 1024
DEEPEST = 20
_MOST_PROBLEMS = 50

KeyPath: TypeAlias = tuple[str | int, ...]
Mark: TypeAlias = tuple[int, int]

_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})", re.ASCII)
_FLOAT = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})\.[0-9]{1,17}(?:[eE][-+]?[0-9]{1,2})?", re.ASCII)
# What YAML 1.1 or 1.2 reads as something other than text, in any of their spellings, and that is not read above.
_AMBIGUOUS = re.compile(
    r"(?:y|yes|n|no|on|off|true|false|null)"  # booleans and null, in the cases that are not read as such
    r"|[-+]?\.?[0-9][0-9_]*(?:\.[0-9_]*)?(?:e[-+]?[0-9]+)?"  # numbers: octal, with underscores, too long
    r"|[-+]?0(?:x[0-9a-f_]+|o[0-7_]+|b[01_]+)"
    r"|[-+]?\.(?:inf|nan)"
    r"|[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?"  # base 60: 22:22
    r"|[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:[Tt\s].*)?"  # dates
    r"|=|<<",
    re.ASCII | re.IGNORECASE,
)
_FORBIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]"
)


@dataclass(frozen=True)
class Document:
    """What a file says: its value, and the line and column of every key path in it: ``keys`` of the key, ``marks`` of
    what it holds.

    ``problems`` are those that do not hinder further validation; their values stand in ``value`` as text.
    """

    file: str
    value: Any
    marks: dict[KeyPath, Mark]
    keys: dict[KeyPath, Mark]
    problems: list[Problem] = field(default_factory=list)

    def mark(self, path: KeyPath, *, key: bool = False) -> Mark:
        """Where the value at ``path`` (or its key) stands, or else the nearest thing around it."""
        while path and path not in self.marks:
            path = path[:-1]
        value = self.marks.get(path, (0, 0))
        return self.keys.get(path, value) if key else value


def read(path: Path) -> Document:
    """The document in the file ``path``."""
    import os  # noqa: PLC0415
    import stat  # noqa: PLC0415

    try:
        # Without O_NONBLOCK, opening a FIFO would wait for somebody to write to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as stream:  # noqa: PTH123
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ConfigurationError(f"{path} is not a regular file")
            data = stream.read(LARGEST + 1)
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error
    return parse(data, path.name)


def parse(data: bytes, file: str) -> Document:
    """The document in ``data``; ``file`` is the name for error messages."""
    if len(data) > LARGEST:
        raise _error(file, (0, 0), "must be at most 1 MiB")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise _error(file, (line, column), "must be UTF-8", repr(data[error.start : error.start + 1])) from None
    if bad := _FORBIDDEN.search(text):
        at = bad.start()
        mark = (text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at))
        raise _error(file, mark, "control and invisible characters are not allowed", ascii(bad.group()))
    return _Reader(file).document(text)


def is_plain_text(text: str) -> bool:
    """Whether an unquoted ``text`` reads as just that text."""
    return not (text in ("", "~", "true", "false") or _INTEGER.fullmatch(text) or _AMBIGUOUS.fullmatch(text))


def _error(file: str, mark: Mark, rule: str, value: str = "", hint: str = "") -> ConfigurationError:
    return configuration_error(file, [Problem(file, *mark, "", rule, value, hint)])


@dataclass
class _Frame:
    """A list or map that is being read; ``key`` is the map's key whose value comes next."""

    value: Any
    path: KeyPath
    key: str | None = None
    skip: bool = False


class _Reader:
    """Builds the value from PyYAML's events, with a stack of its own: depth costs no recursion."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.marks: dict[KeyPath, Mark] = {}
        self.keys: dict[KeyPath, Mark] = {}
        self.problems: list[Problem] = []
        self.stack: list[_Frame] = []
        self.root: Any = None
        self.documents = 0

    def document(self, text: str) -> Document:
        import yaml  # noqa: PLC0415

        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        try:
            for event in yaml.parse(text, Loader=loader):
                self._event(event, type(event).__name__)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            place = (mark.line + 1, mark.column + 1) if mark else (0, 0)
            said = ", ".join(part for part in (error.context, error.problem) if part)
            raise _error(self.file, place, f"is not YAML: {said}") from None
        except yaml.YAMLError:
            raise _error(self.file, (0, 0), "is not YAML") from None
        except RecursionError:
            raise _error(self.file, (0, 0), f"may be nested at most {DEEPEST} deep") from None
        return Document(self.file, self.root, self.marks, self.keys, self.problems)

    def _event(self, event: Any, kind: str) -> None:
        mark = (event.start_mark.line + 1, event.start_mark.column + 1)
        if kind == "DocumentStartEvent":
            self.documents += 1
            if self.documents > 1:
                raise _error(self.file, mark, "must be one document: there is a second one after '---'")
            if event.version or event.tags:
                raise _error(self.file, mark, "directives (lines that begin with '%') are not allowed")
        elif kind == "AliasEvent":
            raise _error(self.file, mark, "aliases are not allowed", f"'*{event.anchor}'", "use `defaults`")
        elif kind in ("ScalarEvent", "SequenceStartEvent", "MappingStartEvent"):
            if event.anchor:
                raise _error(self.file, mark, "anchors are not allowed", f"'&{event.anchor}'", "use `defaults`")
            if event.tag:
                raise _error(self.file, mark, "tags are not allowed", shown(event.tag), "write text in quotes")
            if kind == "ScalarEvent":
                self._scalar(event, mark)
            else:
                self._open({} if kind == "MappingStartEvent" else [], mark)
        elif kind in ("SequenceEndEvent", "MappingEndEvent"):
            self.stack.pop()

    def _open(self, value: Any, mark: Mark) -> None:
        if len(self.stack) >= DEEPEST:
            raise _error(self.file, mark, f"may be nested at most {DEEPEST} deep")
        if self.stack and isinstance(self.stack[-1].value, dict) and self.stack[-1].key is None:
            raise _error(
                self.file, mark, "a key must be text", shown(value), "write text that begins with { or [ in quotes"
            )
        path = self._place(mark)
        self._put(value)
        self.stack.append(_Frame(value, path))

    def _scalar(self, event: Any, mark: Mark) -> None:
        plain = event.style in (None, "")
        if self.stack and isinstance(self.stack[-1].value, dict) and self.stack[-1].key is None:
            self._key(self.stack[-1], event.value, plain, mark)
            return
        path = self._place(mark)
        self._put(self._value(event.value, path, mark) if plain else event.value)

    def _key(self, frame: _Frame, key: str, plain: bool, mark: Mark) -> None:
        path = (*frame.path, key)
        if plain and not is_plain_text(key):
            hint = "merge keys are not allowed; use `defaults`" if key == "<<" else "write it in quotes"
            self._problem(path, mark, "a key must be text, and this is not read as text everywhere", key, hint)
        if key in frame.value:
            first = self.keys[path][0]
            self._problem(path, mark, f"the same key twice, first in line {first}", "", "")
            frame.skip = True
        else:
            self.keys[path] = mark
        frame.key = key

    def _place(self, mark: Mark) -> KeyPath:
        """The path of the value that comes now; remembers where it stands."""
        path: KeyPath = ()
        if self.stack:
            frame = self.stack[-1]
            path = (*frame.path, len(frame.value) if isinstance(frame.value, list) else frame.key or "")
        self.marks.setdefault(path, mark)
        return path

    def _put(self, value: Any) -> None:
        if not self.stack:
            self.root = value
            return
        frame = self.stack[-1]
        if isinstance(frame.value, list):
            frame.value.append(value)
            return
        if not frame.skip:
            frame.value[frame.key] = value
        frame.key, frame.skip = None, False

    def _value(self, text: str, path: KeyPath, mark: Mark) -> Any:
        if text in ("", "~", "null"):
            return None
        if text in ("true", "false"):
            return text == "true"
        if _INTEGER.fullmatch(text):
            return int(text)
        if _FLOAT.fullmatch(text):
            return float(text)
        if _AMBIGUOUS.fullmatch(text):
            self._problem(path, mark, "is not read as the same thing by every YAML reader", text, "write it in quotes")
        return text

    def _problem(self, path: KeyPath, mark: Mark, rule: str, value: str, hint: str) -> None:
        value = "" if not value or "secrets" in path[:-1] else shown(value)
        self.problems.append(Problem(self.file, *mark, path_text(path), rule, value, hint))
        if len(self.problems) >= _MOST_PROBLEMS:
            raise configuration_error(self.file, self.problems)
