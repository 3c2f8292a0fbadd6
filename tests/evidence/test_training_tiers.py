"""Checks of tier 3 pass on every healthy model, and each is the only one to find something."""

from __future__ import annotations

import pytest

from pytest_transformer_validate.checks.registry import all_checks
from pytest_transformer_validate.evidence import table
from pytest_transformer_validate.evidence.mutants import MUTANTS
from pytest_transformer_validate.evidence.zoo import ZOO
from tests.real import needed

TIER3 = [check for check in all_checks() if check.tier == 3]
ALONE = {
    "one_batch_overfit": "tanh_on_logits",
    "loss_curve": "restart_inside_the_model",
    "accumulation_equivalence": "centred_over_the_rows",
    "seeded_training": "mask_from_the_system",
    "fine_tuning": "multiplier_in_evaluation_alone",
}


@pytest.fixture(scope="module", autouse=True)
def _reads_files() -> None:
    needed("datasets")


@pytest.mark.parametrize("name", ZOO)
def test_every_training_passes(name: str) -> None:
    healthy = ZOO[name]
    fitting = table.fitting_of(healthy)
    records = table.judge(name, healthy.build, healthy.config, TIER3, fitting=fitting)
    found = {record.check: (record.status, record.message) for record in records}
    if fitting.data is None:
        assert found.pop("fine_tuning") == ("skipped", "no data: give some with --tb-data=PATH")
    assert {status for status, _ in found.values()} == {"passed"}, found


def test_every_check_has_its_mutant() -> None:
    assert set(ALONE) == {check.name for check in TIER3}


@pytest.mark.parametrize("check", ALONE)
def test_only_this_check_finds_it(check: str) -> None:
    mutant = MUTANTS[ALONE[check]]
    assert mutant.check == check
    fitting = table.fitting_of(mutant.healthy)
    records = table.judge(mutant.name, mutant.build, mutant.healthy.config, TIER3, fitting=fitting)
    assert {r.check for r in records if r.failure} == {check}
