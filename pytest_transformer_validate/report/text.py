"""Text that came from a model, made fit for a terminal."""

from __future__ import annotations

import unicodedata
from typing import Any

_KEPT = frozenset("\n\t")
_UNPRINTABLE = frozenset({"Cc", "Cs", "Co"})
_BIDI = frozenset("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: str) -> str:
    """``text`` with control, bidi and surrogate characters written as escapes."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escaped(character) for character in text.replace("\r\n", "\n"))


def plain(value: Any) -> Any:
    """``value`` as JSON types that travel between processes; foreign objects as their text."""
    if value is None or type(value) in {bool, int, float}:
        return value
    if isinstance(value, str):
        return printable(str(value))
    if isinstance(value, dict):
        return {printable(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return printable(repr(value))


def _escaped(character: str) -> str:
    if character in _KEPT:
        return character
    if character in _BIDI or unicodedata.category(character) in _UNPRINTABLE:
        return character.encode("unicode_escape").decode("ascii")
    return character
