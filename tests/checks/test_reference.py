"""What reference says about ports, refactorings and twins."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pytest_transformer_validate import validate
from pytest_transformer_validate.checks.tier2.reference import reference
from pytest_transformer_validate.errors import CheckFailed, NotApplicable
from pytest_transformer_validate.probe.probe import Probe
from pytest_transformer_validate.probe.reference import Reference
from pytest_transformer_validate.sources.base import LoadOptions
from pytest_transformer_validate.sources.live import LiveSource
from pytest_transformer_validate.subject.subject import Subject
from tests import models


def compared(model, other, *, weights="as given", config=None, task=None):
    source = LiveSource("old", other, config)
    given = Reference(source, LoadOptions())
    return Probe(Subject(model, config, task=task), weights=weights, reference=given)


class Refactored(models.Decoder):
    """The same parameters in the same places, computed otherwise."""

    def forward(self, input_ids):
        x = self.tokens(input_ids) + self.positions.weight[: input_ids.size(1)]
        for block in self.blocks:
            a = block.attention
            q, k, v = a.qkv(block.norm1(x)).unflatten(-1, (3, a.heads, -1)).permute(2, 0, 3, 1, 4)
            x = x + a.out(
                F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
            )
            x = x + block.mlp(block.norm2(x))
        return self.head(self.norm(x))


def test_a_refactoring_gets_the_same_weights_and_says_the_same() -> None:
    model, old = Refactored(), models.Decoder()
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in (model, old)]
    found = reference(compared(model, old))
    assert found.weights == "the model's in both"
    assert found.value <= found.limit.value
    assert (found.top1, found.reference) == (1.0, "old")
    assert set(found.moved) == {"plain", "noised", "long"}
    assert max(found.layers.values()) < 1e-5
    for kept, now in zip(before, (model.state_dict(), old.state_dict()), strict=True):
        assert all(torch.equal(kept[name], now[name]) for name in kept)
    assert not torch.equal(model.head.weight, old.head.weight)


def test_the_first_layer_to_differ() -> None:
    model = models.Decoder()
    model.blocks[1].norm2.eps = 1e-2
    with pytest.raises(CheckFailed, match="the model must say what its reference says") as caught:
        reference(compared(model, models.Decoder()))
    assert caught.value.where == "blocks.1.norm2"
    assert caught.value.measurement.first == "blocks.1.norm2"
    assert caught.value.measurement.aligned == "names"
    assert "the same largest logit at" in caught.value.message


class Renamed(nn.Module):
    """A port with names of its own; ``exact`` is the activation of the original."""

    def __init__(self, of: models.Decoder, exact: bool = True) -> None:
        super().__init__()
        self.wte, self.wpe, self.ln_f, self.lm_head = of.tokens, of.positions, of.norm, of.head
        self.h = of.blocks
        if not exact:
            self.h[1].mlp[1] = nn.GELU(approximate="tanh")

    def forward(self, idx):
        x = self.wte(idx) + self.wpe(torch.arange(idx.size(1)))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


def test_a_port_with_other_names_is_compared_as_it_is() -> None:
    old = models.Decoder()
    found = reference(compared(Renamed(copy.deepcopy(old)), old))
    assert found.value == 0.0
    assert found.weights == "as loaded: as given and as given"
    port = Renamed(copy.deepcopy(old), exact=False)
    with torch.no_grad():
        for model in (port.h, old.blocks):
            model[1].mlp[0].weight.copy_(old.blocks[1].mlp[0].weight * 4)
    with pytest.raises(CheckFailed, match=r"modules were paired by (names|order)") as caught:
        reference(compared(port, old))
    assert caught.value.where == "h.1.mlp"
    assert "(in the reference: blocks.1.mlp)" in caught.value.message


def test_random_weights_that_cannot_be_the_same_are_no_comparison() -> None:
    with pytest.raises(NotApplicable, match=r"cannot be the same in both \(\d+ in one of the two"):
        reference(compared(Renamed(models.Decoder()), models.Decoder(), weights="random (seed 0)"))


def test_without_a_reference() -> None:
    with pytest.raises(NotApplicable, match="name one by --tb-reference"):
        reference(models.probe_of(models.Decoder()))


def test_a_forgotten_tie() -> None:
    model, old = models.Decoder(), models.Decoder()
    old.head = nn.Linear(32, models.VOCAB)
    old.head.weight = old.tokens.weight
    with pytest.raises(CheckFailed, match="are one tensor in old and hold different") as caught:
        reference(compared(model, old))
    assert caught.value.where == "head"


def test_a_twin_in_half_precision_has_room_for_it() -> None:
    old = models.Decoder()
    found = reference(compared(copy.deepcopy(old).to(torch.bfloat16), old))
    assert "u of bfloat16" in found.limit.rule
    broken = copy.deepcopy(old).to(torch.bfloat16)
    broken.blocks[0].attention.heads = 2
    with pytest.raises(CheckFailed):
        reference(compared(broken, old))


@pytest.mark.filterwarnings("ignore")
def test_a_quantised_twin_is_judged_by_its_predictions() -> None:
    old = models.Decoder()
    kind = {nn.Linear}
    twin = torch.ao.quantization.quantize_dynamic(copy.deepcopy(old), kind, dtype=torch.qint8)
    found = reference(compared(twin, old))
    assert found.limit.rule == "nats, for quantised weights"
    assert 0 < found.value < 0.05
    with pytest.raises(CheckFailed, match="nats, for quantised weights"):
        reference(compared(twin, old), kl=1e-12)


class Last(models.Decoder):
    def forward(self, input_ids):
        return super().forward(input_ids)[:, -1]


def test_other_outputs_are_another_model() -> None:
    with pytest.raises(CheckFailed, match=r"logits are \(5, 11, 101\) here and \(5, 101\) in old"):
        reference(compared(models.Decoder(), Last()))


def test_validate_takes_a_reference_and_leaves_it_as_it_was() -> None:
    model, old = Refactored(), models.Decoder().train()
    (record,) = validate(model, checks="reference", reference=old)
    assert record.status == "passed", record.message
    assert old.training
    assert record.numbers["reference"] == "Decoder"
    (record,) = validate(model, checks="reference")
    assert record.status == "skipped"
