"""What ``--json`` prints: one object in an envelope of a fixed shape.

``version`` grows when a key changes its meaning or goes away; new keys may come at any time. JSON escapes control
characters by itself, and ``ensure_ascii`` the rest, so that the output is inert on a terminal as well.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from lightship.errors import LightshipError
from lightship_agent.records import fields, is_record

__all__ = ["VERSION", "dumps", "envelope", "plain"]

VERSION = 1


def plain(value: Any) -> Any:  # noqa: PLR0911 - one for each kind of value
    """A result as JSON knows it: frozen values become objects, errors their ``as_dict``, the rest its text."""
    if isinstance(value, LightshipError):
        return plain(value.as_dict())
    if is_record(value):
        return {one.name: plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(one) for one in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return str(value)


def envelope(
    command: str, result: Any = None, *, error: LightshipError | None = None, exit_status: int = 0
) -> dict[str, Any]:
    """The one shape of all answers. A result may come with an error: what was done before it failed."""
    status = exit_status or (error.exit_status if error is not None else 0)
    return {
        "version": VERSION,
        "command": command,
        "ok": status == 0 and error is None,
        "exit_status": status,
        "result": plain(result),
        "error": None if error is None else plain(error.as_dict()),
    }


def dumps(document: Mapping[str, Any]) -> str:
    """The envelope as text."""
    return json.dumps(document, indent=2, ensure_ascii=True, allow_nan=False)
