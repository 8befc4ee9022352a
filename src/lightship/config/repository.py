"""The address of a git repository: what is allowed, and how it is shown."""

from __future__ import annotations

import re
from typing import Any

from lightship.config.rules import RuleError
from lightship.config.secrets import HIDDEN, Hidden

__all__ = ["Repository"]

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9A-Fa-f:.]{{2,45}}\])"
_PORT = r"(?::(?P<port>[0-9]{1,5}))?"
_USER = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}"
# As in a URL: what has a meaning of its own there is written as %XX.
_CREDENTIALS = r"[A-Za-z0-9._~!$&'()*+,;=%-]{1,512}(?::[A-Za-z0-9._~!$&'()*+,;=%-]{0,1024})?"
_SEGMENT = r"(?!\.{1,2}(?:/|$))[A-Za-z0-9._~@+%][A-Za-z0-9._~@+%=-]*"
_PATH = rf"(?:/{_SEGMENT})+/?"

_FORMS = (
    rf"https://(?:(?P<credentials>{_CREDENTIALS})@)?{_HOST}{_PORT}{_PATH}",
    rf"http://{_HOST}{_PORT}{_PATH}",
    rf"ssh://(?:{_USER}@)?{_HOST}{_PORT}{_PATH}",
    rf"(?:{_USER}@){_HOST}:/?{_SEGMENT}(?:/{_SEGMENT})*/?",
    rf"(?:file://)?{_PATH}",
)
_WORDS = (
    "a repository: https://host/path, http://host/path, ssh://[user@]host[:port]/path, user@host:path, "
    "or an absolute path on the server"
)
_LONGEST = 2000


class Repository(Hidden):
    """A repository's address. As text it lacks the credentials; :meth:`reveal` has them, for git alone."""

    __slots__ = ()

    def access(self) -> tuple[str, tuple[str, str] | None]:
        """The address without credentials, and the user and the password if there are any, decoded."""
        from urllib.parse import unquote  # noqa: PLC0415

        address = self.reveal()
        match = re.fullmatch(r"(https://)([^/@]*)@([^/@]+/.*)", address)
        if match is None:
            return address, None
        user, _, password = match[2].partition(":")
        return match[1] + match[3], (
            unquote(user, errors="surrogateescape"),
            unquote(password, errors="surrogateescape"),
        )

    def __new__(cls, address: str) -> Repository:
        """Check ``address`` against the allowed forms."""
        if not isinstance(address, str):
            raise RuleError(f"must be {_WORDS}")
        match = next((found for form in _FORMS if (found := re.fullmatch(form, address, re.ASCII))), None)
        if match is None or len(address) > _LONGEST:
            raise RuleError(f"must be {_WORDS}", _hint(address))
        groups = match.groupdict()
        if groups.get("port") and not 1 <= int(groups["port"]) <= 65535:  # noqa: PLR2004
            raise RuleError(f"must be {_WORDS}; a port is 1 to 65535")
        harmless = address
        if groups.get("credentials"):
            if re.search(r"%(?:[01][0-9A-Fa-f]|7[Ff])", groups["credentials"]):
                raise RuleError(f"must be {_WORDS}; its credentials may not hold a control character")
            start, end = match.span("credentials")
            harmless = address[:start] + HIDDEN + address[end:]
        made = super().__new__(cls, address, harmless)
        assert isinstance(made, Repository)  # noqa: S101
        return made

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """Pydantic: an address as text, or one that was checked before."""
        from pydantic_core import core_schema  # noqa: PLC0415

        return core_schema.no_info_plain_validator_function(
            lambda value: value if isinstance(value, cls) else cls(value),
            serialization=core_schema.plain_serializer_function_ser_schema(str.__str__),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> dict[str, Any]:
        """JSON Schema: any of the forms."""
        pattern = re.sub(r"\?P<[a-z]+>", "?:", "|".join(_FORMS))
        return {"type": "string", "pattern": f"^(?:{pattern})$", "maxLength": _LONGEST, "x-rule": _WORDS}


def _hint(address: str) -> str:
    if address.startswith(("./", "../", ".")):
        return "a server has no current directory: write the absolute path"
    if address.startswith("git://"):
        return "git:// proves nothing about the server: use https or ssh"
    if re.match(r"http://[^/]*@", address):
        return "http would send the credentials in the clear: use https"
    if re.match(r"ssh://[^/@]*:[^/]*@", address):
        return "ssh takes keys, not a password in the address"
    return ""
