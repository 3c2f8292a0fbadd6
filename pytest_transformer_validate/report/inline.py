"""Records as HTML that stands in a notebook: a verdict, the failures, and the rest folded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_transformer_validate.report import html, terminal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_transformer_validate.report.record import Record

# A notebook is a file that people commit: what is beyond this is left out, and said.
MOST_BYTES = 512 * 1024
_LEFT = "text-align:left;vertical-align:top"
_HEAD = ("check", "status", "measured", "limit", "")


def page(records: Sequence[Record], verdict: str, tests: Sequence[tuple[str, str]] = ()) -> str:
    """The verdict, a summary of every model, the failures open, other checks folded.

    ``tests`` are id and text of tests that failed and are no checks. Colours are the notebook's.
    """
    rows = _Rows(several=len({record.model for record in records}) > 1)
    bad = [record for record in records if record.failure]
    rest = [record for record in records if not record.failure]
    parts = [f"<p><strong>{html.text(verdict)}</strong></p>"]
    if len(records):
        summary = "\n".join(line.text for line in terminal.summary(records))
        parts.append(_text(summary))
    if bad:
        parts.append(rows.table(bad))
    parts += [_folded(name, _text(text)) for name, text in tests]
    if rest:
        name = f"{len(rest)} {'other ' * bool(bad)}check{'s'[: len(rest) != 1]}"
        parts.append(_folded(name, rows.table(rest)))
    if rows.left:
        parts.append(
            f"<p>figures of {rows.left} checks are left out: too large for a notebook</p>"
        )
    return f"<div>{''.join(parts)}</div>"


class _Rows:
    """Rows of tables, with figures up to a size."""

    def __init__(self, *, several: bool) -> None:
        self.several = several
        self.size = self.left = 0

    def table(self, records: Sequence[Record]) -> str:
        names = (*["model"] * self.several, *_HEAD)
        head = "".join(f'<th style="{_LEFT}">{name}</th>' for name in names)
        rows = "".join(map(self._row, records))
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"

    def _row(self, record: Record) -> str:
        texts = (*[record.model] * self.several, record.name, record.status)
        cells = [html.text(text) for text in (*texts, *html.numbers(record))]
        message = _text(record.message) if record.message else ""
        cells.append(message + self._figures(record))
        columns = "".join(f'<td style="{_LEFT}">{cell}</td>' for cell in cells)
        return f"<tr>{columns}</tr>"

    def _figures(self, record: Record) -> str:
        shown = html.folded(record)
        if self.size + len(shown) > MOST_BYTES:
            self.left += 1
            return ""
        self.size += len(shown)
        return shown


def _text(given: str) -> str:
    return f'<pre style="white-space:pre-wrap">{html.text(given)}</pre>'


def _folded(summary: str, content: str) -> str:
    return f"<details><summary>{html.text(summary)}</summary>{content}</details>"
