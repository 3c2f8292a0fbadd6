"""Text that came from a model, made fit for every sink: redacted, escaped, of bounded length."""

from __future__ import annotations

import functools
import re
import unicodedata
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.errors import MARGIN, text_of
from pytest_transformer_validate.redaction import redact, secrets

if TYPE_CHECKING:
    from collections.abc import Callable

LONGEST = 8 * 1024
LONGEST_TEXT = 2 * LONGEST
LONGEST_OUTPUT = 64 * 1024
CUT = "\n... (cut)"
NO_TEXT = frozenset({bool, int, float})

_SHORT = 128
_KEPT = frozenset("\n\t")
# Control, format (bidirectional marks among them), surrogate, private, no characters; separators
# of lines and paragraphs.
_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
# Runners of GitHub Actions take such a line of a log for a command: ::set-output, ##[error].
_COMMAND = re.compile(r"^([^\S\n]*):(?=:)|#(?=#\[)", re.MULTILINE)


def printable(text: str, longest: int = LONGEST_TEXT, values: frozenset[str] | None = None) -> str:
    """``text`` fit to be shown: without credentials, of at most ``longest`` characters (16 KiB),
    and with control, format and surrogate characters written as escapes. Who has many texts asks
    for the ``values`` of ``secrets()`` once."""
    if type(text) is str and len(text) <= _SHORT:
        return _short(text, secrets() if values is None else values)
    return escaped(capped(text, longest))


def escaped(text: str) -> str:
    """``text`` with control, format and surrogate characters written as escapes, and the first
    character of what a CI's log would carry out."""
    text = _COMMAND.sub(lambda found: r"\x23" if found[1] is None else rf"{found[1]}\x3a", text)
    if text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(map(_escaped, text.replace("\r\n", "\n")))


def capped(text: str, longest: int = LONGEST) -> str:
    """The beginning of ``text`` without credentials, with a word where it was cut."""
    shown = redact(text[: longest + MARGIN])
    return shown if len(shown) <= longest else shown[:longest] + CUT


def tail(text: str) -> str:
    """The last 64 KiB of a captured output without credentials, and how much is not there."""
    dropped = len(text) - LONGEST_OUTPUT
    if dropped <= 0:
        return redact(text)
    kept = redact(text[-LONGEST_OUTPUT - MARGIN :])[-LONGEST_OUTPUT:]
    return f"({dropped} characters dropped)\n{kept}"


def plain(value: Any) -> Any:
    """``value`` as JSON types that travel between processes; foreign objects as their text."""
    return _plain(value, functools.partial(printable, values=secrets()))


def _plain(value: Any, shown: Callable[[str], str]) -> Any:
    if value is None or type(value) in NO_TEXT:
        return value
    if isinstance(value, str):
        return shown(text_of(value, str.__str__))
    if isinstance(value, dict):
        return {shown(text_of(key)): _plain(item, shown) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item, shown) for item in value]
    return shown(text_of(value, repr))


@functools.lru_cache(maxsize=2048)
def _short(text: str, values: frozenset[str]) -> str:
    """``printable`` of what is short: names, which come again with every report."""
    return escaped(redact(text, values))


def _escaped(character: str) -> str:
    if character in _KEPT or unicodedata.category(character) not in _UNPRINTABLE:
        return character
    return character.encode("unicode_escape").decode("ascii")
