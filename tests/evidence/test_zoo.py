"""Every healthy model is what it claims to be, and no check blames it."""

from __future__ import annotations

import json

import pytest
import torch

from pytest_transformer_validate.evidence import table
from pytest_transformer_validate.evidence.zoo import ZOO
from pytest_transformer_validate.subject.subject import Subject


@pytest.mark.parametrize("name", ZOO)
def test_task_is_found(name: str) -> None:
    healthy = ZOO[name]
    subject = Subject(healthy.build(), dict(healthy.config))
    assert subject.task.task_type == healthy.task


@pytest.mark.parametrize("name", ZOO)
def test_seed_decides_the_weights(name: str) -> None:
    state = torch.get_rng_state()
    first, again, other = (list(ZOO[name].build(seed).parameters()) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", ZOO)
def test_config_is_json(name: str) -> None:
    config = dict(ZOO[name].config)
    assert json.loads(json.dumps(config)) == config


@pytest.mark.parametrize("tier", [1, 2])
@pytest.mark.parametrize("name", ZOO)
def test_every_check_passes(name: str, tier: int) -> None:
    row = table.healthy_row(name, tier=tier)
    assert not row.alarms, "\n".join(record.message for record in row.alarms)
