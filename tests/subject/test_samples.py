"""Writes that no version counter shows are seen in a few numbers of each parameter."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_transformer_validate.subject.samples import Samples


class Mixed(nn.Module):
    """Parameters of several dtypes, one of one number, one transposed, one empty."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Parameter(torch.randn(64, 48))
        self.low = nn.Parameter(torch.randn(33).bfloat16())
        self.one = nn.Parameter(torch.randn(()))
        self.turned = nn.Parameter(torch.randn(40, 30).t())
        self.empty = nn.Parameter(torch.randn(0, 3))
        self.absent = nn.Parameter(torch.randn(3, 3, device="meta"))
        self.nan = nn.Parameter(torch.full((5,), float("nan")))


@pytest.fixture
def model() -> Mixed:
    torch.manual_seed(0)
    return Mixed()


def test_nothing_is_seen_where_nothing_was_written(model):
    samples = Samples(model.parameters())
    assert samples.same()
    model.wide.data = model.wide.data.clone()
    assert samples.same()


@pytest.mark.parametrize("name", ["wide", "low", "one", "turned", "nan"])
def test_a_write_through_data_is_seen_in_each_parameter(model, name):
    samples = Samples(model.parameters())
    parameter = getattr(model, name)
    version = parameter._version
    parameter.data.fill_(0.5)
    assert parameter._version == version
    assert not samples.same()


def test_a_step_of_a_fused_optimizer_is_seen():
    model = nn.Embedding(1_000, 8), nn.Linear(8, 8)
    parameters = [p for module in model for p in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, weight_decay=0.0, fused=True)
    samples, versions = Samples(parameters), [p._version for p in parameters]
    model[1](model[0](torch.tensor([3]))).sum().backward()  # of the table one row moves
    optimizer.step()
    assert [p._version for p in parameters] == versions
    assert not samples.same()


def test_another_dtype_is_another_state(model):
    samples = Samples(model.parameters())
    model.double()
    assert not samples.same()
