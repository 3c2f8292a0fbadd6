"""Tensors that are exchanged on the way."""

from __future__ import annotations

import torch

from pytest_transformer_validate.probe.hooked import put


def test_a_tensor_that_is_given_twice_is_exchanged_in_both_places():
    x, other, new = torch.zeros(2), torch.ones(2), torch.full((2,), 3.0)
    given = ((x, other), {"first": x})
    args, kwargs = put(given, [x, other, x], [new, other, x])
    assert args[0] is new
    assert args[1] is other
    assert kwargs["first"] is new
