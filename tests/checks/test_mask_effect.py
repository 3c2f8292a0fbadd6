"""A mask that a model without attention takes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_transformer_validate.checks.tier1.mask_effect import mask_effect
from pytest_transformer_validate.errors import CheckFailed, NotApplicable
from tests import models
from tests.models import probe_of


class Mixer(nn.Module):
    """A causal convolution and a state that decays: all of a text comes through the former."""

    def __init__(self, hides):
        super().__init__()
        self.hides, self.conv = hides, nn.Conv1d(32, 32, 3, groups=32)
        self.out = nn.Linear(32, 32)

    def forward(self, x, mask):
        keep = mask[:, None].to(x.dtype) if self.hides else 1
        if self.hides is None:
            keep = mask[:, None].clamp(1)  # read, and without effect
        x = nn.functional.silu(self.conv(nn.functional.pad(x.mT * keep, (2, 0)))) * keep
        state, states = torch.zeros_like(x[..., 0]), []
        for step in x.unbind(-1):
            state = 0.8 * state + step
            states.append(state)
        return self.out(torch.stack(states, 1))


class Recurrent(models.Decoder):
    def __init__(self, hides=True):
        super().__init__()
        self.mixer = Mixer(hides)

    def forward(self, input_ids, attention_mask=None):
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        x = self.tokens(input_ids)
        return self.head(self.norm(x + self.mixer(x, mask)))


def test_states_that_hide_what_stands_in_front():
    assert mask_effect(probe_of(Recurrent())).value > 1e-3


@pytest.mark.parametrize("hides", [False, None], ids=["not read", "read"])
def test_a_mask_without_effect_is_not_the_fault_of_a_convolution(hides):
    with pytest.raises(CheckFailed, match="masking tokens by attention_mask moved") as caught:
        mask_effect(probe_of(Recurrent(hides)))
    assert caught.value.where == "mixer"


class Neighbours(models.Decoder):
    """Nothing but a convolution, and the mask zeroes what stands in front alone."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(32, 32, 3)

    def forward(self, input_ids, attention_mask=None):
        x = self.tokens(input_ids)
        if attention_mask is not None:
            x = x * (attention_mask.cumsum(1) > 0)[..., None]
        x = x + self.conv(nn.functional.pad(x.mT, (2, 0))).mT
        return self.head(self.norm(x))


def test_a_mask_that_hides_in_front_alone_is_spared():
    with pytest.raises(NotApplicable, match="in front of it they do not"):
        mask_effect(probe_of(Neighbours()))


class Instead(models.Decoder):
    """A given mask takes the place of the causal one; ``axes`` are those that the caller adds."""

    def __init__(self, axes):
        super().__init__()
        self.axes = axes

    def forward(self, input_ids, mask=None):
        x = self.tokens(input_ids) + self.positions.weight[: input_ids.shape[1]]
        if mask is not None and not self.axes:
            mask = mask[:, None, None]
        for block in self.blocks:
            x = block(x, causal=mask is None, mask=mask)
        return self.head(self.norm(x))


def test_a_mask_of_texts_cannot_stand_for_a_causal_one():
    with pytest.raises(CheckFailed, match="must give what no mask gives") as caught:
        mask_effect(probe_of(Instead(axes=0)))
    assert caught.value.where == "blocks.0.attention"


def test_a_mask_that_is_broadcast_may_be_a_causal_one():
    notes = mask_effect(probe_of(Instead(axes=2))).notes
    assert "mask of ones is not the same as none: it may carry a causal mask too" in notes


@pytest.mark.parametrize("hides", [True, False])
def test_half_precision_shows_what_a_mask_does(hides):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 37, "num_attention_heads": 4}
    config = transformers.BertConfig(**sizes, vocab_size=models.VOCAB, num_hidden_layers=2)

    class Bert(transformers.BertForMaskedLM):
        def forward(self, input_ids, attention_mask=None):
            return super().forward(input_ids, attention_mask if hides else None)

    torch.manual_seed(0)
    probe = probe_of(Bert(config).to(torch.bfloat16), config)
    if hides:
        assert mask_effect(probe).limit.rule == "at least 1/64 of the largest output"
    else:
        with pytest.raises(CheckFailed, match="1/64 of the largest output expected"):
            mask_effect(probe)


def test_a_decoder_with_a_head_for_each_token_has_something_to_hide():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    config = transformers.MistralConfig(**sizes, vocab_size=models.VOCAB, num_hidden_layers=2)
    config.num_key_value_heads, config.num_labels = 2, 3
    torch.manual_seed(0)
    model = transformers.MistralForTokenClassification(config)
    assert mask_effect(probe_of(model, config)).value > 0
