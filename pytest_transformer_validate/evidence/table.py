"""The checks, run over healthy models and mutants, as rows that anyone can recompute."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.checks.registry import all_checks
from pytest_transformer_validate.evidence.mutants import MUTANTS
from pytest_transformer_validate.evidence.zoo import ZOO
from pytest_transformer_validate.probe.probe import Probe
from pytest_transformer_validate.runner import ModelRun
from pytest_transformer_validate.subject.subject import Subject

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import torch

    from pytest_transformer_validate.checks.registry import Check
    from pytest_transformer_validate.evidence.mutants import Mutant
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

    def status(self, check: str) -> str:
        """The worst status among the cases of a check."""
        return worst([record for record in self.records if record.check == check])


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
) -> tuple[Record, ...]:
    """The records of ``checks`` on the model that ``build(seed)`` gives.

    ``config`` is the model's configuration, ``declared`` the deviations that are known.
    """
    run = ModelRun(name, declared=dict(declared or {}))

    @functools.cache
    def probe() -> Probe:
        model = build(seed)
        subject = Subject(model, config, seed=seed)
        return Probe(subject, seed=seed, weights=f"random (seed {seed})", rebuild=build)

    return tuple(
        run.judge(check, case, probe).record
        for check in checks
        for case in (check.cases or (None,))
    )


def tier1() -> list[Check]:
    """The checks of tier 1."""
    return [check for check in all_checks() if check.tier == 1]


def healthy_row(name: str, seed: int = 0) -> HealthyRow:
    """All checks of tier 1 on one model of the zoo."""
    healthy = ZOO[name]
    return HealthyRow(name, judge(name, healthy.build, healthy.config, tier1(), seed))


def mutant_row(name: str, seed: int = 0) -> MutantRow:
    """The check that has to catch a mutant, on the mutant and on its parent."""
    mutant = MUTANTS[name]
    named = [check for check in tier1() if check.name == mutant.check]
    records = judge(name, mutant.build, mutant.healthy.config, named, seed)
    return MutantRow(mutant, _parent_status(mutant.parent, mutant.check, seed), records)


@functools.cache
def _parent_status(parent: str, check: str, seed: int) -> str:
    named = [c for c in tier1() if c.name == check]
    return worst(judge(parent, ZOO[parent].build, ZOO[parent].config, named, seed))


def zoo_table(rows: Sequence[HealthyRow]) -> list[str]:
    """Healthy models by check, alarms below."""
    names = [check.name for check in tier1()]
    cells = [[row.model, *(row.status(name) for name in names)] for row in rows]
    lines = aligned([["model", *names], *cells])
    alarms = [record for row in rows for record in row.alarms]
    judged = sum(record.status != "skipped" for row in rows for record in row.records)
    lines += ["", f"{len(rows)} healthy models, {judged} verdicts, {len(alarms)} false alarms"]
    lines += [f"  {record.model}: {record.name} {record.status}" for record in alarms]
    return lines


def mutant_table(rows: Sequence[MutantRow]) -> list[str]:
    """One line a mutant, totals by check and family, misses below."""
    cells = [
        [
            row.mutant.check,
            row.mutant.family,
            row.mutant.name,
            row.mutant.parent,
            row.status,
            (row.evidence.where or "-") if row.evidence else "-",
            {True: "yes", False: "no", None: "-"}[row.localised],
        ]
        for row in rows
    ]
    header = ["check", "family", "mutant", "parent", "status", "where", "localised"]
    return [*aligned([header, *cells]), "", *_totals(rows), *_misses(rows)]


def _totals(rows: Sequence[MutantRow]) -> list[str]:
    counters = [
        Counter(row.mutant.check for row in rows if counts(row))
        for counts in (
            lambda row: True,
            lambda row: row.caught,
            lambda row: row.localised is not None,
            lambda row: row.localised,
        )
    ]
    cells = [[check, *(str(c[check]) for c in counters)] for check in counters[0]]
    total = ["all", *(str(counter.total()) for counter in counters)]
    families = len({row.mutant.family for row in rows})
    parents = len({row.mutant.parent for row in rows})
    return [
        *aligned([["check", "mutants", "caught", "to localise", "localised"], *cells, total]),
        "",
        f"{len(rows)} mutants in {families} families over {parents} models, "
        f"{sum(row.mutant.blind for row in rows)} of them written blind",
    ]


def _misses(rows: Sequence[MutantRow]) -> list[str]:
    return [
        f"  missed: {row.mutant.name} ({row.mutant.check} {row.status}, "
        f"parent {row.parent_status})"
        for row in rows
        if row.missed
    ] + [
        f"  declared undetectable: {row.mutant.name} ({row.mutant.undetectable})"
        for row in rows
        if row.mutant.undetectable
    ]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
