"""Layers of a stack: those that change nothing, their rank, and what they would say."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn

from pytest_transformer_validate.checks.tier2.representation import layer_effect, logit_lens
from pytest_transformer_validate.errors import CheckFailed, NotApplicable
from pytest_transformer_validate.evidence.zoo import ZOO
from tests.models import Block, Decoder, OneHot, probe_of


def test_numbers_of_every_layer():
    measured = layer_effect(probe_of(Decoder()))
    assert measured.modules == ["blocks.0", "blocks.1"]
    assert measured.value == min(*measured.changes, *measured.follows) > 0.01
    assert all(1 <= rank <= 32 for rank in measured.ranks)
    assert all(0 < part <= 1 for part in measured.capacity)
    assert measured.growth == max(measured.sizes)


def test_the_rank_of_states_on_a_line_is_one():
    class Line(Block):
        def forward(self, x, causal=True, mask=None):
            return super().forward(x, causal, mask)[..., :1] * torch.ones(32)

    model = Decoder()
    model.blocks[1] = Line()
    assert layer_effect(probe_of(model)).ranks[1] == pytest.approx(1, abs=0.01)


def test_both_stacks_of_a_translation():
    healthy = ZOO["seq2seq"]
    measured = layer_effect(probe_of(healthy.build(), healthy.config))
    stacks = ["encoder_layers.0", "encoder_layers.1", "decoder_layers.0", "decoder_layers.1"]
    assert measured.modules == stacks


class Scaled(Block):
    """Both branches scaled by a parameter that starts at ``start``."""

    def __init__(self, start):
        super().__init__()
        self.scale = nn.Parameter(torch.full((32,), start))

    def forward(self, x, causal=True, mask=None):
        x = x + self.scale * self.attention(self.norm1(x), causal, mask)
        return x + self.scale * self.mlp(self.norm2(x))


@pytest.mark.parametrize("start", [0.0, 1e-6])
def test_a_layer_that_starts_at_nothing_is_healthy(start):
    model = Decoder()
    model.blocks = nn.ModuleList([Scaled(start), Scaled(start)])
    measured = layer_effect(probe_of(model))
    assert "2 layers change nothing as loaded" in measured.notes[0]


def test_a_gate_that_is_drawn_small_is_no_dead_layer(monkeypatch):
    model = Decoder()
    model.blocks = nn.ModuleList([Scaled(0.0), Scaled(0.0)])
    probe = probe_of(model)
    move = type(probe.moved_weights).at_random

    @contextlib.contextmanager
    def small(self):
        with move(self):
            if self.probe.seed == probe.seed:
                for block in model.blocks:
                    block.scale.data = torch.full((32,), 1e-7)
            yield

    monkeypatch.setattr(type(probe.moved_weights), "at_random", small)
    assert "start at zero" in layer_effect(probe).notes[0]


def test_a_layer_that_changes_nothing_fails():
    class Idle(Block):
        def forward(self, x, causal=True, mask=None):
            return x + 1e-6 * super().forward(x, causal, mask)

    model = Decoder()
    model.blocks = nn.ModuleList([Idle(), Idle()])
    with pytest.raises(CheckFailed, match="2 of 2 layers do not reach") as caught:
        layer_effect(probe_of(model))
    assert caught.value.where == "blocks.0"
    assert caught.value.measurement.value < 1e-4


class PostNorm(Block):
    """Norms behind the sums; what is added is scaled by ``scale``."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, x, causal=True, mask=None):
        x = self.norm1(x + self.scale * self.attention(x, causal, mask))
        return self.norm2(x + self.scale * self.mlp(x))


def test_a_norm_behind_a_dead_branch_is_no_effect():
    model = Decoder()
    model.blocks = nn.ModuleList([PostNorm(1.0), PostNorm(1e-6)])
    with pytest.raises(CheckFailed, match=r"blocks.1 follows its own weights .* 1 of 2") as caught:
        layer_effect(probe_of(model))
    assert caught.value.where == "blocks.1"


@pytest.mark.parametrize("scale", [1.0, 0.2, nn.Parameter(torch.full((32,), 1e-6))])
def test_post_norm_is_healthy(scale):
    model = Decoder()
    model.blocks = nn.ModuleList([PostNorm(scale), PostNorm(scale)])
    before = [p.detach().clone() for p in model.parameters()]
    layer_effect(probe_of(model))
    assert all(map(torch.equal, before, model.parameters()))


def test_a_layer_that_is_called_twice_is_measured_once():
    class Again(Decoder):
        def hidden(self, ids):
            x = super().hidden(ids)
            return self.norm(self.blocks[0](x))

    measured = layer_effect(probe_of(Again()))
    assert measured.modules == ["blocks.0", "blocks.1", "blocks.0"]
    assert min(measured.follows) > 0.01


def test_no_stack_does_not_apply():
    for check in (layer_effect, logit_lens):
        with pytest.raises(NotApplicable, match="no (list|stack)"):
            check(probe_of(OneHot(), {"vocab_size": 101}))


def test_the_last_layer_says_what_the_model_says():
    measured = logit_lens(probe_of(Decoder()))
    assert measured.modules == ["blocks.0", "blocks.1"]
    assert measured.agreement[-1] == 1
    assert measured.divergence[-1] == 0 < measured.divergence[0]
    assert "information" in measured.notes[0]


def test_a_lens_is_the_model_without_its_last_layers():
    model = Decoder()
    probe = probe_of(model)
    batch = probe.layers._batch()
    cut = probe.layers._cut("blocks.1", probe.layers.seen("eval").gave[0])
    model.blocks = model.blocks[:1]
    torch.testing.assert_close(cut.float(), model.eval()(batch["input_ids"]).detach())
