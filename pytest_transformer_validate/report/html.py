"""Records as pieces of HTML: texts, numbers, figures."""

from __future__ import annotations

import itertools
from html import escape
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.report.captions import CAPTIONS
from pytest_transformer_validate.report.figures import figures, short
from pytest_transformer_validate.report.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_transformer_validate.report.record import Record

# What figures of one check may weigh on a page; larger ones are left out, and said.
MOST_BYTES = 64 * 1024
_MOST_NUMBERS = 24


def folded(record: Record) -> str:
    """Figures, further numbers and notes, folded; nothing where there are none."""
    captions = CAPTIONS.get(record.check, {})
    drawn: list[str] = []
    left = size = 0
    for figure in figures(record.numbers, captions):
        part = f"<figure><figcaption>{escape(figure.title)}</figcaption>{figure.svg}</figure>"
        if size + len(part) > MOST_BYTES:
            left += 1
        else:
            size += len(part)
            drawn.append(part)
    notes = [str(note) for note in record.numbers.get("notes") or ()]
    notes += [f"{left} more figures were too large for this page"] * bool(left)
    single = [f"{name} {_short(value)}" for name, value in _single(record.numbers)]
    counted = [
        _counted(len(each), noun)
        for each, noun in ((drawn, "figure"), (single, "number"), (notes, "note"))
    ]
    parts = [f"<div class=tb-figures>{''.join(drawn)}</div>"] * bool(drawn)
    parts += [f"<p>{text(note)}</p>" for note in notes]
    parts += [f"<p class=tb-numbers>{text(', '.join(single))}</p>"] * bool(single)
    summary = ", ".join(filter(None, counted))
    body = "".join(parts)
    return f"<details><summary>{summary}</summary>{body}</details>" if body else ""


def text(given: str) -> str:
    """``given`` for a page: without credentials, printable, escaped."""
    return escape(printable(given))


def numbers(record: Record) -> tuple[str, str]:
    """The headline number and the limit it was held against, as text."""
    value: Any = record.numbers.get("value")
    limit: Any = record.numbers.get("limit")
    if isinstance(limit, dict):
        limit = f"{_short(limit.get('value'))} = {limit.get('rule')}"
    return _short(value), _short(limit)


def margin(record: Record) -> str:
    """The measured number in limits, whichever side of the limit is the good one."""
    value, limit = record.numbers.get("value"), record.numbers.get("limit")
    limit = limit.get("value") if isinstance(limit, dict) else limit
    if type(value) not in {int, float} or type(limit) not in {int, float} or not limit:
        return ""
    ratio = value / limit
    return f"{f'{ratio:,.0f}' if 100 <= ratio < 1e9 else f'{ratio:.2g}'} x limit"


def _single(numbers: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Plain numbers and short texts beside the headline, at most 24."""
    named = ((k, v) for k, v in numbers.items() if k not in {"value", "limit", "notes"})
    plain = ((k, v) for k, v in named if isinstance(v, bool | int | float | str) and v != "")
    return itertools.islice(plain, _MOST_NUMBERS)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s'[: count != 1]}" if count else ""


def _short(value: Any) -> str:
    if value is None:
        return ""
    return short(value) if type(value) in {int, float} else str(value)
