from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_transformer_validate.probe.trace import (
    Call,
    first_not_finite,
    first_to_differ,
    traced,
    where_raised,
)
from tests.models import Decoder


def test_inner_modules_end_first():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU()))
    with traced(model) as calls:
        model(torch.ones(1, 2))
    assert [call.name for call in calls] == ["0", "1.0", "1", "(model)"]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_first_module_with_clean_inputs_and_another_output():
    one, two = torch.ones(1), torch.zeros(1)
    before = [Call("a", [one], [one]), Call("b.c", [one], [one]), Call("b", [one], [one])]
    after = [Call("a", [one], [one]), Call("b.c", [two], [two]), Call("b", [one], [two])]
    assert first_to_differ(before, after, lambda a, b: not torch.equal(a, b)) == "b"
    assert first_to_differ(before, before, lambda a, b: not torch.equal(a, b)) is None


@pytest.mark.parametrize(("skipped", "where"), [("b.c", "b"), ("b", "(model)"), ("a", "(model)")])
def test_the_innermost_module_around_one_that_is_left_out(skipped, where):
    one, two = torch.ones(1), torch.zeros(1)
    names = ["a", "b.c", "b", "d", "(model)"]
    before = [Call(name, [one], [one]) for name in names]
    after = [Call(n, [one], [two if n == where else one]) for n in names if n != skipped]
    assert first_to_differ(before, after, lambda a, b: not torch.equal(a, b)) == where
    assert first_to_differ(before, before[1:], lambda a, b: not torch.equal(a, b)) is None


def test_the_first_module_that_gives_nan():
    class Divides(nn.Module):
        def forward(self, x):
            return x / 0

    model = nn.Sequential(nn.Identity(), Divides(), nn.ReLU())
    with traced(model) as calls:
        model(torch.zeros(2, 2))
    assert first_not_finite(calls) == "1"


def test_where_an_exception_was_raised():
    model = Decoder()
    model.blocks[1].attention.out = nn.Linear(3, 3)
    with pytest.raises(RuntimeError) as caught:
        model(torch.zeros(1, 4, dtype=torch.long))
    assert where_raised(model, caught.value) == "blocks.1.attention.out"
    assert where_raised(model, ValueError("elsewhere")) is None
