"""Cuts of the gradient that leave another way: which ones are found, and which are meant."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_transformer_validate.checks.tier1.gradients import gradient_flow
from pytest_transformer_validate.errors import CheckFailed, NotApplicable
from tests import models
from tests.models import probe_of


class Seam(models.Decoder):
    """A decoder with a place for a cut behind its first block."""

    def hidden(self, ids):
        x = self.tokens(ids) + self.positions(torch.arange(ids.size(1)))
        return self.norm(self.second(self.blocks[0](x)))

    def second(self, x):
        return self.blocks[1](x)


class Skip(Seam):
    def second(self, x):
        return x.detach() + self.blocks[1](x)


class Data(Seam):
    def second(self, x):
        return x + self.blocks[1](x.data)


class TiedByData(Seam):
    def forward(self, input_ids):
        return self.hidden(input_ids) @ self.tokens.weight.data.T + self.head(
            self.tokens(input_ids)
        )


class Members(Seam):
    """A name in which a word for a cut that is meant happens to stand."""

    def second(self, x):
        remaining = x.detach()
        return remaining + self.blocks[1](x)


@pytest.mark.parametrize(
    ("model", "line"),
    [
        (Members, "remaining = x.detach()"),
        (Skip, "x.detach() + self.blocks[1](x)"),
        (Data, "self.blocks[1](x.data)"),
        (TiedByData, "self.tokens.weight.data.T"),
    ],
)
def test_a_cut_that_changes_gradients_is_found(model, line):
    with pytest.raises(CheckFailed, match="a cut keeps a part of the gradient back") as caught:
        gradient_flow(probe_of(model()))
    assert line in caught.value.message
    assert caught.value.where == "(model)"


class Straight(Seam):
    """A rounding that passes gradients on."""

    def second(self, x):
        return self.blocks[1](x + (x.round(decimals=1) - x).detach())


class Quantised(Seam):
    def second(self, x):
        return self.blocks[1](x * 0.5 + 0.5 * (x * 4).round().div(4).detach())


class Maximum(Seam):
    def second(self, x):
        return self.blocks[1]((x - x.amax(-1, keepdim=True).detach()).exp())


class Normed(Seam):
    """A norm that gradients do not go through, as in DoRA."""

    def second(self, x):
        return self.blocks[1](x / (x.norm(dim=-1, keepdim=True).detach() + 1e-6))


class Shrunk(Seam):
    """Smaller gradients for all that comes before."""

    def second(self, x):
        return self.blocks[1](0.1 * x + x.detach() * 0.9)


class Looped(models.Decoder):
    """One block several times, with gradients through the last round alone."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Round()])

    def hidden(self, ids):
        x = self.tokens(ids) + self.positions(torch.arange(ids.size(1)))
        return self.norm(x + self.blocks[0](self.blocks[0](x)))


class Round(models.Block):
    def forward(self, x, causal=True, mask=None):
        return super().forward(0.5 * x + 0.5 * x.sigmoid().detach(), causal, mask)


class Refusing(Seam):
    """A step that takes no tensor with a gradient."""

    def second(self, x):
        scale = x.detach()
        if scale.requires_grad:
            raise TypeError("no gradient here")
        return self.blocks[1](x) * scale


class Beside(Seam):
    """What is detached goes to a result beside the logits."""

    def forward(self, input_ids):
        hidden = self.hidden(input_ids)
        return self.head(hidden), hidden.detach().mean(1)


@pytest.mark.parametrize(
    "model",
    [Straight, Quantised, Maximum, Normed, Shrunk, Looped, Refusing, Beside, models.Decoder],
)
def test_a_cut_that_is_meant_passes(model):
    gradient_flow(probe_of(model()))


def test_nothing_is_run_without_a_cut(monkeypatch):
    probe = probe_of(models.Decoder())
    monkeypatch.setattr(type(probe.cuts), "harmful", lambda *_: pytest.fail("no cut was seen"))
    assert not probe.gradients().cut
    gradient_flow(probe)


class Served(models.Decoder):
    forward = torch.inference_mode()(models.Decoder.forward)


def test_a_forward_for_inference_alone_is_not_judged():
    with pytest.raises(NotApplicable, match="not for training"):
        gradient_flow(probe_of(Served()))
