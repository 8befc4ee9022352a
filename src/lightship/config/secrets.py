"""Secrets: values that no text shows, where they come from, and how to take them out of text from elsewhere."""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightship.errors import ConfigurationError

if TYPE_CHECKING:
    from lightship.config.schema import SecretSource

__all__ = ["HIDDEN", "Hidden", "Secret", "parts", "redact", "resolve", "resolve_one"]

HIDDEN = "***"
_LARGEST = 64 * 1024
_COMMAND_SECONDS = 30.0
_SHORTEST = 4
# A shorter word of a secret file is hardly its secret.
_WORD = 8


class Hidden(str):
    """Text with two faces: as a string it is what may be shown, :meth:`reveal` is the real value.

    It *is* a string of the harmless text, so whatever formats, joins, encodes or pickles it gets that. Two are equal
    when what they hide is equal; neither equals a plain string. A copy is the object itself; a pickle is the harmless
    text alone.
    """

    __slots__ = ("_hidden",)
    _hidden: str

    def __new__(cls, value: str, harmless: str = HIDDEN) -> Hidden:
        """Hide ``value`` behind ``harmless``."""
        self = super().__new__(cls, harmless)
        object.__setattr__(self, "_hidden", value)
        return self

    def reveal(self) -> str:
        """The real value. Only what hands it to the program that needs it calls this."""
        return self._hidden

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a hidden value does not change")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Hidden):
            return NotImplemented if not isinstance(other, str) else False
        return hmac.compare_digest(
            self._hidden.encode("utf-8", "surrogatepass"), other._hidden.encode("utf-8", "surrogatepass")
        )

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((Hidden, self._hidden))

    def __copy__(self) -> Hidden:
        return self

    def __deepcopy__(self, memo: Any) -> Hidden:
        return self

    def __reduce_ex__(self, protocol: Any) -> tuple[type[str], tuple[str]]:
        return str, (str.__str__(self),)


class Secret(Hidden):
    """A value that shows as ``***`` in text, repr, format, JSON, pickle and exceptions."""

    __slots__ = ()

    def __new__(cls, value: str) -> Secret:
        """Hide ``value``."""
        made = super().__new__(cls, value)
        assert isinstance(made, Secret)  # noqa: S101
        return made


def resolve(
    sources: Mapping[str, SecretSource],
    directory: Path,
    *,
    warn: Callable[[str], None],
    environment: Mapping[str, str] | None = None,
    lines: bool = False,
) -> dict[str, Secret]:
    """The values of all ``sources``. Relative files and commands start at ``directory``, that of ``lightship.yml``.

    With ``lines`` a value may have several, since no variable but a file is made of it.
    """
    return {
        name: resolve_one(name, source, directory, warn=warn, environment=environment, lines=lines)
        for name, source in sources.items()
    }


def resolve_one(
    name: str,
    source: SecretSource,
    directory: Path,
    *,
    warn: Callable[[str], None],
    environment: Mapping[str, str] | None = None,
    lines: bool = False,
) -> Secret:
    """The value of one source. ``warn`` is told when the file that holds it is readable by everybody."""
    environ = os.environ if environment is None else environment
    if source.file is not None:
        value = _from_file(name, directory / Path(source.file).expanduser(), warn)
    elif source.env is not None:
        if source.env not in environ:
            raise _unavailable(name, f"the environment variable {source.env} is not set")
        value = environ[source.env]
    else:
        value = _from_command(name, list(source.command or ()), directory, environ)
    return _checked(name, value, "\0" if lines else "\n\r\0")


def _unavailable(name: str, why: str, hint: str = "") -> ConfigurationError:
    return ConfigurationError(f"secret {name}: {why}", hint=hint, code="secret", detail={"secret": name})


def _checked(name: str, value: str, forbidden: str) -> Secret:
    if value == "":
        raise _unavailable(name, "its source is empty")
    if any(character in value for character in forbidden):
        raise _unavailable(
            name,
            "its value has more than one line; a variable of a container has one",
            hint="encode it, for example with base64, or mount it as a file under `volumes`",
        )
    return Secret(value)


def _without_newline(text: str) -> str:
    return text.removesuffix("\n").removesuffix("\r")


