"""What parameter_initialization says of badly drawn weights, and what it leaves alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pytest_transformer_validate.checks.tier1.initialization import parameter_initialization
from pytest_transformer_validate.errors import CheckFailed, NotApplicable
from pytest_transformer_validate.probe.probe import Probe
from pytest_transformer_validate.subject.subject import Subject
from tests import models


def judge(model: nn.Module, config=None, task=None, weights="random (seed 0)"):
    return parameter_initialization(Probe(Subject(model, config, task=task), weights=weights))


def fails(model: nn.Module, words: str, **given) -> CheckFailed:
    with pytest.raises(CheckFailed, match=words) as caught:
        judge(model, **given)
    return caught.value


def drawn(model: nn.Module, std: float = 0.02) -> nn.Module:
    """The model with an init function of its own."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=std)
    return model


def test_the_table_holds_every_parameter():
    model = models.Decoder()
    measured = judge(model)
    assert 0.9 < measured.value < 1.3
    cost, guess = measured.initial_loss.values()
    assert cost / guess == pytest.approx(measured.value)
    assert [row["parameter"] for row in measured.parameters] == [
        name for name, _ in model.named_parameters()
    ]
    row = measured.parameters[0]
    assert set(row) == {"parameter", "shape", "mean", "std", "min", "max", "status"}
    assert row["std"] == pytest.approx(1, abs=0.05)


def test_loaded_and_trained_weights_are_left_alone():
    with pytest.raises(NotApplicable, match="were loaded"):
        judge(models.Decoder(), weights="model.safetensors")
    model = models.Decoder()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    with pytest.raises(NotApplicable, match="may be trained"):
        judge(model, weights="as given")
    judge(models.Decoder(), weights="as given")


def tied(std: float, config=None) -> nn.Module:
    model = drawn(models.Decoder())
    nn.init.normal_(model.tokens.weight, std=std)
    model.head.weight = model.tokens.weight
    return model


def test_a_unit_normal_table_as_head():
    assert fails(tied(1.0), "tokens.weight .* has one of 1").where == "tokens"
    judge(tied(0.02))
    asked = judge(tied(1.0), {"initializer_factor": 1.0})
    assert "initializer_factor in the configuration asks" in asked.notes[0]


class Wide(models.Decoder):
    def __init__(self):
        super().__init__()
        nn.init.normal_(self.head.weight, std=3.0)


def test_a_wide_head_that_is_no_table():
    with pytest.raises(CheckFailed, match="head.weight") as caught:
        judge(Wide())
    assert "draws it so" in caught.value.message
    assert "tied" not in caught.value.message


class RulesOut(models.Decoder):
    """Ids that were there cannot come again."""

    def __init__(self, scale):
        super().__init__()
        nn.init.normal_(self.head.weight, std=scale)

    def forward(self, input_ids):
        logits = super().forward(input_ids)
        seen = torch.zeros_like(logits).scatter_(2, input_ids[..., None], 1.0).cumsum(1) > 0
        return logits.masked_fill(seen, -1e4)


def test_labels_that_are_ruled_out_cost_nothing():
    assert judge(RulesOut(0.02)).value < 1.2
    with pytest.raises(CheckFailed, match="cross entropy on random labels"):
        judge(RulesOut(3.0))


def test_a_small_model_that_initialises_nothing_trains_all_the_same():
    model = models.Decoder()
    model.head.weight = model.tokens.weight
    assert "tokens.weight is not initialised" in judge(model).notes[0]


def test_copied_layers_and_copied_heads():
    model = models.Decoder()
    model.blocks[1] = copy.deepcopy(model.blocks[0])
    assert fails(model, "hold the same numbers").where == "blocks.1"
    model = models.Decoder()
    with torch.no_grad():
        weight = model.blocks[0].attention.qkv.weight
        weight[:32] = weight[:8].repeat(4, 1)
    assert fails(model, "outputs 8 to 31 of 96").where == "blocks.0.attention.qkv"


