"""What torch does to its own functions is no doing of a model."""

from __future__ import annotations

import functools

import pytest
import torch

from pytest_transformer_validate.containment.functions import Functions


@pytest.fixture
def functions(monkeypatch):
    monkeypatch.setattr(torch, "manual_seed", torch.random.manual_seed)
    return Functions().near


def test_the_compiler_wraps_the_seed_when_it_is_first_imported(functions, monkeypatch):
    monkeypatch.setattr(torch, "manual_seed", torch._disable_dynamo(torch.manual_seed))
    assert functions.changes() == ([], [])


def test_a_model_that_pretends_to_be_the_compiler_is_found(functions, monkeypatch):
    @functools.wraps(torch.manual_seed)
    def other(seed):
        return None

    for fake in (other, torch._disable_dynamo(other)):
        monkeypatch.setattr(torch, "manual_seed", fake)
        found = [change for changes in functions.changes() for change in changes]
        assert [str(change) for change in found] == ["torch.manual_seed"]
