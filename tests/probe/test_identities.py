"""How much of its input each layer passes on, wherever the rows of a batch stand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_transformer_validate.checks.tier1.structure import layer_structure
from pytest_transformer_validate.errors import CheckFailed
from tests import models
from tests.models import probe_of


class Layer(nn.Module):
    """Given (B, T, D) or (T, B, D); residuals are taken ``sums`` times."""

    def __init__(self, time_first: bool, sums: int) -> None:
        super().__init__()
        self.time_first, self.sums = time_first, sums
        self.attention = models.Attention(32, 4)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)
        self.first, self.second = nn.LayerNorm(32), nn.LayerNorm(32)

    def attend(self, x):
        if not self.time_first:
            return self.attention(x)
        return self.attention(x.transpose(0, 1)).transpose(0, 1)

    def forward(self, x):
        x = self.sums * x + self.attend(self.first(x))
        return self.sums * x + self.down(self.up(self.second(x)).relu())


class Stack(models.Decoder):
    def __init__(self, time_first: bool, lost: int | None = None) -> None:
        super().__init__()
        self.time_first = time_first
        self.blocks = nn.ModuleList(Layer(time_first, int(n != lost)) for n in range(3))

    def hidden(self, ids):
        x = self.tokens(ids) + self.positions(torch.arange(ids.size(1)))
        x = x.transpose(0, 1) if self.time_first else x
        for block in self.blocks:
            x = block(x)
        return self.norm(x.transpose(0, 1) if self.time_first else x)


@pytest.mark.parametrize("time_first", [False, True])
def test_every_layer_passes_its_input_on(time_first):
    probe = probe_of(Stack(time_first))
    (group,) = probe.siblings.identities()
    assert [one.share for one in group] == pytest.approx([1, 1, 1], abs=0.1)
    assert all(one.positive == 1 and one.inner is not None for one in group)
    assert layer_structure(probe).layers == 3


@pytest.mark.parametrize("time_first", [False, True])
def test_the_layer_without_residuals_is_named(time_first):
    with pytest.raises(
        CheckFailed, match="residual connection is missing in this layer"
    ) as caught:
        layer_structure(probe_of(Stack(time_first, lost=1)))
    assert caught.value.where == "blocks.1"
