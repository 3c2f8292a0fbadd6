"""Rows of a weight that no gradient reaches."""

from __future__ import annotations

import types

import pytest
import torch

from pytest_transformer_validate.measures.gradients import dead_block


@pytest.mark.parametrize(
    ("size", "runs", "block"),
    [
        (96, [(32, 64)], (32, 64)),  # a key
        (96, [(12, 16), (36, 40), (60, 64), (84, 88)], (12, 16)),  # half a key in every head
        (96, [(12, 16), (36, 40), (61, 65)], None),  # at no distance
        (96, [(12, 14), (36, 38), (60, 62), (84, 86)], None),  # single units
        (96, [(12, 16)], None),  # too few
        (96, [(12, 16), (50, 58)], (50, 58)),
        (8, [(0, 8)], None),  # all: another finding
    ],
)
def test_a_block_of_outputs_without_a_gradient(size, runs, block):
    dead = torch.zeros(size, dtype=torch.bool)
    for first, end in runs:
        dead[first:end] = True
    found = types.SimpleNamespace(dead_rows={"w": dead})
    assert dead_block(found, "w") == block
