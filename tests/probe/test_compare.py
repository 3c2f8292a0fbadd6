from __future__ import annotations

import math

import pytest
import torch

from pytest_transformer_validate.errors import Blocked
from pytest_transformer_validate.probe.compare import difference, without_nan

INFINITY = math.inf


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_same_infinity_is_no_difference(dtype):
    a = torch.tensor([INFINITY, -INFINITY, INFINITY, 3.0, 6e4], dtype=dtype)
    b = torch.tensor([INFINITY, -INFINITY, -INFINITY, 1.0, -6e4], dtype=dtype)
    found = difference(a, b).tolist()
    assert found[:4] == [0, 0, INFINITY, 2]
    assert difference(a, torch.full_like(a, math.nan)).isnan().all()


def test_both_infinities_are_no_nan():
    logits = torch.tensor([INFINITY, -INFINITY, 1.0])
    assert without_nan(logits) is logits
    with pytest.raises(Blocked, match="logits hold NaN"):
        without_nan(torch.tensor([INFINITY, math.nan]))
