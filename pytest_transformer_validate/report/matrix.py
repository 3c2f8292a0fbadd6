"""Several files of --tb-json as one page: checks down, models across, failures first."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_transformer_validate.report import markdown
from pytest_transformer_validate.report.html import numbers, text
from pytest_transformer_validate.report.terminal import by_model, context_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from pytest_transformer_validate.report.json import Stored
    from pytest_transformer_validate.report.record import Record

TITLE = "Transformer validation"
_ABSENT = "not run"
_STYLE = """
:root { color-scheme: light dark; --line: #8886; --bad: #b3261e; --good: #1a7f37; --odd: #8a5a00 }
@media (prefers-color-scheme: dark) { :root { --bad: #ff8a80; --good: #6fdd8b; --odd: #ffc66b } }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem }
body { padding: 0 1rem }
.wide { overflow-x: auto; margin-top: 1rem }
table { border-collapse: collapse }
th, td { border: 1px solid var(--line); padding: .25rem .6rem; text-align: left }
thead th { vertical-align: bottom }
tbody th { font-weight: normal; white-space: nowrap }
.passed { color: var(--good) }
.failed, .broken, .blocked, .stale { color: var(--bad); font-weight: bold }
.xfailed { color: var(--odd) }
.skipped, .absent { opacity: .65 }
pre { overflow-x: auto; padding: .6rem; border: 1px solid var(--line); white-space: pre-wrap }
summary { cursor: pointer; padding: .2rem 0; overflow-wrap: anywhere }
"""


@dataclass
class Column:
    """One model of one file."""

    label: str
    about: str
    records: dict[tuple[int, str], Record] = field(default_factory=dict)

    @property
    def failures(self) -> list[Record]:
        return [record for record in self.records.values() if record.failure]


class Matrix:
    """The records of several files by check and by model.

    A model that several files hold has a column for each, named after the file too.
    """

    def __init__(self, files: Sequence[tuple[str, Stored]]) -> None:
        models = [(name, by_model(stored.records)) for name, stored in files]
        times = Counter(model for _, groups in models for model in groups)
        self.columns = [
            Column(
                label=model if times[model] == 1 else f"{model} ({name})",
                about=context_line(own) or "not loaded",
                records={(record.tier, record.name): record for record in own},
            )
            for name, groups in models
            for model, own in groups.items()
        ]

    def rows(self) -> list[tuple[int, str]]:
        """Tier and name of every check: those that fail somewhere first, then by tier."""
        known = dict.fromkeys(key for column in self.columns for key in column.records)
        failing = {
            (record.tier, record.name) for column in self.columns for record in column.failures
        }
        return sorted(known, key=lambda row: (row not in failing, row[0]))

    def cells(self, row: tuple[int, str]) -> Iterator[Record | None]:
        """What became of a check, for every column."""
        return (column.records.get(row) for column in self.columns)

    def verdict(self) -> str:
        """One sentence about all columns."""
        good = sum(not column.failures for column in self.columns)
        return f"{good} of {len(self.columns)} models passed."


def html_page(files: Sequence[tuple[str, Stored]]) -> str:
    """A page that needs nothing else, and runs nothing."""
    matrix = Matrix(files)
    head = "".join(f"<th scope=col>{text(column.label)}</th>" for column in matrix.columns)
    rows = "".join(_row(matrix, row) for row in matrix.rows())
    about = "".join(
        f"<li><b>{text(column.label)}</b>: {text(column.about)}</li>" for column in matrix.columns
    )
    return (
        '<!doctype html>\n<html lang=en><head><meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{TITLE}</title><style>{_STYLE}</style></head>\n<body><h1>{TITLE}</h1>\n"
        f"<p>{matrix.verdict()}</p>\n{''.join(_details(matrix.columns))}"
        "<div class=wide><table><thead><tr><th scope=col>Check</th>"
        f"<th scope=col>Tier</th>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>\n"
        f"<h2>Models</h2><ul>{about}</ul></body></html>\n"
    )


def markdown_page(files: Sequence[tuple[str, Stored]]) -> str:
    """The same as Markdown, as GitHub shows it."""
    matrix = Matrix(files)
    head = ["Check", "Tier", *(markdown.inline(column.label) for column in matrix.columns)]
    rows = (
        [markdown.inline(name), str(tier), *(_word(cell) for cell in matrix.cells((tier, name)))]
        for tier, name in matrix.rows()
    )
    lines = [f"# {TITLE}", "", matrix.verdict(), "", *markdown.table(head, rows), ""]
    for column in matrix.columns:
        for record in column.failures:
            title = markdown.inline(f"{column.label}: {record.name}")
            lines += [f"<details><summary>{title}</summary>", ""]
            lines += [markdown.block(record.message), "", "</details>", ""]
    for column in matrix.columns:
        lines.append("- " + markdown.inline(f"{column.label}: {column.about}"))
    return "\n".join(lines) + "\n"


def _row(matrix: Matrix, row: tuple[int, str]) -> str:
    tier, name = row
    cells = "".join(_cell(record) for record in matrix.cells(row))
    return f"<tr><th scope=row>{text(name)}</th><td>{tier}</td>{cells}</tr>\n"


def _cell(record: Record | None) -> str:
    if record is None:
        return f"<td class=absent>{_ABSENT}</td>"
    measured, limit = numbers(record)
    told = [measured and f"measured {measured}", limit and f"limit {limit}"]
    told += [record.message.partition("\n")[0]]
    title = text("; ".join(filter(None, told)))
    return f'<td class={record.status} title="{title}">{record.status}</td>'


def _word(record: Record | None) -> str:
    if record is None:
        return _ABSENT
    return f"**{record.status}**" if record.failure else record.status


def _details(columns: Iterable[Column]) -> Iterator[str]:
    """The texts of all failures, folded."""
    for column in columns:
        for record in column.failures:
            yield (
                f"<details><summary>{text(column.label)}: <span class={record.status}>"
                f"{text(record.name)}</span></summary><pre>{text(record.message)}</pre>"
                "</details>\n"
            )
