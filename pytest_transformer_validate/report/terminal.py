"""Records as lines of text."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any, NamedTuple

from pytest_transformer_validate.report.record import FAILURES, STATUSES, Record
from pytest_transformer_validate.report.text import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

_LONGEST_REASON = 200


class Line(NamedTuple):
    """A line of the summary; ``tone`` is ``good``, ``bad``, ``odd`` or nothing."""

    text: str
    tone: str = ""


def summary(records: Sequence[Record], width: int | None = None) -> list[Line]:
    """For every model what it was judged as, for every tier how many had which status, in columns
    over all models, and what blocked checks; at most ``width`` characters a line, where it is
    given."""
    groups = by_model(records)
    tiers = {
        (model, tier): _counts(own, tier)
        for model, own in groups.items()
        for tier in sorted({record.tier for record in own})
    }
    columns = {
        status: max(len(f"{counts[status]} {status}") for counts in tiers.values())
        for status in STATUSES
        if any(counts[status] for counts in tiers.values())
    }
    lines = []
    for model, own in groups.items():
        about = context_line(own)
        text = printable(f"{model}: {about}" if about else model)
        lines += [Line(part) for part in _wrapped(text, width)]
        for tier in (tier for name, tier in tiers if name == model):
            seconds = sum(record.seconds for record in own if record.tier == tier)
            row = _row(tier, tiers[model, tier], columns, seconds)
            if width is not None and len(row) > width:
                row = "  " + " ".join(row.split())
            lines += [Line(part, _tone(tiers[model, tier])) for part in _wrapped(row, width)]
        for cause in _causes(own):
            lines += [Line(part, "bad") for part in _wrapped(cause, width)]
    return lines


def details(records: Sequence[Record]) -> list[str]:
    """The texts of all failures."""
    return [line for r in records if r.failure for line in ("", *r.message.splitlines())]


def unjudged(records: Sequence[Record]) -> list[str]:
    """One line for every model of which all checks were skipped."""
    lines = []
    for model, own in by_model(records).items():
        if all(record.status == "skipped" for record in own):
            reasons = dict.fromkeys(f"{r.name}: {_first_line(r.message)}" for r in own)
            text = "; ".join(reasons)
            if len(text) > _LONGEST_REASON:
                text = text[:_LONGEST_REASON] + "..."
            lines.append(
                printable(
                    f"{model}: nothing was judged, every check was skipped ({text}); "
                    "--tb-allow-skipped accepts that"
                )
            )
    return lines


def context_line(records: Sequence[Record]) -> str:
    """``task ..., 1.2M parameters, cpu, float32, seed 0, weights: ...`` or nothing."""
    context = context_of(records)
    if not context:
        return ""
    known = ("task", "parameters", "device", "dtype", "seed", "weights", "given")
    values = {key: context[key] for key in known if key in context}
    wordings = {
        "task": lambda value: f"task {value}",
        "parameters": lambda value: f"{count(value)} parameters",
        "seed": lambda value: f"seed {value}",
        "weights": lambda value: f"weights: {value}",
        "given": lambda value: f"given by the caller: {value}",
    }
    return ", ".join(wordings.get(key, str)(value) for key, value in values.items())


def context_of(records: Sequence[Record]) -> dict[str, Any]:
    """What was in force for the records of one model; of what differs, the first word."""
    context: dict[str, Any] = {}
    for record in reversed(records):
        context |= record.context
    return context


def count(number: int) -> str:
    """``950``, ``12.3K``, ``7.0B``."""
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return str(number)


def by_model(records: Sequence[Record]) -> dict[str, list[Record]]:
    """The records of every model, in the order in which the models came."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.model, []).append(record)
    return groups


def _counts(records: Sequence[Record], tier: int) -> dict[str, int]:
    own = [record.status for record in records if record.tier == tier]
    return {status: own.count(status) for status in STATUSES}


def _row(tier: int, counts: dict[str, int], columns: dict[str, int], seconds: float) -> str:
    cells = (
        (f"{counts[status]} {status}" if counts[status] else "").ljust(width)
        for status, width in columns.items()
    )
    return f"  tier {tier}   {'  '.join(cells)}   {seconds:.1f} s"


def _causes(records: Sequence[Record]) -> list[str]:
    """What blocked checks of one model, each cause once: their texts fill more than a screen."""
    said = (_first_line(record.message) for record in records if record.status == "blocked")
    causes = (line[line.index("blocked by") :] for line in said if "blocked by" in line)
    return [f"  {printable(cause)}" for cause in dict.fromkeys(causes)]


def _tone(counts: dict[str, int]) -> str:
    if any(counts[status] for status in FAILURES):
        return "bad"
    return "good" if counts["passed"] else "odd"


def _wrapped(text: str, width: int | None) -> list[str]:
    if width is None or len(text) <= width:
        return [text]
    return textwrap.wrap(text, max(width, 20), subsequent_indent="    ", break_on_hyphens=False)


def _first_line(text: str) -> str:
    return text.partition("\n")[0]
