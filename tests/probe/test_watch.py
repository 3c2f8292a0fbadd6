"""During which module something happens, and which layers are built alike."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from pytest_transformer_validate.probe.alike import like_layers, undropped
from pytest_transformer_validate.probe.trace import ROOT, traced
from pytest_transformer_validate.probe.watch import (
    drawing,
    first_change,
    first_difference,
    same,
    watched,
)

CPU = torch.device("cpu")


class Leaf(nn.Module):
    def forward(self, x):
        return x + 1


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.leaf = Leaf()

    def forward(self, x):
        x = self.leaf(x)
        return x + torch.rand(1)


class Two(nn.Module):
    """Calls its first part only where ``both`` is not set."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([Noisy(), Leaf()])
        self.both = True

    def forward(self, x):
        x = self.parts[0](x) if self.both else x
        return self.parts[1](x)


def test_events_name_the_module_whose_code_ran():
    names: list[str] = []
    called: list[str] = []
    model = Two()
    with watched(model, names.append, called=lambda name, *_: called.append(name)):
        model(torch.zeros(1))
    assert called == ["parts.0.leaf", "parts.0", "parts.1", ROOT]
    assert names == [
        ROOT,
        ROOT,
        "parts.0",
        "parts.0.leaf",
        "parts.0",
        ROOT,
        "parts.1",
        ROOT,
    ]
    assert not model._forward_hooks


def test_who_draws_and_who_changes():
    model = Two()
    model.register_buffer("seen", torch.zeros(1))
    model.parts[1].register_forward_pre_hook(lambda *_: model.seen.add_(1) and None)
    with drawing(model, CPU) as names, first_change(model, lambda: bool(model.seen)) as found:
        model(torch.zeros(1))
    assert names == ["parts.0"]
    assert found == [ROOT]


def test_the_first_difference():
    model = Two()

    def calls(seed):
        torch.manual_seed(seed)
        with traced(model) as found:
            model(torch.zeros(1))
        return found

    one, other = calls(0), calls(1)
    assert first_difference(model, one, other) == "parts.0"
    assert first_difference(model, one, calls(0)) is None
    model.both = False
    assert first_difference(model, one, calls(0)) == ROOT


def test_equal_bit_by_bit():
    nan = torch.tensor([1.0, float("nan")])
    assert same(nan, nan.clone())
    assert not same(nan, torch.tensor([1.0, 2.0]))
    assert not same(nan, nan.double())
    assert not same(torch.ones(2), torch.ones(3))


class Layer(nn.Module):
    def __init__(self, number: int, rate: float = 0.1) -> None:
        super().__init__()
        self.number, self.rate = number, rate
        self.drop = nn.Dropout(rate)


class Late(Layer):
    def forward(self, x):
        return F.relu(x)


def test_layers_are_alike_by_class_and_settings():
    model = nn.Module()
    model.layers = nn.ModuleList(
        [Layer(0), Late(1), Layer(2, rate=0.2), nn.Linear(2, 2), Layer(4)]
    )
    assert like_layers(model) == [["layers.0", "layers.1", "layers.4"]]
    assert like_layers(model, rates=False) == [["layers.0", "layers.1", "layers.2", "layers.4"]]
    model.layers[2].kept = 0.3
    model.layers[0].weight = nn.Parameter(torch.ones(1))
    model.layers[0].drop_rate = 0.2
    assert like_layers(model, rates=False) == [["layers.1", "layers.4"]], "of other modules"


def stack(*rates: float | None) -> nn.Module:
    model = nn.Module()
    layers = [nn.Sequential(nn.Linear(2, 2), nn.Identity()) for _ in rates]
    for layer, rate in zip(layers, rates, strict=True):
        if rate is not None:
            layer[1] = nn.Dropout(rate)
    model.layers = nn.ModuleList(layers)
    return model


def test_a_layer_without_the_dropout_of_the_others():
    assert undropped(stack(None, 0.1)) == [("layers.0.1", "layers.1.1")]
    assert undropped(stack(0.1, 0.0, 0.1)) == [("layers.1.1", "layers.2.1")]


def test_dropout_that_rises_with_the_depth_or_spares_the_end():
    assert undropped(stack(None, 0.1, 0.2)) == []
    assert undropped(stack(0.1, 0.1, None)) == []
    assert undropped(stack(None, None, 0.1)) == []
    assert undropped(stack(0.1, 0.1)) == []
