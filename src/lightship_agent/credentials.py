"""The credentials of a repository's address, kept out of git's arguments.

Every process of the server can read another one's arguments; git even hands an address on to the next program that it
starts. So git gets the address without them, and asks a helper, which has them from its environment. That helper is
the only one: none of root's own is told of them (it might keep them).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from lightship_agent.errors import ProtocolError
from lightship_agent.records import dataclass, field

__all__ = ["Access", "access"]

_ADDRESS = r"(?s)(https://)([^/@]*)@([^/@]+)(/.*)"
# Run by a shell, and therefore without a word of anybody else's in it.
_HELPER = (
    '!f() { test "$1" = get && printf "username=%s\\npassword=%s\\n" "$LIGHTSHIP_GIT_USER" "$LIGHTSHIP_GIT_PASSWORD"; '
    "}; f"
)


@dataclass(frozen=True)
class Access:
    """How git is to be started: the address, settings for ``-c``, and variables to be added to its environment."""

    url: str
    settings: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict, repr=False)


def access(url: str) -> Access:
    """Take the credentials out of an address that ``names.valid_url`` has passed."""
    match = re.fullmatch(_ADDRESS, url) if url.startswith("https:") else None
    if match is None:
        return Access(url)
    scheme, userinfo, host, path = match.groups()
    user, _, password = userinfo.partition(":")
    env = {"LIGHTSHIP_GIT_USER": _decoded(user), "LIGHTSHIP_GIT_PASSWORD": _decoded(password)}
    # The first empties the list of helpers; the second is asked for this host alone, should it send git elsewhere.
    return Access(scheme + host + path, ("credential.helper=", f"credential.{scheme}{host}.helper={_HELPER}"), env)


def _decoded(text: str) -> str:
    found = re.sub(rb"%([0-9A-Fa-f]{2})", lambda match: bytes([int(match[1], 16)]), text.encode())
    if re.search(rb"[\x00-\x1f\x7f]", found):
        # A line feed would be a line of its own in what git reads from the helper.
        raise ProtocolError("bad-value", "repository: its credentials hold a control character")
    return os.fsdecode(found)
