from __future__ import annotations

import random
import weakref
from typing import ClassVar

import numpy
import pytest
import torch
from torch import nn

from pytest_transformer_validate.subject.guard import Keeper, derive_seed, fingerprint, guard
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


class Keeps(nn.Module):
    """State of every kind that models keep outside of parameters and buffers."""

    shared: ClassVar[list[torch.Tensor]] = []
    calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.mask = None
        self.table = torch.zeros(3)
        self.large = torch.zeros(1 << 17)
        self.past = [torch.zeros(2)]
        self.tables = {"sin": torch.zeros(2)}
        self.hidden = [nn.Linear(2, 2)]
        self.cache = Cache()
        self.register_buffer("seen", torch.zeros(2))
        self.linear = nn.Linear(2, 2)

    def state(self) -> tuple[object, ...]:
        tensors = (self.table, *self.past, *self.tables.values(), *self.cache.keys, self.seen)
        return (
            *((id(t), t.tolist()) for t in (*tensors, *self.shared)),
            (self.count, self.calls, self.mask, sorted(vars(self)), self.hidden[0].training),
            id(self.hidden[0].weight),
            id(self.linear.weight),
            self.linear.weight.data_ptr(),
        )


class Cache:
    def __init__(self) -> None:
        self.keys = [torch.zeros(2)]


def write_everywhere(model: Keeps) -> None:
    model.count += 1
    Keeps.calls += 1
    Keeps.shared.append(torch.ones(1))
    model.mask = torch.ones(2)
    model.lazily = torch.ones(2)
    model.table += 1
    model.past.append(torch.ones(2))
    model.past[0].add_(1)
    model.tables["cos"] = model.tables.pop("sin") + 1
    model.hidden[0].eval()
    model.hidden[0].weight = nn.Parameter(torch.ones(2, 2))
    model.cache.keys[0] = torch.ones(2)
    model.seen = torch.ones(5)


def test_what_a_model_keeps_comes_back():
    model = Keeps()
    before, written = model.state(), fingerprint(model)
    with guard(model):
        write_everywhere(model)
        model.linear.weight.data = torch.ones(2, 2)
    assert model.state() == before
    assert fingerprint(model) == written


def test_statistics_of_batch_norms_come_back():
    norm = nn.BatchNorm1d(2).train()
    with guard(norm):
        norm(torch.randn(8, 2))
    assert norm.running_mean.tolist() == [0, 0]
    assert norm.running_var.tolist() == [1, 1]
    assert norm.num_batches_tracked == 0


def test_an_exchanged_parameter_comes_back():
    model = Keeps()
    before = model.state()
    with guard(model):
        model.linear.weight = nn.Parameter(torch.ones(2, 2))
    assert model.state() == before


class Folds(nn.Linear):
    """As adapters do: the update is folded into the weight in evaluation."""

    def train(self, mode: bool = True):
        folded, self.folded = getattr(self, "folded", False), not mode
        if self.folded != folded:
            self.weight.data += 1 if self.folded else -1
        return super().train(mode)


def test_what_folds_at_a_change_of_mode_comes_back():
    model = Folds(2, 2)
    before = model.weight.tolist()
    with guard(model):
        model.eval()
        assert model.weight.tolist() != before
    assert model.weight.tolist() == before


def test_a_keeper_gives_back_what_was_there_when_it_was_entered():
    model = Keeps()
    keeper = Keeper(model)
    with keeper.guard():
        write_everywhere(model)
    model.count, model.extra, model.mask = 7, [torch.ones(1)], torch.full((2,), 5.0)
    model.seen.data = torch.full((2,), 3.0)
    model.hidden.append(nn.Linear(1, 1))
    model.linear = nn.Linear(3, 3)
    before, linear = model.state(), model.linear
    for _ in range(3):
        with keeper.guard():
            write_everywhere(model)
            model.seen.add_(1)
            model.extra[0] += 1
            model.linear = nn.Linear(2, 2)
            linear.weight.data = torch.ones(3, 3)
        assert model.state() == before
        assert model.extra[0].tolist() == [1]
    assert model.linear is linear


def test_a_keeper_holds_no_weights():
    model = nn.Linear(2, 2)
    keeper = Keeper(model)
    original, model.weight.data = model.weight.data, torch.ones(2, 2)
    with keeper.guard():
        model(torch.zeros(1, 2))
    moved = weakref.ref(model.weight.data.untyped_storage())
    model.weight.data = original
    with keeper.guard():
        assert model.weight.data_ptr() == original.data_ptr()
    del original
    assert moved() is None


def test_a_mode_reaches_all_modules_and_is_given_back():
    model = nn.Sequential(nn.Dropout(), nn.ModuleDict({"a": nn.BatchNorm1d(2)})).train()
    model[1].eval()
    modes = [m.training for m in model.modules()]
    with Keeper(model).guard() as kept:
        for mode in (True, False):
            kept.train(mode)
            assert {m.training for m in model.modules()} == {mode}
    assert [m.training for m in model.modules()] == modes


def test_a_train_method_of_a_models_own_is_called():
    model = nn.Sequential(Folds(2, 2)).train()
    before = model[0].weight.tolist()
    with Keeper(model).guard() as kept:
        kept.train(False)
        assert model[0].weight.tolist() != before
    assert model[0].weight.tolist() == before
    assert model[0].training


CHANGES = {
    "mode": lambda m: m.eval(),
    "weight": lambda m: m.head.weight.detach().add_(1),
    "hook": lambda m: m.register_forward_hook(lambda *_: None),
    "flag": lambda m: m.head.weight.requires_grad_(False),
    "module": lambda m: setattr(m, "head", nn.Linear(32, 101)),
}


KEEPS = {
    "attribute": lambda m: setattr(m, "mask", torch.ones(2)),
    "list": lambda m: m.past.append(torch.ones(2)),
    "object": lambda m: m.cache.keys.append(torch.ones(2)),
    "large": lambda m: m.large.add_(1),
}


@pytest.mark.parametrize("change", KEEPS)
def test_a_kept_tensor_changes_the_fingerprint(change):
    model = Keeps()
    before = fingerprint(model)
    KEEPS[change](model)
    assert fingerprint(model) != before


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


def test_a_gradient_that_was_there_is_not_added_to():
    model = Decoder()
    model.head.weight.grad = torch.ones_like(model.head.weight)
    with guard(model):
        model(torch.zeros(1, 3, dtype=torch.long)).sum().backward()
    assert model.head.weight.grad.equal(torch.ones_like(model.head.weight))
    assert model.tokens.weight.grad is None
