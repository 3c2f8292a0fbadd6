"""Numbers that are there to be drawn."""

from __future__ import annotations

import torch

from pytest_transformer_validate import validate
from pytest_transformer_validate.evidence.zoo import ZOO
from pytest_transformer_validate.measures.gradients import over_depth
from pytest_transformer_validate.probe.gradients import Gradients


def test_causality_tells_who_depends_on_whom() -> None:
    healthy = ZOO["nanogpt"]
    (record,) = validate(healthy.build(), healthy.config, checks="causality")
    effects = torch.tensor(record.numbers["effects"])
    assert 2 < len(effects) <= 32
    moved = (effects > 1e-4).float().argmax(dim=1)
    assert moved.tolist() == record.numbers["tried"]


def test_gradients_are_told_over_depth() -> None:
    healthy = ZOO["nanogpt"]
    (record,) = validate(healthy.build(), healthy.config, checks="gradient_flow")
    depth = record.numbers["depth"]
    blocks = [name for name in depth if name.rpartition(".")[2].isdigit()]
    assert len(blocks) >= 2
    assert [int(name.rpartition(".")[2]) for name in blocks] == list(range(len(blocks)))
    assert max(depth.values()) == record.numbers["largest"]


def test_a_parameter_without_a_gradient_counts_as_none_at_all() -> None:
    norms = {"h.0.w": None, "h.0.b": 2.0, "h.1.w": None, "head.weight": 1.0, "scale": 3.0}
    assert over_depth(Gradients(norms=norms)) == {
        "h.0": 2.0,
        "h.1": 0.0,
        "head": 1.0,
        "scale": 3.0,
    }
