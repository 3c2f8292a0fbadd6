"""Rows 46, 47, 49 and 50 of the table of bad input: every outcome is one that was meant.

Tier 1 runs over all models of the table in one run, and over some of them on two workers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.bad_inputs.forwards import CASES
from tests.bad_inputs.running import Seen, run, write

if TYPE_CHECKING:
    from pathlib import Path

    from tests.bad_inputs.loads import Case

STATUSES = {"passed", "failed", "broken", "blocked", "skipped"}
CHECKS = "load or shape_robustness or output_stability or gradient_flow or statelessness"
CHECKS += " or determinism or output_kind or layer_structure"


ARGS = ("-m", "tier1", "-k", CHECKS)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    folder = tmp_path_factory.mktemp("forwards")
    return run(folder, write(folder, CASES).values(), *ARGS)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_row(seen: Seen, case: Case) -> None:
    assert seen.code == 1, seen.shown[-3000:]
    records = seen.records[f"{case.id}/model.py"]
    assert {record["status"] for record in records} <= STATUSES
    told = [r["message"] for r in records if r["status"] in {"failed", "broken", "blocked"}]
    for message in told:
        assert "pytest_transformer_validate" not in message, message
    assert bool(told) == bool(case.words), told
    for words in case.words:
        assert any(words in message for message in told), told
    skipped = {record["message"] for record in records if record["status"] == "skipped"}
    if case.name in {"scripted", "exported", "quantised-by-torch"}:
        assert len(skipped) == 1, "one reason for every check"
    else:
        assert len(skipped) < len(records)


def test_two_workers_say_the_same(seen: Seen, tmp_path: Path) -> None:
    some = CASES[:12:3] + CASES[14:20:3]
    other = run(tmp_path, write(tmp_path, some).values(), "-n2", *ARGS)
    assert other.code == 1
    for model, records in other.records.items():
        told = [(r["check"], r["case"], r["status"], r["message"]) for r in records]
        known = [(r["check"], r["case"], r["status"], r["message"]) for r in seen.records[model]]
        assert told == known
    assert len(other.records) == len(some)
