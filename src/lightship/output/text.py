"""Text from outside made safe to show: on a terminal it can do nothing but be read.

Everything that is not plainly printable (control characters, escape sequences, marks that turn the direction of
writing, bytes that are no UTF-8) is shown as its escape, as ``\\x1b`` or ``\\u202e``.
"""

from __future__ import annotations

import unicodedata

__all__ = ["LONGEST", "last_line", "printable", "printable_lines"]

#: The most characters shown of one text.
LONGEST = 2000
_ELLIPSIS = "…"
# Cc control, Cf format (bidi overrides, zero width), Cs surrogates, Co private use, Cn unassigned, Zl Zp separators.
_INERT = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def printable(value: object, longest: int = LONGEST) -> str:
    """One line of text for people: inert, and cut when it is too long."""
    text = value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)
    cut = len(text) > longest
    if cut:
        text = text[:longest]
    if not (text.isascii() and text.isprintable()):
        text = "".join(map(_shown, text))
    return text + _ELLIPSIS if cut else text


def printable_lines(value: object, *, most: int = 200, longest: int = LONGEST) -> list[str]:
    """Text of several lines, each inert; of too many the last ones, since that is where errors are."""
    text = value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)
    lines = text[-most * longest :].replace("\r\n", "\n").replace("\t", "    ").rstrip("\n").split("\n")
    shown = [printable(line, longest) for line in lines[-most:]]
    return [f"{_ELLIPSIS} ({len(lines) - most} lines more before)", *shown] if len(lines) > most else shown


def last_line(value: object) -> str:
    """The last line that says something; of a traceback, the exception."""
    lines = [line for line in printable_lines(value) if line.strip()]
    return lines[-1].strip() if lines else ""


def _shown(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # noqa: PLR2004 - a byte that was no UTF-8 (surrogateescape)
        return f"\\x{code - 0xDC00:02x}"
    if unicodedata.category(character) not in _INERT:
        return character
    if code <= 0xFF:  # noqa: PLR2004
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"  # noqa: PLR2004
