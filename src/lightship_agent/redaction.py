"""Takes the service's secrets out of what the agent tells and keeps.

The controller does the same with the values that it knows; but a rollback needs none of them, and the container may
still have the value of before the last change. What the containers were given lies on this server, in their files of
variables; which of those are secrets is written down beside them, by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping

from lightship_agent import TYPE_CHECKING
from lightship_agent.failpoints import fail_point, register
from lightship_agent.instance import env_files
from lightship_agent.paths import ServicePaths
from lightship_agent.system import atomic_write, read_trusted

if TYPE_CHECKING:
    from typing import Any

__all__ = ["Redaction", "parts"]

register(secrets__names="the names of the service's secrets are about to be written down")

HIDDEN = "***"
# Taking every "1" out of a text would say what the secret is.
_SHORTEST = 4
# A shorter word of a secret file is hardly its secret.
_WORD = 8
_MAX = 1024 * 1024
# Nothing is cut to less than this.
_CUT = 290
# Under these keys lies what a program, an engine or the service itself said; names and numbers are left alone.
_TEXTS = ("error", "hint", "log", "message", "output", "problem", "reason", "schema", "stderr", "text", "traceback")


class Redaction:
    """What is known of a service's secrets."""

    def __init__(self) -> None:
        self._forms: set[str] = set()
        self._pattern: re.Pattern[str] | None = None

    def load(self, paths: ServicePaths) -> None:
        """Know the secrets of every container that this server still has the variables of."""
        names = _names(paths)
        if names:
            self.learn(value for env in env_files(paths) for name, value in _variables(env) if name in names)

    def remember(self, paths: ServicePaths, names: Collection[str], env: Mapping[str, str]) -> None:
        """Know the secrets of a container that is about to be made, and write down their names."""
        known = _names(paths)
        if known is None or not known.issuperset(names):
            data = json.dumps(sorted({*(known or ()), *names})).encode()
            fail_point("secrets.names")
            atomic_write(paths.secret_names, data, 0o600)
        self.learn(env[name] for name in names if name in env)

    def learn(self, values: Iterable[str]) -> None:
        """From now on these are not to be seen."""
        for value in values:
            if len(value) >= _SHORTEST:
                self._forms.update(_forms(value))
        # The longest first, so that a form which contains another one goes as a whole.
        ordered = sorted(self._forms, key=lambda form: (-len(form), form))
        self._pattern = re.compile("|".join(map(re.escape, ordered))) if ordered else None

    def text(self, text: str) -> str:
        """A text without them; one that is so long that it may have been cut may begin or end within one."""
        if self._pattern is None:
            return text
        found = self._pattern.sub(HIDDEN, text)
        for form in self._forms if len(text) >= _CUT else ():
            for size in range(min(len(form), len(found)) - 1, _SHORTEST, -1):
                if found.startswith(form[-size:]):
                    found = HIDDEN + found[size:]
                if found.endswith(form[:size]):
                    found = found[:-size] + HIDDEN
        return found

    def clean(self, value: Any) -> Any:
        """A value of JSON without them: every text that somebody else may have written."""
        return value if self._pattern is None else self._cleaned(value, told=False)

    def _cleaned(self, value: Any, *, told: bool) -> Any:
        if isinstance(value, str):
            return self.text(value) if told else value
        if isinstance(value, dict):
            return {key: self._cleaned(inner, told=key in _TEXTS) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._cleaned(inner, told=told) for inner in value]
        return value


def parts(value: str) -> list[str]:
    """A secret of several lines and what a program may show of it by itself: its lines, and the longer words."""
    lines = [line.strip() for line in value.splitlines()]
    return [value, *lines, *(word for word in value.split() if len(word) >= _WORD)] if len(lines) > 1 else [value]


def _names(paths: ServicePaths) -> set[str] | None:
    """The names that are written down; None when nothing is."""
    try:
        found = json.loads(read_trusted(paths.secret_names, _MAX) or b"null")
    except (ValueError, OSError):
        return None
    return {name for name in found if isinstance(name, str)} if isinstance(found, list) else None


def _variables(data: bytes) -> Iterator[tuple[str, str]]:
    for line in data.decode("utf-8", "replace").split("\n"):
        name, mark, value = line.partition("=")
        if mark:
            yield name, value


def _forms(value: str) -> set[str]:
    """The ways in which a program is likely to write ``value``."""
    import base64  # noqa: PLC0415 - most services have no secrets, and then nobody pays for it
    import shlex  # noqa: PLC0415
    import urllib.parse  # noqa: PLC0415

    data = value.encode("utf-8", "surrogatepass")
    as_json, as_json_plain = json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]
    forms = {value, repr(value)[1:-1], ascii(value)[1:-1], repr(data)[2:-1], as_json, as_json_plain, data.hex()}
    forms |= {as_json.replace("/", "\\/"), value.replace('"', '\\"'), value.replace("'", "\\'"), shlex.quote(value)}
    for safe in ("", "/"):
        forms |= {urllib.parse.quote(data, safe=safe), urllib.parse.quote_plus(data, safe=safe)}
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for lead in range(3):
            # The value may stand anywhere in what was encoded: without the characters that its neighbours decide.
            text = encode(b"\0" * lead + data).decode("ascii").rstrip("=")
            forms.add(text[(0, 2, 3)[lead] : len(text) - (1 if (len(data) + lead) % 3 else 0)])
    return {form for form in forms if len(form) >= _SHORTEST}
