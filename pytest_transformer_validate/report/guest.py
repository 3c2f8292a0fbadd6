"""What a page of pytest-html shows of records: models above the rows, cells and details in them.

Cells hold text alone: the page's script takes a click on anything else for one outside the row.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.report.html import folded, margin, numbers, text
from pytest_transformer_validate.report.record import FAILURES, STATUSES
from pytest_transformer_validate.report.terminal import by_model, context_of, count

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_transformer_validate.report.record import Record

TITLE = "Transformer validation"
COLUMNS = ("Measured", "Limit", "Margin", "Where")
HEADER = tuple(f"<th>{title}</th>" for title in COLUMNS)
STYLE = Path(__file__).with_name("page.css")
_MOST_NAMED = 8
_GIVEN = "given by the caller: {}"


def row(record: Record | None) -> list[str]:
    """The cells under HEADER; empty ones for a test that is no check. Where nothing was measured,
    the first line of the message stands over the first three."""
    if record is None:
        return ["<td></td>"] * len(HEADER)
    where = f"<td class=tb-where>{text(record.where or '')}</td>"
    told = (*numbers(record), margin(record))
    if record.status != "passed" and not any(told):
        reason = text(_reason(record))
        return [f"<td class=tb-reason colspan=3>{reason}</td>", *["<td hidden></td>"] * 2, where]
    return [*(f"<td class=tb-number>{text(cell)}</td>" for cell in told), where]


def details(record: Record, rule: str = "") -> str:
    """Under a row: what has to hold (``rule``), the message, then figures and numbers, folded."""
    parts = [f"<p>{text(rule)}</p>"] if rule and not record.failure else []
    if _says_more(record):
        parts.append(f"<pre>{text(record.message)}</pre>")
    parts.append(folded(record))
    inside = "".join(parts)
    return f"<div class=tb-details>{inside}</div>" if inside else ""


def summary(
    records: Sequence[Record], sources: Mapping[str, str], remarks: Sequence[str] = ()
) -> str:
    """The verdict, remarks on the run, and a table of the models and their tiers, those that
    failed first. A model of which all was skipped did not pass.

    ``sources`` says by model id where a model came from.
    """
    groups = by_model(records)
    good = sum(_passed(own) for own in groups.values())
    tone = "tb-good" if good == len(groups) else "tb-bad"
    verdict = f"{good} of {len(groups)} model{'s'[: len(groups) != 1]} passed"
    tiers = sorted({record.tier for record in records})
    names = ("Model", *(f"Tier {n}" for n in tiers), "Task", "Parameters", "Source", "Run with")
    head = "".join(f"<th>{name}</th>" for name in names)
    order = sorted(groups, key=lambda model: not any(r.failure for r in groups[model]))
    rows = "".join(_model(model, groups[model], tiers, sources.get(model, "")) for model in order)
    said = "".join(f"<li>{text(remark)}</li>" for remark in remarks)
    return (
        f"<style>{STYLE.read_text(encoding='utf-8')}</style>"
        f'<p class="tb-verdict {tone}">{verdict}</p>{f"<ul>{said}</ul>" if said else ""}'
        f'<table class="tb-models"><thead><tr>{head}</tr></thead>{rows}</table>'
    )


def _model(model: str, records: Sequence[Record], tiers: Sequence[int], source: str) -> str:
    context = context_of(records)
    parameters = context.get("parameters")
    came = [*[source] * bool(source), *_told(context, weights="weights {}", given=_GIVEN)]
    cells = [
        f"<th class=tb-long>{text(model)}</th>",
        *(_verdict([r.status for r in records if r.tier == tier]) for tier in tiers),
        f"<td>{text(str(context.get('task', 'not loaded')))}</td>",
        f"<td>{'' if parameters is None else count(parameters)}</td>",
        f"<td class=tb-long>{text('; '.join(came))}</td>",
        f"<td>{text(', '.join(_told(context, device='{}', dtype='{}', seed='seed {}')))}</td>",
    ]
    fails = [record for record in records if record.failure]
    listed = (
        f'<tr class="tb-fails"><td></td><td colspan="{len(cells) - 1}">'
        f"{text(f'fails: {_named(fails)}')}</td></tr>"
    )
    return f"<tbody><tr>{''.join(cells)}</tr>{listed if fails else ''}</tbody>"


def _passed(records: Sequence[Record]) -> bool:
    """Whether something was judged, and nothing failed."""
    judged = any(record.status != "skipped" for record in records)
    return judged and not any(record.failure for record in records)


def _verdict(statuses: Sequence[str]) -> str:
    """How many had which status; red where one is a failure."""
    order = sorted(STATUSES, key=lambda status: status not in FAILURES)
    told = ((statuses.count(status), status) for status in order)
    words = ", ".join(f"{count} {status}" for count, status in told if count)
    if FAILURES.intersection(statuses):
        return f'<td class="tb-bad">{words}</td>'
    return f'<td class="tb-good">{words}</td>' if "passed" in statuses else f"<td>{words}</td>"


def _told(context: Mapping[str, Any], **wordings: str) -> list[str]:
    """What the context has of some keys, each in its words."""
    return [words.format(context[key]) for key, words in wordings.items() if key in context]


def _named(fails: Sequence[Record]) -> str:
    """The first failures and where they are; what another one blocks is only counted."""
    own = [record for record in fails if record.status != "blocked"] or fails
    names = [f"{r.name} at {r.where}" if r.where else r.name for r in own[:_MOST_NAMED]]
    left = len(fails) - len(names)
    return ", ".join(names) + f" and {left} more" * bool(left)


def _says_more(record: Record) -> bool:
    """Whether the message has more than the line that stands in the row."""
    lines = len(record.message.splitlines())
    if record.status == "blocked":
        return lines > 2  # the reason and the command are no more
    return lines > (0 if record.failure else 1)


def _reason(record: Record) -> str:
    """The first line of the message, without the check's name, which stands beside it."""
    return record.message.partition("\n")[0].removeprefix(f"{record.name} (tier {record.tier}): ")
