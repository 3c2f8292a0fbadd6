"""Every check on a tiny model of every architecture of the installed transformers, as a table."""

from __future__ import annotations

import concurrent.futures
import logging
import multiprocessing
import re
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_transformer_validate.evidence import table
from pytest_transformer_validate.evidence.architectures import (
    Architecture,
    NotBuildable,
    architectures,
    build,
)
from pytest_transformer_validate.evidence.deviations import DEVIATIONS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from pytest_transformer_validate.report.record import Record

_LINE = 110


@dataclass(frozen=True)
class SurveyRow:
    """What the checks said about one architecture; ``problem`` says why there is no model."""

    architecture: str
    records: tuple[Record, ...] = ()
    problem: str = ""

    @property
    def task(self) -> str:
        return self.architecture.partition(":")[0]

    @property
    def alarms(self) -> list[Record]:
        """Every record that pytest would count as a failure."""
        return [record for record in self.records if record.failure]


def survey(
    workers: int = 1, chosen: Sequence[Architecture] | None = None, tier: int = 1
) -> Iterator[SurveyRow]:
    """Judge architectures (default: all), each in a fresh model, as they get ready.

    ``workers`` processes share the work; every one of them computes on one thread.
    """
    todo = architectures() if chosen is None else list(chosen)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context, _prepare) as pool:
        for row in concurrent.futures.as_completed(
            [pool.submit(survey_row, a, tier) for a in todo]
        ):
            yield row.result()


def survey_row(architecture: Architecture, tier: int = 1) -> SurveyRow:
    """All checks of a tier on one architecture."""
    name = str(architecture)
    try:
        model = build(architecture)
    except NotBuildable as error:
        return SurveyRow(name, problem=_first_line(str(error)))

    def again(seed: int) -> torch.nn.Module:
        return model if seed == 0 else build(architecture, seed)

    checks = table.of_tier(tier)
    names = {check.name for check in checks}
    known = DEVIATIONS.get(name, {})
    declared = {key: why for key, why in known.items() if key.partition("[")[0] in names}
    return SurveyRow(name, table.judge(name, again, model.config, checks, 0, declared))


def survey_table(rows: Sequence[SurveyRow]) -> list[str]:
    """By check: on how many models it passed, failed, was declared, did not apply, or could not
    answer (broken or blocked); the count of each reason; every alarm and declaration."""
    built = [row for row in rows if not row.problem]
    tasks = Counter(row.task for row in built)
    lines = [
        f"{len(built)} of {len(rows)} architectures build: "
        + ", ".join(f"{count} {task}" for task, count in tasks.items()),
        "",
        *table.by_check([row.records for row in built]),
        "",
        "why a check does not apply (models)",
        *_reasons(built),
    ]
    for title, statuses in (
        ("declared", {"xfailed"}),
        ("alarms", {"failed", "stale", "broken", "blocked"}),
    ):
        found = [r for row in built for r in row.records if r.status in statuses]
        lines += ["", f"{title}: {len(found)} records", *(f"  {_told(r)}" for r in found)]
    problems = sorted(row.architecture for row in rows if row.problem)
    return [*lines, "", "no tiny model: " + (", ".join(problems) or "none")]


def _reasons(rows: Sequence[SurveyRow]) -> list[str]:
    counts: Counter[tuple[str, str]] = Counter()
    for row in rows:
        seen = {(r.name, _general(r.message)) for r in row.records if r.status == "skipped"}
        counts.update(seen)
    order = sorted(counts, key=lambda key: (key[0], -counts[key]))
    return [f"  {name}: {counts[name, reason]} x {reason}" for name, reason in order]


def _general(reason: str) -> str:
    """A reason without the numbers of one model, so that equal ones are counted together."""
    return re.sub(r"(?<![\w.])\d+(\.\d+)?(e-?\d+)?(?!\w)", "n", _first_line(reason))


def _told(record: Record) -> str:
    return f"{record.model} {record.name} {record.status}: {_first_line(record.message)}"


def _first_line(text: str) -> str:
    line = text.strip().partition("\n")[0]
    return line if len(line) <= _LINE else f"{line[: _LINE - 3]}..."


def _prepare() -> None:
    """In a new worker: one thread, and no lines about defaults that nobody chose."""
    import torch
    from transformers.utils import logging as log

    torch.set_num_threads(1)
    log.set_verbosity(logging.ERROR)
    warnings.simplefilter("ignore")
