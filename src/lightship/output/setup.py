"""What ``lightship setup`` found and did, as lines of text."""

from __future__ import annotations

from collections.abc import Sequence

from lightship.operations.setup import HostKey, ServerSetup, SetupResult
from lightship.output.text import printable
from lightship.output.words import Line, Style, error_lines

__all__ = ["key_lines", "plan_lines", "result_lines"]

_STATES: dict[str, tuple[str, Style]] = {"ok": ("ok", "good"), "change": ("change", "warn"), "person": ("you", "bad")}
_WIDE = 13


def key_lines(key: HostKey) -> list[Line]:
    """A host key that is not known."""
    return [
        [(printable(key.server), "name"), (f" ({printable(key.host)}): its host key is not known", "")],
        [("  ", ""), (f"{printable(key.algorithm)} {printable(key.fingerprint)}", "bold")],
        [("  compare it with what `ssh-keygen -lf` says on the server of its key in /etc/ssh", "dim")],
    ]


def plan_lines(servers: Sequence[ServerSetup]) -> list[Line]:
    """Each server's items."""
    lines: list[Line] = []
    for one in servers:
        lines.append([(printable(one.server), "name")])
        for item in one.items:
            word, style = _STATES[item.state]
            lines.append([(f"  {word:<7}", style), (f"{item.name:<{_WIDE}}", ""), (printable(item.message), "")])
            if item.hint:
                lines.append([(" " * (9 + _WIDE), ""), (printable(item.hint), "dim")])
        if one.error is not None:
            lines += [[("  ", ""), *line] for line in error_lines(one.error, verbose=True)]
    return lines


def result_lines(result: SetupResult) -> list[Line]:
    """How it ended. The plan was shown already; where something changed, how the servers are now."""
    recorded = sum(one.recorded for one in result.host_keys)
    lines: list[Line] = []
    if any(one.changed or one.error for one in result.servers) and not result.dry_run:
        lines += plan_lines(result.servers)
    if recorded:
        lines.append([(f"{recorded} host key{'s' if recorded > 1 else ''} recorded", "")])
    if result.dry_run:
        return [*lines, [("nothing was changed (--dry-run)", "bold")]]
    ready = sum(one.ready for one in result.servers)
    changed = f"{result.changed} changed" if result.changed else "nothing to change"
    if ready < len(result.servers):
        changed = f"{result.changed} changed"
    style: Style = "good" if ready == len(result.servers) else "bad"
    return [*lines, [(f"{ready} of {len(result.servers)} servers ready", style), (f", {changed}", "")]]
