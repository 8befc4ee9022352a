"""What is wrong with a configuration file: where, what it says there, which rule it breaks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from lightship.errors import ConfigurationError
from lightship_agent.records import asdict, dataclass

__all__ = ["Problem", "configuration_error", "path_text", "shown"]

# Up to the last '@': what is wrong with an address may be a character of its password.
_USERINFO = re.compile(r"(?<=://).*@", re.DOTALL)
_LONGEST = 80


@dataclass(frozen=True)
class Problem:
    """One problem. ``line`` and ``column`` count from 1; 0 means the file as a whole."""

    file: str
    line: int
    column: int
    path: str
    rule: str
    value: str = ""
    hint: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        what = ": ".join(part for part in (self.path, self.value) if part)
        text = f"{place}: {what}: {self.rule}" if what else f"{place}: {self.rule}"
        return f"{text} ({self.hint})" if self.hint else text


def shown(value: object) -> str:
    """A value for people: control characters and the like escaped, long text cut, credentials in URLs removed."""
    if isinstance(value, dict):
        return "a map"
    if isinstance(value, (list, tuple)):
        return "a list"
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    # Credentials go before the text is cut: a cut URL would no longer look like one.
    text = _USERINFO.sub("***@", value) if isinstance(value, str) else value
    if isinstance(text, str) and len(text) > _LONGEST:
        return f"{text[:_LONGEST]!r}..."
    return repr(text)


def path_text(path: Sequence[str | int]) -> str:
    """``services.shop.ports[0]`` for ``("services", "shop", "ports", 0)``; keys that are no plain words are quoted."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif re.fullmatch(r"[A-Za-z0-9_-]{1,80}", part):
            text += f".{part}" if text else part
        else:
            text += f"[{shown(part)}]"
    return text


def configuration_error(file: str, problems: Sequence[Problem]) -> ConfigurationError:
    """The error that reports all ``problems``: as text in its message, for programs in its detail."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    lines = "\n".join(f"  {problem}" for problem in problems)
    detail: dict[str, Any] = {"file": file, "problems": [asdict(problem) for problem in problems]}
    return ConfigurationError(
        f"{file} has {count}:\n{lines}",
        hint="`lightship config schema` and docs/reference/configuration.md list every key",
        detail=detail,
    )
