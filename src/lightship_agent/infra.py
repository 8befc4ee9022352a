"""The infrastructure's files at a commit, found in time that follows the size of the change.

To list every file of a repository of 50,000 and hold each against the patterns takes half a second, twice for a
comparison. So what was found for one commit is kept in state/, and another commit's files follow from it by the
difference between the two.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence

from lightship_agent import TYPE_CHECKING, VERSION
from lightship_agent.errors import AgentFailure
from lightship_agent.failpoints import fail_point, register
from lightship_agent.git import Mirror, glob_match, infra_id
from lightship_agent.paths import ServicePaths
from lightship_agent.system import atomic_write, read_trusted

if TYPE_CHECKING:
    from typing import Any

__all__ = ["infra_at", "infra_from", "infra_of_both"]

register(infra__keep="the infrastructure's files of a commit are about to be written down")

_NAME = "infra.json"
_FORM = 2
"""Of what is kept; another one is not understood."""
_MAX = 4 * 1024 * 1024

Files = dict[str, str]
"""path -> ``git.infra_id``"""


def infra_of_both(
    paths: ServicePaths, mirror: Mirror, commit: str, live: str | None, globs: Sequence[str], *, keep: bool
) -> tuple[Files, Files | None]:
    """The files of a commit that match, and those of the one that is live, if one is."""
    known = _read(paths, globs)
    found = infra_at(paths, mirror, commit, globs, keep=keep)
    if live is None or live == commit:
        return found, found if live else None
    if known is not None and known[0] == live:
        return found, known[1]
    return found, infra_from(mirror, commit, found, live, globs)


def infra_at(paths: ServicePaths, mirror: Mirror, commit: str, globs: Sequence[str], *, keep: bool) -> Files:
    """The files of a commit that match. ``keep`` (only with the service's lock) writes them down for the next time."""
    known = _read(paths, globs)
    found: Files | None = None
    if known is not None:
        base, files = known
        if base == commit:
            return files
        # It fails in a mirror that was made anew, without that commit.
        with contextlib.suppress(AgentFailure):
            found = infra_from(mirror, base, files, commit, globs)
    if found is None:
        found = mirror.infra_files(commit, globs)
    if keep:
        fail_point("infra.keep")
        data = json.dumps({"version": VERSION, "form": _FORM, "commit": commit, "globs": list(globs), "files": found})
        # Nothing is lost with it, and one that was torn by a power cut is no JSON.
        atomic_write(paths.state / _NAME, data.encode(), 0o600, durable=False)
    return found


def infra_from(mirror: Mirror, base: str, files: Mapping[str, str], commit: str, globs: Sequence[str]) -> Files:
    """The files of ``commit`` that match, from those of ``base``."""
    rules = [glob_match(pattern) for pattern in globs]
    found = dict(files)
    for change in mirror.differences(base, commit):
        name = change.path.decode("utf-8", "surrogateescape")
        if not any(rule.fullmatch(name) for rule in rules):
            continue
        if change.new_mode:
            found[name] = infra_id(change.new_mode, change.oid)
        else:
            found.pop(name, None)
    return found


def _read(paths: ServicePaths, globs: Sequence[str]) -> tuple[str, Files] | None:
    """The commit that was looked at last and its files; None when other patterns or another agent did."""
    try:
        kept: Any = json.loads(read_trusted(paths.state / _NAME, _MAX) or b"")
        asked: list[str] = list(globs)
        if (kept["version"], kept["form"], kept["globs"]) != (VERSION, _FORM, asked):
            return None
        files = kept["files"].items()
        return str(kept["commit"]), {str(path): str(oid) for path, oid in files}
    except (ValueError, TypeError, KeyError, AttributeError, AgentFailure):
        return None
