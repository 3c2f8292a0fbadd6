"""Decay groups, the schedule's values, the norm of the gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from pytest_transformer_validate.training.config import Optimization
from pytest_transformer_validate.training.optim import (
    Schedule,
    decay_groups,
    gradient_norm,
    make_optimizer,
)
from tests.training.models import tiny_lm


def test_matrices_decay_and_vectors_do_not():
    decaying, plain = decay_groups(tiny_lm(), 0.1)
    assert (decaying["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert {p.dim() for p in decaying["params"]} == {2}
    assert {p.dim() for p in plain["params"]} == {1}


def test_frozen_parameters_are_left_out():
    model = tiny_lm()
    model.embed.requires_grad_(False)
    params = [p for group in decay_groups(model, 0.1) for p in group["params"]]
    assert all(p is not model.embed.weight for p in params)


def test_nothing_to_train_is_said():
    with pytest.raises(ValueError, match="nothing to train"):
        make_optimizer(tiny_lm().requires_grad_(False), Optimization())


def test_the_optimizer_is_fused():
    assert make_optimizer(tiny_lm(), Optimization()).defaults["fused"]


def test_the_learning_rate_rises_linearly_and_falls_as_a_cosine():
    optimizer = make_optimizer(tiny_lm(), Optimization(learning_rate=1e-2))
    schedule = Schedule(optimizer, steps=20, warmup_ratio=0.2)
    rates = []
    for _ in range(20):
        rates.append(schedule.learning_rate)
        schedule.step()
    assert rates[:4] == pytest.approx([0.0025, 0.005, 0.0075, 0.01])
    cosine = [1e-2 * 0.5 * (1 + math.cos(math.pi * at / 16)) for at in range(16)]
    assert rates[4:] == pytest.approx(cosine)
    assert schedule.learning_rate == pytest.approx(0, abs=1e-12)


def test_a_schedule_goes_on_where_it_was():
    one = Schedule(make_optimizer(tiny_lm(), Optimization()), 10, 0.1)
    for _ in range(4):
        one.step()
    other = Schedule(make_optimizer(tiny_lm(), Optimization()), 10, 0.1)
    other.begin(4 / 10)
    assert other.learning_rate == one.learning_rate


def test_the_norm_is_that_of_all_gradients_together():
    model = nn.Linear(2, 2)
    model(torch.ones(1, 2)).sum().backward()
    grads = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert gradient_norm(model.parameters()) == pytest.approx(grads.norm())
    assert gradient_norm([nn.Parameter(torch.ones(1))]) == 0
