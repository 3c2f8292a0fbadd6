"""The checks, run over healthy models and mutants, as rows that anyone can recompute."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.checks.registry import all_checks
from pytest_transformer_validate.evidence.mutants import MUTANTS
from pytest_transformer_validate.evidence.words import LIMITS, Words
from pytest_transformer_validate.evidence.zoo import ZOO
from pytest_transformer_validate.probe.fitting import Fitting
from pytest_transformer_validate.probe.probe import Probe
from pytest_transformer_validate.probe.reference import Reference
from pytest_transformer_validate.runner import ModelRun
from pytest_transformer_validate.sources.base import LoadOptions
from pytest_transformer_validate.sources.live import LiveSource
from pytest_transformer_validate.subject.subject import Subject
from pytest_transformer_validate.task import TaskSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import torch

    from pytest_transformer_validate.checks.registry import Check
    from pytest_transformer_validate.evidence.mutants import Mutant
    from pytest_transformer_validate.evidence.zoo import Healthy
    from pytest_transformer_validate.report.record import Record

_WORST = ("broken", "failed", "blocked", "stale", "xfailed", "passed", "skipped")


@dataclass(frozen=True)
class HealthyRow:
    """What the checks said about one healthy model."""

    model: str
    records: tuple[Record, ...]

    @property
    def alarms(self) -> list[Record]:
        """Every record that pytest would count as a failure."""
        return [record for record in self.records if record.failure]


@dataclass(frozen=True)
class MutantRow:
    """What the named check said about one mutant, and about its parent."""

    mutant: Mutant
    parent_status: str
    records: tuple[Record, ...]

    @property
    def status(self) -> str:
        """The worst status among the cases of the named check."""
        return worst(self.records)

    @property
    def evidence(self) -> Record | None:
        """The first record that counts as a catch."""
        allowed = {"failed", "broken"} if self.mutant.raises else {"failed"}
        return next((record for record in self.records if record.status in allowed), None)

    @property
    def caught(self) -> bool:
        """Whether the check catches the mutant and passes its parent."""
        return self.evidence is not None and self.parent_status == "passed"

    @property
    def missed(self) -> bool:
        """Whether a mistake that can be found was not."""
        return not self.caught and not self.mutant.undetectable

    @property
    def localised(self) -> bool | None:
        """Whether the catch names the changed module or its parent, or the traceback shows the
        changed source; ``None`` where nothing was caught or no module can be named."""
        record = self.evidence
        if record is None or not self.mutant.where:
            return None
        if record.status == "broken" and self.mutant.filename in record.message:
            return True
        return self.mutant.localises(record.where)


def worst(records: Iterable[Record]) -> str:
    """The status that a reader has to know about first; ``-`` without records."""
    return min((record.status for record in records), key=_WORST.index, default="-")


def judge(
    name: str,
    build: Callable[[int], torch.nn.Module],
    config: Any,
    checks: Iterable[Check],
    seed: int = 0,
    declared: Mapping[str, str] | None = None,
    reference: Healthy | None = None,
    tokenizer: Any = None,
    fitting: Fitting | None = None,
) -> tuple[Record, ...]:
    """The records of ``checks`` on the model that ``build(seed)`` gives.

    ``config`` is the model's configuration, ``declared`` the deviations that are known;
    ``reference`` is what the model is compared with, built from another seed; with a
    ``tokenizer`` predictions have to stay at the declared rate; ``fitting`` is what copies of it
    are trained on, character by character.
    """
    checks = list(checks)
    if all(check.tier == 3 for check in checks):
        tokenizer = None
    run = ModelRun(name, limits=LIMITS if tokenizer else {}, declared=dict(declared or {}))

    @functools.cache
    def probe() -> Probe:
        model = build(seed)
        subject = Subject(model, config, tokenizer=tokenizer, seed=seed)
        compared = None
        if reference is not None:
            source = LiveSource(reference.name, reference.build(seed + 1), reference.config)
            compared = Reference(source, LoadOptions(seed=seed))
        weights = f"random (seed {seed})"
        return Probe(
            subject,
            seed=seed,
            weights=weights,
            rebuild=build,
            reference=compared,
            fitting=fitting,
        )

    return tuple(
        run.judge(check, case, probe).record
        for check in checks
        for case in (check.cases or (None,))
    )


def of_tier(tier: int) -> list[Check]:
    """The checks of a tier, without slow ones."""
    return [check for check in all_checks() if check.tier == tier and not check.slow]


def healthy_row(name: str, seed: int = 0, tier: int = 1) -> HealthyRow:
    """All checks of a tier on one model of the zoo."""
    healthy = ZOO[name]
    checks = of_tier(tier)
    return HealthyRow(
        name, judge(name, healthy.build, healthy.config, checks, seed, tokenizer=Words())
    )


def mutant_row(name: str, seed: int = 0) -> MutantRow:
    """The check that has to catch a mutant, on the mutant and on its parent; both are compared
    with the parent where a check compares."""
    mutant = MUTANTS[name]
    named = [check for check in all_checks() if check.name == mutant.check]
    healthy = mutant.healthy
    records = judge(
        name,
        mutant.build,
        healthy.config,
        named,
        seed,
        reference=healthy,
        tokenizer=mutant.tokenizer,
        fitting=fitting_of(healthy),
    )
    return MutantRow(mutant, _parent_status(mutant.parent, mutant.check, seed), records)


@functools.cache
def _parent_status(parent: str, check: str, seed: int) -> str:
    named, healthy = [c for c in all_checks() if c.name == check], ZOO[parent]
    records = judge(
        parent,
        healthy.build,
        healthy.config,
        named,
        seed,
        reference=healthy,
        tokenizer=Words(),
        fitting=fitting_of(healthy),
    )
    return worst(records)


def fitting_of(healthy: Healthy) -> Fitting:
    """Short texts with a target and a label each, for a model that reads tokens."""
    reads_tokens = TaskSpec(healthy.task).reads_tokens
    return Fitting(
        str(Path(__file__).with_name("texts.jsonl")) if reads_tokens else None, epochs=6
    )


_COLUMNS = ("passed", "failed", "declared", "does not apply", "no answer")
_COLUMN_OF = {
    "passed": "passed",
    "failed": "failed",
    "xfailed": "declared",
    "stale": "failed",
    "skipped": "does not apply",
}


def by_check(models: Sequence[Sequence[Record]]) -> list[str]:
    """On how many models each check passed, failed, was declared, did not apply, or had no answer
    (broken, blocked): a model counts by the worst of a check's cases."""
    cells = [["check", *_COLUMNS]]
    seen = {record.check for records in models for record in records}
    for name in (check.name for check in all_checks() if check.name in seen):
        found = [
            _COLUMN_OF.get(worst(r for r in records if r.check == name), "no answer")
            for records in models
        ]
        cells.append([name, *(str(found.count(column)) for column in _COLUMNS)])
    return aligned(cells)


