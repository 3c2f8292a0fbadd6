"""Records as HTML: columns for pytest-html, and a table of their own."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_transformer_validate.report.record import Record

HEADER = ("<th>Model</th>", "<th>Tier</th>", "<th>Measured</th>", "<th>Limit</th>")


def row(record: Record | None) -> list[str]:
    """The cells under HEADER; empty ones for a test that is no check."""
    if record is None:
        return ["<td></td>"] * len(HEADER)
    measured, limit = numbers(record)
    cells = (record.model, str(record.tier), measured, limit)
    return [f"<td>{escape(cell)}</td>" for cell in cells]


def table(records: Sequence[Record]) -> str:
    """A table of all records."""
    names = ("model", "tier", "check", "status", "measured", "limit", "message")
    head = "".join(f"<th>{name}</th>" for name in names)
    rows = "".join(f"<tr>{_cells(record)}</tr>" for record in records)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


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


def _short(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
