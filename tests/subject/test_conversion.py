"""Another dtype for a whole model."""

from __future__ import annotations

import pytest
import torch

from pytest_transformer_validate.subject.conversion import convert


class Rotary(torch.nn.Module):
    """A rotary table of complex numbers beside a complex weight that has two names."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(2, 2)
        self.turn = torch.nn.Parameter(torch.randn(3, dtype=torch.complex64))
        self.again = self.turn
        self.register_buffer("table", torch.polar(torch.ones(3), torch.arange(3.0)))
        self.register_buffer("steps", torch.arange(3))


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float32, torch.complex64),
        (torch.float64, torch.complex128),
        (torch.bfloat16, torch.complex64),
        (torch.float16, torch.complex64),
        (None, torch.complex64),
    ],
)
def test_complex_tensors_stay_complex(dtype, expected):
    model = Rotary()
    table = model.table.clone()
    assert convert(model, dtype) is model
    assert model.linear.weight.dtype is (dtype or torch.float32)
    assert (model.table.dtype, model.turn.dtype) == (expected, expected)
    assert torch.equal(model.table.to(torch.complex64), table)
    assert model.again is model.turn
    assert model.steps.dtype is torch.int64


def test_a_model_goes_to_the_device():
    model = convert(Rotary(), torch.float64, "meta")
    assert {t.device.type for t in model.state_dict().values()} == {"meta"}
    assert model.table.dtype is torch.complex128