class Scaled(nn.Module):
    """A norm by hand; ``offset`` is added to its scale."""

    def __init__(self, offset):
        super().__init__()
        self.gamma, self.offset = nn.Parameter(torch.randn(32) * 0.02), offset

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (self.offset + self.gamma)


Scaled.__name__ = "RMSNorm"


def test_the_scale_of_a_norm_is_no_noise():
    model = models.Decoder()
    nn.init.normal_(model.norm.weight, std=0.02)
    assert fails(model, "is noise around zero").where == "norm"
    model.norm = Scaled(0.0)
    assert fails(model, "norm.gamma, is noise").where == "norm"
    model.norm = Scaled(1.0)
    judge(model)


def test_torch_copies_its_layers_by_itself():
    assert "torch's own container" in judge(models.TimeMajor()).notes[0]


def test_scales_and_blocks_that_stand_out():
    model = models.Decoder()
    with torch.no_grad():
        model.blocks[1].mlp[0].weight.mul_(10)
    assert fails(model, "in the layers beside it").where == "blocks.1.mlp.0"
    model = models.Decoder()
    with torch.no_grad():
        model.blocks[0].mlp[0].weight[32:] = 0
    assert fails(model, "outputs 32 to 63 of 64").where == "blocks.0.mlp.0"


def test_zero_queries_in_every_layer_are_a_way_to_start():
    model = models.Decoder()
    with torch.no_grad():
        for block in model.blocks:
            block.attention.qkv.weight[:32] = 0
    assert "starts at zero, as in other layers" in judge(model).notes[0]


def test_memory_that_nobody_wrote():
    model = models.Decoder()
    model.head.weight.data[3] = float("nan")
    assert fails(model, "torch.empty").where == "head"
    model = models.Decoder()
    model.head.weight.data[3] = 1e-41
    assert fails(model, "torch.empty").where == "head"


@pytest.mark.parametrize("gates", ["output", "head", "residual", "both"])
def test_zeros_that_training_leaves_and_zeros_that_it_does_not(gates):
    model = models.Decoder()
    if gates == "head":
        nn.init.zeros_(model.head.weight)
    for block in model.blocks if gates != "head" else []:
        nn.init.zeros_(block.mlp[2].weight)
        nn.init.zeros_(block.mlp[2].bias)
        if gates == "residual":
            nn.init.zeros_(block.attention.out.weight)
        if gates == "both":
            nn.init.zeros_(block.mlp[0].weight)
            nn.init.zeros_(block.mlp[0].bias)
    if gates == "both":
        assert fails(model, "training never changes them").where == "blocks.0.mlp"
    else:
        judge(model)


def test_a_scale_that_follows_the_depth_is_a_law():
    model = models.Decoder()
    model.blocks = nn.ModuleList(models.Block() for _ in range(8))
    with torch.no_grad():
        for depth, block in enumerate(model.blocks):
            block.mlp[2].weight.div_((2 * (depth + 1)) ** 0.5)
            block.attention.out.weight.div_(depth + 1)
    judge(model)


def test_weights_that_all_start_at_zero_are_no_default():
    model = models.Decoder()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.weight)
    assert not Probe(Subject(model)).drawn.by_default()


class Widened(nn.Module):
    """A part that ``torch.jit.script`` takes."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_a_model_with_scripted_parts_is_judged():
    model = models.Decoder()
    model.blocks.append(torch.jit.script(Widened()))
    assert any("inner.weight" in name for name in map(str, judge(model).parameters))


def test_a_frozen_table_is_as_it_was_given():
    model = models.Decoder()
    nn.init.normal_(model.head.weight, std=2.0)
    fails(model, "the weight that makes them, head.weight")
    model.head.weight.requires_grad_(False)
    assert any("head.weight is frozen as given" in note for note in judge(model).notes)
