"""Records as lines of text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.report.record import STATUSES, Record
from pytest_transformer_validate.report.text import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

_LONGEST_REASON = 200


def summary(records: Sequence[Record]) -> list[str]:
    """For every model what it was judged as, and for every tier how many had which status."""
    lines = []
    for model, own in by_model(records).items():
        about = context_line(own)
        lines.append(printable(f"{model}: {about}" if about else model))
        for tier in sorted({record.tier for record in own}):
            lines.append(_tier_line(tier, [r for r in own if r.tier == tier]))
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
    context: dict[str, Any] = {}
    for record in reversed(records):
        context |= record.context
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


def _tier_line(tier: int, records: Sequence[Record]) -> str:
    counts = {status: sum(r.status == status for r in records) for status in STATUSES}
    words = "  ".join(f"{number} {status}" for status, number in counts.items() if number)
    return f"  tier {tier}   {words}   {sum(r.seconds for r in records):.1f} s"


def _first_line(text: str) -> str:
    return text.partition("\n")[0]