def _decoded(name: str, data: bytes) -> str:
    if len(data) > _LARGEST:
        raise _unavailable(name, f"its value is longer than {_LARGEST} bytes")
    try:
        return _without_newline(data.decode("utf-8"))
    except UnicodeDecodeError:
        raise _unavailable(name, "its value is not UTF-8") from None


def _from_file(name: str, path: Path, warn: Callable[[str], None]) -> str:
    import stat  # noqa: PLC0415

    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:  # noqa: PTH123
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise _unavailable(name, f"{path} is not a regular file")
            if status.st_mode & stat.S_IROTH:
                warn(f"secret {name}: everybody on this machine can read {path}; `chmod 600` it")
            return _decoded(name, stream.read(_LARGEST + 1))
    except OSError as error:
        raise _unavailable(name, f"cannot read {path}: {error.strerror}") from None


def _from_command(name: str, command: list[str], directory: Path, environ: Mapping[str, str]) -> str:
    import subprocess  # noqa: PLC0415

    try:
        done = subprocess.run(
            command,
            cwd=directory,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_COMMAND_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _unavailable(name, f"{command[0]} did not end within {_COMMAND_SECONDS:g} seconds") from None
    except OSError as error:
        raise _unavailable(name, f"cannot run {command[0]}: {error.strerror}") from None
    if done.returncode != 0:
        # What it printed may hold the secret or a part of it: what stood on its output is taken out of its complaint.
        printed = [Secret(word) for word in done.stdout.decode("utf-8", "replace").split()]
        said = redact(done.stderr.decode("utf-8", "replace")[-2000:].strip(), printed)
        raise _unavailable(name, f"{command[0]} ended with status {done.returncode}" + (f": {said}" if said else ""))
    return _decoded(name, done.stdout)


def parts(secret: Secret) -> list[Secret]:
    """A secret of several lines and what a program may show of it by itself: its lines, and the longer words."""
    value = secret.reveal()
    lines = [line.strip() for line in value.splitlines()]
    words = [word for word in value.split() if len(word) >= _WORD]
    return [secret, *map(Secret, [*lines, *words])] if len(lines) > 1 else [secret]


def redact(text: str, secrets: Iterable[Hidden]) -> str:
    """``text`` without the secrets, however they are written there: as they are, or quoted, escaped or encoded.

    A value shorter than four characters is left alone: taking every ``1`` out of a text would say what the secret is.
    """
    forms: set[str] = set()
    for secret in secrets:
        value = secret.reveal()
        if len(value) >= _SHORTEST:
            forms.update(_forms(value))
    if not forms:
        return text
    import re  # noqa: PLC0415

    # The longest first, so that a form which contains another one goes as a whole.
    return re.sub("|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True)), HIDDEN, text)


def _forms(value: str) -> set[str]:
    """The ways in which a program is likely to write ``value``."""
    import base64  # noqa: PLC0415
    import json  # noqa: PLC0415
    import shlex  # noqa: PLC0415
    import urllib.parse as url  # noqa: PLC0415

    data = value.encode("utf-8", "surrogatepass")
    as_json, as_json_plain = json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]
    forms = {value, repr(value)[1:-1], ascii(value)[1:-1], repr(data)[2:-1], as_json, as_json_plain}
    forms |= {as_json.replace("/", "\\/"), value.replace('"', '\\"'), value.replace("'", "\\'")}
    forms |= {shlex.quote(value), shlex.quote(value)[1:-1] if shlex.quote(value) != value else value}
    for safe in ("", "/"):
        forms |= {url.quote(data, safe=safe), url.quote_plus(data, safe=safe), url.quote(data, safe=safe).lower()}
    forms.add(data.hex())
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        # The value may stand anywhere in what was encoded: cut off the characters that depend on what is around it.
        for lead in range(3):
            text = encode(b"\0" * lead + data).decode("ascii").rstrip("=")
            start = (0, 2, 3)[lead]
            end = len(text) - (1 if (len(data) + lead) % 3 else 0)
            forms.add(text[start:end])
        forms.add(encode(data).decode("ascii"))
    return {form for form in forms if len(form) >= _SHORTEST}
