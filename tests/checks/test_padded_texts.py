"""Padding in front of a text, in models that know no positions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_transformer_validate.checks.tier1.padding import padding
from pytest_transformer_validate.errors import NotApplicable
from tests import models
from tests.models import probe_of


class Recurrent(models.Decoder):
    """A state that decays; padding adds nothing to it, or what an empty step adds."""

    def __init__(self, leaves=False):
        super().__init__()
        del self.positions
        self.leaves, self.mix = leaves, nn.Linear(32, 32)

    def forward(self, input_ids, attention_mask=None):
        keep = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        keep = keep[..., None].to(self.head.weight.dtype)
        x = self.tokens(input_ids)
        given = self.mix(x * keep) if self.leaves else self.mix(x) * keep
        state, states = torch.zeros_like(x[:, 0]), []
        for step in given.unbind(1):
            state = 0.8 * state + step
            states.append(state)
        return self.head(self.norm(x + torch.stack(states, 1)))


def test_a_state_that_padding_leaves_alone():
    assert padding(probe_of(Recurrent()), "left").value < 1e-5


def test_a_trace_of_padding_is_no_count_of_positions():
    with pytest.raises(NotApplicable, match="a trace of what stands in front"):
        padding(probe_of(Recurrent(leaves=True)), "left")
