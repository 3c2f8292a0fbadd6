"""Texts padded on the right, and in front in models that know no positions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_transformer_validate.checks.tier1.padding import padding
from pytest_transformer_validate.errors import CheckFailed, NotApplicable
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


class Half(models.Decoder):
    """Computes in bfloat16, rounds as the length has it, and returns float32; where it ``leaks``
    the last output is added to all."""

    def __init__(self, leaks=False):
        super().__init__()
        self.leaks = leaks
        self.to(torch.bfloat16)

    def forward(self, input_ids):
        size = input_ids.size(1)
        logits = (super().forward(input_ids) / size * size).float()
        return logits + 0.01 * logits[:, -1:] if self.leaks else logits


class Autocast(models.Decoder):
    """Weights and outputs are float32, and bfloat16 is what it computes in."""

    def __init__(self, leaks=False):
        super().__init__()
        self.inner = Half(leaks).float()

    def forward(self, input_ids):
        with torch.autocast("cpu", torch.bfloat16):
            return self.inner(input_ids)


@pytest.mark.parametrize("model", [Half, Autocast])
def test_the_rounding_of_half_precision_is_no_padding_that_leaks(model):
    """float32 logits say nothing of the rounding behind them."""
    measured = padding(probe_of(model()), "right")
    assert measured.value > 16 * measured.limit.value
    assert any("rounding" in note for note in measured.notes)


@pytest.mark.parametrize("model", [Half, Autocast])
def test_padding_that_leaks_in_half_precision_is_found(model):
    with pytest.raises(CheckFailed, match="still"):
        padding(probe_of(model(leaks=True)), "right")


class Relative(models.Decoder):
    """An encoder that knows distances; without the mask in texts that are too long for it."""

    masked = 64

    def __init__(self):
        super().__init__()
        del self.positions
        self.decay = nn.Parameter(torch.ones(4))

    def forward(self, input_ids, attention_mask=None):
        x, length = self.tokens(input_ids), input_ids.size(1)
        places = torch.arange(length)
        bias = -(places[:, None] - places).abs() * self.decay[:, None, None]
        if attention_mask is not None and length <= self.masked:
            bias = bias.masked_fill(attention_mask[:, None, None] == 0, -1e4)
        for block in self.blocks:
            x = block(x, mask=bias.expand(len(x), -1, -1, -1))
        return self.head(self.norm(x))


def test_where_padding_in_front_is_seen_too_it_is_no_place_for_it():
    config, model = {"task": "masked_lm", "max_seq_len": 64}, Relative()
    padding(probe_of(model, config), "right")
    model.masked = 16
    with pytest.raises(CheckFailed, match="a text of 32 tokens was padded to 64"):
        padding(probe_of(model, config), "right")
