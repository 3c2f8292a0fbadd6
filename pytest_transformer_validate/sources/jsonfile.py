"""Strict JSON: what ``json`` accepts silently (duplicate keys, NaN, 1e999) is an error here."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.errors import SourceError
from pytest_transformer_validate.sources.files import read_file
from pytest_transformer_validate.sources.wording import clipped, shown

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES = 5_000_000
MAX_DEPTH = 100
MAX_DIGITS = 300
_INFINITE = {"Infinity": math.inf, "-Infinity": -math.inf}


@dataclass(frozen=True)
class _Refused:
    """Stands for a value that was read and is not allowed, until its key is known."""

    text: str


def read_object(path: Path, *, infinite: bool = False) -> dict[str, Any]:
    """The JSON object in ``path``. Raises SourceError naming file and line:col or key.

    ``infinite`` takes infinity in the two forms in which transformers writes it: ``Infinity``
    (older files) and ``{"__float__": "Infinity"}``.
    """
    text = _read_text(path)
    try:
        value = json.loads(
            text,
            object_pairs_hook=_pairs_or_infinity if infinite else _pairs,
            parse_constant=_infinity if infinite else _Refused,
            parse_float=_float,
            parse_int=_int,
        )
    except json.JSONDecodeError as error:
        place = f"{shown(path)}:{error.lineno}:{error.colno}"
        raise SourceError(f"{place}: not valid JSON: {_syntax(text, error)}") from error
    except RecursionError as error:
        raise SourceError(_too_deep(path)) from error
    _refuse(value, path)
    if not isinstance(value, dict):
        raise SourceError(
            f"{shown(path)} holds {_kind(value)}; a configuration is a JSON object: "
            '{"vocab_size": 100, ...}'
        )
    return value


def _read_text(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise SourceError(
                f"{shown(path)} has {size} bytes; a configuration has at most {MAX_BYTES}"
            )
        data = read_file(path, MAX_BYTES)
    except OSError as error:
        raise SourceError(f"cannot read {shown(path)}: {error.strerror or error}") from error
    if not data.strip():
        raise SourceError(f'{shown(path)} is empty; it has to hold a JSON object: {{"a": 1}}')
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        utf16 = data[:2] in (b"\xff\xfe", b"\xfe\xff")
        looks = "looks like UTF-16; " if utf16 else ""
        line, column = position(data, error.start)
        raise SourceError(
            f"{shown(path)}:{line}:{column}: not UTF-8 (byte {data[error.start]:#04x}); "
            f"{looks}save it as UTF-8"
        ) from error


def position(data: bytes, offset: int) -> tuple[int, int]:
    """The line and column, both from 1, of a byte."""
    return data.count(b"\n", 0, offset) + 1, offset - data.rfind(b"\n", 0, offset)


def _syntax(text: str, error: json.JSONDecodeError) -> str:
    before = text[: error.pos].rstrip()
    rest = text[error.pos :].lstrip()
    if re.match(r"[}\]]", rest) and before.endswith(","):
        return f"a comma before {rest[0]} is not allowed; remove it"
    if re.match(r",\s*[}\]]", rest):
        return "a comma before the closing bracket is not allowed; remove it"
    if rest.startswith("'"):
        return "strings take double quotes, not single ones"
    if rest.startswith(("//", "/*", "#")):
        return "JSON has no comments; remove it"
    return error.msg


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        values[key] = _Refused("the key is there twice") if key in values else value
    return values


def _pairs_or_infinity(pairs: list[tuple[str, Any]]) -> dict[str, Any] | float:
    values = _pairs(pairs)
    word = values.get("__float__") if len(values) == 1 else None
    return _INFINITE.get(word, values) if isinstance(word, str) else values


def _infinity(word: str) -> float | _Refused:
    return _INFINITE.get(word, _Refused(word))


def _float(text: str) -> float | _Refused:
    value = float(text)
    return value if math.isfinite(value) else _Refused(f"{clipped(text, 40)} is too large")


def _int(text: str) -> int | _Refused:
    return int(text) if len(text) <= MAX_DIGITS else _Refused(f"a number of {len(text)} digits")


def _refuse(value: Any, path: Path) -> None:
    """Raise for the first value that is not allowed, naming its key; iterative, so that depth
    is judged and not suffered."""
    waiting: list[tuple[str, int, Any]] = [("", 0, value)]
    while waiting:
        key, depth, item = waiting.pop()
        if depth > MAX_DEPTH:
            raise SourceError(_too_deep(path))
        if isinstance(item, _Refused):
            _complain(path, key, item.text)
        if isinstance(item, str) and not _encodable(item):
            _complain(path, key, "half of a surrogate pair in a string")
        if isinstance(item, dict):
            for name, inner in item.items():
                if not _encodable(name):
                    _complain(path, repr(name), "half of a surrogate pair in a key")
                waiting.append((f"{key}.{name}".lstrip("."), depth + 1, inner))
        elif isinstance(item, list):
            waiting += [(f"{key}[{at}]", depth + 1, inner) for at, inner in enumerate(item)]


def _complain(path: Path, key: str, text: str) -> None:
    raise SourceError(
        f"{shown(path)}, key {clipped(key, 80) or '(top)'}: {text}; "
        "allowed: JSON values, finite numbers, every key once"
    )


def _encodable(text: str) -> bool:
    return not re.search(r"[\ud800-\udfff]", text)


def _too_deep(path: Path) -> str:
    return f"{shown(path)} is nested more than {MAX_DEPTH} levels deep; flatten it"


def _kind(value: Any) -> str:
    kinds = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