def zoo_table(rows: Sequence[HealthyRow]) -> list[str]:
    """Healthy models by check, alarms below."""
    alarms = [record for row in rows for record in row.alarms]
    judged = sum(record.status != "skipped" for row in rows for record in row.records)
    lines = by_check([row.records for row in rows])
    lines += ["", f"{len(rows)} healthy models, {judged} verdicts, {len(alarms)} false alarms"]
    lines += [f"  {record.model}: {record.name} {record.status}" for record in alarms]
    return lines


def mutant_table(rows: Sequence[MutantRow]) -> list[str]:
    """Mutants by check and family, totals by check, what is missed or not localised below."""
    return [*_counted(rows, "family"), "", *_counted(rows), "", _extent(rows), *_misses(rows)]


_COUNTS: dict[str, Callable[[MutantRow], bool]] = {
    "mutants": lambda row: True,
    "caught": lambda row: row.caught,
    "to localise": lambda row: row.localised is not None,
    "localised": lambda row: bool(row.localised),
}


def _counted(rows: Sequence[MutantRow], *more: str) -> list[str]:
    """Counts by check and by ``more`` fields of the mutants."""
    keys = [tuple(getattr(row.mutant, field) for field in ("check", *more)) for row in rows]
    cells = [["check", *more, *_COUNTS]]
    for key in sorted(set(keys), key=keys.index):
        found = [row for row, own in zip(rows, keys, strict=True) if own == key]
        cells.append([*key, *(str(sum(map(count, found))) for count in _COUNTS.values())])
    if not more:
        cells.append(["all", *(str(sum(map(count, rows))) for count in _COUNTS.values())])
    return aligned(cells)


def _extent(rows: Sequence[MutantRow]) -> str:
    parents: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        parents.setdefault((row.mutant.check, row.mutant.family), []).append(row.mutant.parent)
    wide = sum(len(set(models)) >= 3 for models in parents.values())
    return (
        f"{len(rows)} mutants in {len(parents)} families ({wide} of them over three or more "
        f"models), over {len({row.mutant.parent for row in rows})} models; "
        f"{sum(row.mutant.blind for row in rows)} were written blind"
    )


def _misses(rows: Sequence[MutantRow]) -> list[str]:
    return (
        [
            f"  missed: {row.mutant.name} ({row.mutant.check} {row.status}, "
            f"parent {row.parent_status})"
            for row in rows
            if row.missed
        ]
        + [
            f"  not localised: {row.mutant.name} ({row.mutant.check} names {row.evidence.where})"
            for row in rows
            if row.evidence is not None and row.localised is False
        ]
        + [
            f"  declared undetectable: {row.mutant.name} ({row.mutant.undetectable})"
            for row in rows
            if row.mutant.undetectable
        ]
    )


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
