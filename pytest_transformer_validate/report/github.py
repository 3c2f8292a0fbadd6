"""Records where GitHub Actions shows them: the summary of a step, annotations in the code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_transformer_validate.report import markdown
from pytest_transformer_validate.report.record import STATUSES
from pytest_transformer_validate.report.terminal import by_model, context_line
from pytest_transformer_validate.report.text import capped, printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_transformer_validate.report.record import Record

# GitHub shows ten annotations of a step, and takes a summary of one MiB.
MOST_ANNOTATIONS = 10
MOST_BYTES = 900_000
_LONGEST = 4096


def summary(records: Sequence[Record], remarks: Sequence[str] = ()) -> str:
    """Markdown: models by tiers, those that failed first, then the texts of failures, folded."""
    groups = by_model(records)
    tiers = sorted({record.tier for record in records})
    order = sorted(groups, key=lambda model: not any(r.failure for r in groups[model]))
    rows = [[markdown.inline(model), *_cells(groups[model], tiers)] for model in order]
    head = ["Model", *(f"Tier {tier}" for tier in tiers)]
    lines = ["## Transformer validation", "", *markdown.table(head, rows), ""]
    lines += [line for remark in remarks for line in (markdown.inline(remark), "")]
    for model in order:
        lines += [markdown.inline(f"{model}: {context_line(groups[model]) or 'not loaded'}"), ""]
    failures = [record for model in order for record in groups[model] if record.failure]
    return _joined(lines, [_folded(record) for record in failures])


def commands(records: Sequence[Record], places: dict[str, tuple[str, int]]) -> Iterator[str]:
    """A command of GitHub's for each of the first failures; ``places`` has the file (relative to
    the repository) and line of a model by its id."""
    failures = [record for record in records if record.failure]
    for record in failures[:MOST_ANNOTATIONS]:
        named = {"title": f"{record.model}: {record.name} (tier {record.tier})"}
        if record.model in places:
            file, line = places[record.model]
            named = {"file": file, "line": str(line), **named}
        properties = ",".join(f"{key}={_property(value)}" for key, value in named.items())
        yield f"::error {properties}::{_data(capped(record.message, _LONGEST))}"


def _cells(records: Sequence[Record], tiers: Sequence[int]) -> Iterator[str]:
    for tier in tiers:
        own = [record for record in records if record.tier == tier]
        told = {status: [r for r in own if r.status == status] for status in STATUSES}
        words = [
            f"**{len(found)} {status}**" if found[0].failure else f"{len(found)} {status}"
            for status, found in told.items()
            if found
        ]
        yield ", ".join(sorted(words, key=lambda word: not word.startswith("**")))


def _folded(record: Record) -> str:
    title = markdown.inline(f"{record.model}: {record.name} {record.status}")
    text = markdown.block(record.message)
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>\n"


def _joined(lines: Sequence[str], folded: Sequence[str]) -> str:
    """All of it, or as many failures as a summary may hold and how many there are besides."""
    text = "\n".join([*lines, ""])
    size = len(text.encode())
    for number, part in enumerate(folded):
        size += len(part.encode()) + 1
        if size > MOST_BYTES:
            return f"{text}\nand {len(folded) - number} more failures\n"
        text += f"{part}\n"
    return text


def _data(text: str) -> str:
    shown = printable(text)
    return shown.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
