"""What backend_equivalence says, and what it may not take for a backend."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pytest_transformer_validate.checks.tier2.equivalence import backend_equivalence
from pytest_transformer_validate.errors import CheckFailed, NotApplicable
from pytest_transformer_validate.probe.backends import switched
from tests import models
from tests.models import probe_of


class Attention(models.Attention):
    """By hand where ``use_flash`` is off; ``scale`` is what the way by hand divides by."""

    def __init__(self, dim: int, heads: int, scale: float = 1.0) -> None:
        super().__init__(dim, heads)
        self.use_flash = True
        self.scale = scale

    def forward(self, x, causal=True, mask=None):
        if self.use_flash:
            return super().forward(x, causal, mask)
        b, t, d = x.shape
        q, k, v = (s.view(b, t, self.heads, -1).transpose(1, 2) for s in self.qkv(x).chunk(3, -1))
        scores = self.scale * q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
        scores = scores.masked_fill(~torch.ones(t, t, dtype=torch.bool).tril(), float("-inf"))
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, d))


def decoder(scale: float = 1.0) -> nn.Module:
    model = models.Decoder()
    for block in model.blocks:
        block.attention = Attention(32, 4, scale)
    return model


def test_a_flag_is_switched_and_given_back() -> None:
    model = decoder()
    found = backend_equivalence(probe_of(model))
    assert set(found.moved) == {
        "use_flash = False",
        "the math kernel of scaled_dot_product_attention",
    }
    assert all(block.attention.use_flash for block in model.blocks)


def test_a_way_that_scales_otherwise_is_found_where_it_is() -> None:
    with pytest.raises(CheckFailed, match=r"with use_flash = False") as caught:
        backend_equivalence(probe_of(decoder(1.01)))
    assert caught.value.where == "blocks.0.attention"
    assert caught.value.measurement.worst == "use_flash = False"


def test_a_way_that_is_not_there_is_a_note() -> None:
    model = decoder()
    for block in model.blocks:
        block.attention.scale = None  # the way by hand was never finished
    found = backend_equivalence(probe_of(model))
    assert [note[:34] for note in found.notes] == ["use_flash = False does not run (pla"[:34]]


class Named(models.Attention):
    """An implementation by name, as in a configuration of one's own."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.attn = "sdpa"

    def forward(self, x, causal=True, mask=None):
        y = super().forward(x, causal, mask)
        return y * 1.001 if self.attn == "eager" else y


def test_an_implementation_by_name_is_switched_to_those_that_the_code_knows() -> None:
    model = models.Decoder()
    model.blocks[1].attention = Named(32, 4)
    with pytest.raises(CheckFailed, match="with attn = 'eager'") as caught:
        backend_equivalence(probe_of(model))
    assert caught.value.where == "blocks.1.attention"
    assert model.blocks[1].attention.attn == "sdpa"


def test_one_way_only() -> None:
    with pytest.raises(NotApplicable, match="there is one way only"):
        backend_equivalence(probe_of(nn.Sequential(nn.Embedding(61, 16), nn.Linear(16, 61))))


class Changed(nn.TransformerEncoderLayer):
    """A step of its own, which the fast path does not take."""

    def _ff_block(self, x):
        return 0.5 * super()._ff_block(x)


def test_a_subclass_that_the_fast_path_passes_by() -> None:
    torch.manual_seed(0)

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(61, 32)
            layer = {"d_model": 32, "nhead": 4, "dim_feedforward": 64, "batch_first": True}
            self.layers = nn.ModuleList([nn.TransformerEncoderLayer(**layer), Changed(**layer)])
            self.head = nn.Linear(32, 61)

        def forward(self, input_ids):
            x = self.embed(input_ids)
            for layer in self.layers:
                x = layer(x)
            return self.head(x)

    with pytest.raises(CheckFailed, match="without its fast path") as caught:
        backend_equivalence(probe_of(Encoder(), task="masked_lm"))
    assert caught.value.where == "layers.1"
    assert torch.backends.mha.get_fastpath_enabled()


def test_transformers_models_change_their_implementation_and_get_it_back() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_layer=2, n_head=2, n_embd=32, vocab_size=61, n_positions=32, attn_implementation="sdpa"
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    probe = probe_of(model, config)
    found = backend_equivalence(probe)
    assert "set_attn_implementation('eager')" in found.moved
    assert probe.backends.texts() == ["plain", "right", "left"]
    assert model.config._attn_implementation == "sdpa"
    (switch,) = [s for s in probe.backends.switches() if s.kind == "method"]
    with switched(model, switch):
        assert model.config._attn_implementation == "eager"
    assert model.config._attn_implementation == "sdpa"


def test_scaled_dot_product_attention_is_left_as_it_was() -> None:
    before = F.scaled_dot_product_attention
    backend_equivalence(probe_of(models.Decoder()))
    assert F.scaled_dot_product_attention is before
    assert torch.backends.cuda.flash_sdp_enabled()
