"""A run against an older one: verdicts that got worse, numbers that outgrew their budget."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.report.record import FAILURES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pytest_transformer_validate.report.json import Stored
    from pytest_transformer_validate.report.record import Record

_BETTER, _UNJUDGED, _WORSE = range(3)
# What two timings have to share, in the run and in the record, to be compared.
_SAME_RUN = ("machine", "workers")
_SAME_RECORD = ("device", "dtype")
_TOLD = ("task", "parameters", "device", "dtype", "seed", "weights")


@dataclass(frozen=True, kw_only=True)
class BudgetOf:
    """A declared budget: ``number`` of ``check`` may be ``growth`` times the baseline's."""

    check: str
    number: str
    growth: float
    timed: bool = False

    @property
    def name(self) -> str:
        """As in ``tb_limits``."""
        return f"{self.check}.{self.number}_growth"


@dataclass
class Comparison:
    """``worse`` fails the run; ``changed`` may explain it; ``notes`` say what was not compared."""

    worse: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def lines(self, name: str) -> list[str]:
        """Text about the comparison with the file ``name``; nothing where all is as it was."""
        count = len(self.worse)
        head = f"baseline {name}: {count} thing{'s'[: count != 1]} got worse"
        lines = [head, *(f"  {line}" for line in self.worse)] if count else []
        if count and self.changed:
            lines.append(f"  changed since: {'; '.join(self.changed)}")
        return lines + [f"baseline {name}: {note}" for note in self.notes]


def compare(old: Stored, new: Stored, budgets: Sequence[BudgetOf]) -> Comparison:
    """What got worse from ``old`` to ``new``.

    A verdict is worse where a check that passed does not, and where one that failed by
    declaration or was skipped now fails. What ran in one of them alone cannot be compared.
    """
    found = Comparison()
    before, after = _by_id(old.records), _by_id(new.records)
    for name, record in after.items():
        if name in before and _rank(record) > _rank(before[name]):
            found.worse.append(f"{name}: {record.status}, was {before[name].status}")
    for budget in budgets:
        _hold(budget, old, new, found)
    gone = [name for name in before if name not in after]
    if gone:
        found.notes.append(f"{_checks(len(gone))} of it did not run here, the first {gone[0]}")
    found.changed += _changes(old, new)
    return found


def _hold(budget: BudgetOf, old: Stored, new: Stored, found: Comparison) -> None:
    """Hold one budget against every model that both runs have the number of."""
    before, after = (_by_id(_of_check(each, budget)) for each in (old, new))
    for name, record in after.items():
        was, now = (_number(each.get(name), budget) for each in (before, after))
        reason = _missing(was, now)
        if reason is None and budget.timed:
            reason = _elsewhere(old, new, before[name], record)
        if reason is not None:
            found.notes.append(f"{name}: {budget.name} was not held: {reason}")
        elif was is not None and now is not None and now > was * budget.growth:
            times = f"{now / was:.3g} times" if was else "from nothing"
            found.worse.append(
                f"{name}: {budget.number} {now:.6g}, was {was:.6g}: {times} "
                f"(limit {budget.growth:g} = {budget.name})"
            )


def _missing(was: float | None, now: float | None) -> str | None:
    if was is None:
        return "the baseline does not have the number"
    return "this run does not have the number" if now is None else None


def _elsewhere(old: Stored, new: Stored, before: Record, after: Record) -> str | None:
    """Why two timings cannot be compared."""
    pairs = [(key, old.run.get(key), new.run.get(key)) for key in _SAME_RUN]
    pairs += [(key, before.context.get(key), after.context.get(key)) for key in _SAME_RECORD]
    other = [key for key, was, now in pairs if was is None or was != now]
    return f"times tell nothing with another {' and '.join(other)}" if other else None


def _changes(old: Stored, new: Stored) -> Iterator[str]:
    """What is different besides the verdicts."""
    was, now = (_versions(each.run) for each in (old, new))
    yield from _differences("", was, now)
    before, after = (_contexts(each.records) for each in (old, new))
    for model in after:
        if model in before:
            yield from _differences(f"{model}: ", before[model], after[model])


def _differences(head: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for key, value in now.items():
        if key in was and was[key] != value:
            yield f"{head}{key} {was[key]} -> {value}"


def _versions(run: Mapping[str, Any]) -> dict[str, Any]:
    packages = run.get("packages")
    known = dict(packages) if isinstance(packages, dict) else {}
    return {**known, **{key: run[key] for key in ("python", "machine") if key in run}}


def _contexts(records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        known = {key: record.context[key] for key in _TOLD if key in record.context}
        found.setdefault(record.model, {}).update(known)
    return found


def _of_check(stored: Stored, budget: BudgetOf) -> list[Record]:
    return [record for record in stored.records if record.check == budget.check]


def _number(record: Record | None, budget: BudgetOf) -> float | None:
    value: Any = None if record is None else record.numbers.get(budget.number)
    return float(value) if type(value) in {int, float} else None


def _by_id(records: Sequence[Record]) -> dict[str, Record]:
    return {f"{r.model}::tier{r.tier}::{r.name}": r for r in records}


def _rank(record: Record) -> int:
    if record.status in FAILURES:
        return _WORSE
    return _BETTER if record.status == "passed" else _UNJUDGED


def _checks(count: int) -> str:
    return f"{count} check{'s'[: count != 1]}"
