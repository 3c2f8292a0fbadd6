"""Checks of tier 3 pass on every healthy model."""

from __future__ import annotations

import pytest

from pytest_transformer_validate.checks.registry import all_checks
from pytest_transformer_validate.evidence import table
from pytest_transformer_validate.evidence.zoo import ZOO

TIER3 = [check for check in all_checks() if check.tier == 3]


@pytest.mark.parametrize("name", ZOO)
def test_every_training_passes(name: str) -> None:
    healthy = ZOO[name]
    records = table.judge(name, healthy.build, healthy.config, TIER3)
    found = {record.check: (record.status, record.message) for record in records}
    assert found.pop("fine_tuning") == ("skipped", "no data: give some with --tb-data=PATH")
    assert {status for status, _ in found.values()} == {"passed"}, found
