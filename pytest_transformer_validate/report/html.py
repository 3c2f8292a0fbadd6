"""Records as HTML: columns for pytest-html, and a table of their own."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.report.figures import figures
from pytest_transformer_validate.report.record import STATUSES
from pytest_transformer_validate.report.terminal import by_model, context_line
from pytest_transformer_validate.report.text import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_transformer_validate.report.record import Record

_TITLES = ("Model", "Tier", "Measured", "Limit", "Of limit", "Where")
HEADER = tuple(f"<th>{title}</th>" for title in _TITLES)
# What a row of pytest-html may carry besides its text; larger ones are left out, and said.
MOST_BYTES = 64 * 1024


def row(record: Record | None) -> list[str]:
    """The cells under HEADER; empty ones for a test that is no check."""
    if record is None:
        return ["<td></td>"] * len(HEADER)
    measured, limit = numbers(record)
    where = record.where or ""
    cells = (record.model, str(record.tier), measured, limit, _of_limit(record), where)
    return [f"<td>{text(cell)}</td>" for cell in cells]


def details(record: Record) -> str:
    """Pictures of the numbers and the notes, folded; nothing where there are none."""
    notes = [str(note) for note in record.numbers.get("notes") or ()]
    parts: list[str] = []
    left = 0
    for figure in figures(record.numbers):
        part = f"<figure><figcaption>{escape(figure.title)}</figcaption>{figure.svg}</figure>"
        if sum(map(len, parts)) + len(part) > MOST_BYTES:
            left += 1
        else:
            parts.append(part)
    if left:
        notes.append(f"{left} more figures were too large for this page")
    counted = [_counted(len(parts), "figure"), _counted(len(notes), "note")]
    parts += (f"<p>{text(note)}</p>" for note in notes)
    summary = ", ".join(word for word in counted if word)
    # CanvasText: the page's own colour of text, which pytest-html makes pale
    head = f'<details style="color:CanvasText"><summary>{summary}</summary>'
    return f"{head}{''.join(parts)}</details>" if parts else ""


def models(records: Sequence[Record]) -> str:
    """A table of the models and their tiers, those that failed first."""
    groups = by_model(records)
    tiers = sorted({record.tier for record in records})
    head = "".join(f"<th>{name}</th>" for name in ("Model", *(f"Tier {n}" for n in tiers), "As"))
    order = sorted(groups, key=lambda model: not any(r.failure for r in groups[model]))
    rows = "".join(_model(model, groups[model], tiers) for model in order)
    style = "border-spacing: 1rem .2rem; text-align: left"
    body = f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>"
    return f'<table style="{style}">{body}</table>'


def table(records: Sequence[Record]) -> str:
    """A table of all records, failures first."""
    names = ("model", "tier", "check", "status", "measured", "limit", "message")
    head = "".join(f"<th>{name}</th>" for name in names)
    rows = "".join(
        f"<tr>{_cells(record)}</tr>" for record in sorted(records, key=lambda r: not r.failure)
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


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


def _cells(record: Record) -> str:
    measured, limit = numbers(record)
    texts = (record.model, str(record.tier), record.name, record.status, measured, limit)
    cells = "".join(f"<td>{escape(text)}</td>" for text in texts)
    return f"{cells}<td><pre>{escape(record.message)}</pre></td>"


def _model(model: str, records: Sequence[Record], tiers: Sequence[int]) -> str:
    cells = [model]
    for tier in tiers:
        statuses = [record.status for record in records if record.tier == tier]
        told = ((statuses.count(status), status) for status in STATUSES)
        cells.append(", ".join(f"{count} {status}" for count, status in told if count))
    cells.append(context_line(records) or "not loaded")
    return f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in cells)}</tr>"


def _of_limit(record: Record) -> str:
    """The measured number as a part of its limit, whichever side of it is the good one."""
    value, limit = record.numbers.get("value"), record.numbers.get("limit")
    limit = limit.get("value") if isinstance(limit, dict) else limit
    if type(value) not in {int, float} or type(limit) not in {int, float} or not limit:
        return ""
    return f"{value / limit:.3g}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s'[: count != 1]}" if count else ""


def _short(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
