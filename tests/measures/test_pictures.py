"""Numbers that are there to be drawn."""

from __future__ import annotations

import torch

from pytest_transformer_validate import validate
from pytest_transformer_validate.evidence.zoo import ZOO


def test_causality_tells_who_depends_on_whom() -> None:
    healthy = ZOO["nanogpt"]
    (record,) = validate(healthy.build(), healthy.config, checks="causality")
    effects = torch.tensor(record.numbers["effects"])
    assert 2 < len(effects) <= 32
    moved = (effects > 1e-4).float().argmax(dim=1)
    assert moved.tolist() == sorted(moved.tolist()), "a later token moves later positions only"
    assert moved[0] < moved[-1]


def test_gradients_are_told_over_depth() -> None:
    healthy = ZOO["nanogpt"]
    (record,) = validate(healthy.build(), healthy.config, checks="gradient_flow")
    depth = record.numbers["depth"]
    blocks = [name for name in depth if name.rpartition(".")[2].isdigit()]
    assert len(blocks) >= 2
    assert [int(name.rpartition(".")[2]) for name in blocks] == list(range(len(blocks)))
    assert max(depth.values()) == record.numbers["largest"]
