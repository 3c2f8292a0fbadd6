from __future__ import annotations

import random

import numpy
import pytest
import torch
from torch import nn

from pytest_transformer_validate.subject.guard import derive_seed, fingerprint, guard
from tests.models import Decoder


def state() -> tuple[object, ...]:
    return (
        random.getstate(),
        tuple(numpy.random.get_state()[1].tolist()),
        tuple(torch.get_rng_state().tolist()),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
    )


def pollute() -> None:
    random.random()
    numpy.random.rand()
    torch.rand(1)
    torch.set_default_dtype(torch.float64)
    torch.set_grad_enabled(False)
    torch.set_num_threads(torch.get_num_threads() + 1)
    torch.use_deterministic_algorithms(True)


@pytest.mark.parametrize("raises", [False, True])
def test_global_state_comes_back(raises):
    before = state()
    with pytest.raises(KeyError) if raises else guard(nn.Identity()), guard(nn.Identity()):
        pollute()
        if raises:
            raise KeyError
    assert state() == before


def test_the_model_comes_back():
    model = Decoder().train()
    model.register_buffer("count", torch.zeros(3))
    before = fingerprint(model)
    with guard(model):
        model.eval()
        model.head.weight.requires_grad_(False)
        model.tokens.weight.grad = torch.ones_like(model.tokens.weight)
        model.register_forward_hook(lambda *_: None)
        model.count += 1
    assert model.training
    assert model.head.weight.requires_grad
    assert model.tokens.weight.grad is None
    assert not model._forward_hooks
    assert model.count.tolist() == [0, 0, 0]
    assert fingerprint(model) == before


CHANGES = {
    "mode": lambda m: m.eval(),
    "weight": lambda m: m.head.weight.detach().add_(1),
    "hook": lambda m: m.register_forward_hook(lambda *_: None),
    "flag": lambda m: m.head.weight.requires_grad_(False),
    "module": lambda m: setattr(m, "head", nn.Linear(32, 101)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_changes_the_fingerprint(change):
    model = Decoder().train()
    before = fingerprint(model)
    CHANGES[change](model)
    assert fingerprint(model) != before


def test_inside_the_seed_decides():
    def draw(seed):
        with guard(nn.Identity(), seed):
            return random.random(), numpy.random.rand(), float(torch.rand(1))

    assert draw(1) == draw(1) != draw(2)
    assert derive_seed(0, "a", 1) == derive_seed(0, "a", 1) != derive_seed(0, "a", 2)
