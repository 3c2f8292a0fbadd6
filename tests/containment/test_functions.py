"""Functions that are replaced are found, whether this Python counts writes to dicts or not."""

from __future__ import annotations

import pytest
import torch

import pytest_transformer_validate.probe.probe  # noqa: F401 - what verdicts are made with
from pytest_transformer_validate import identity
from pytest_transformer_validate.containment.functions import Functions


@pytest.fixture(params=[True, False], ids=["counted", "not counted"], autouse=True)
def _counted(request, monkeypatch):
    monkeypatch.setattr(identity, "COUNTED", request.param and identity.COUNTED)


def found(functions: Functions) -> tuple[list[str], list[str]]:
    judged, others = functions.changes()
    return list(map(str, judged)), list(map(str, others))


def test_one_that_verdicts_are_made_with(monkeypatch):
    functions = Functions()
    assert found(functions) == ([], [])
    monkeypatch.setattr(torch, "equal", lambda *_: True)
    assert found(functions) == (["torch.equal"], [])
    monkeypatch.undo()
    assert found(functions) == ([], [])


def test_a_layer(monkeypatch):
    functions = Functions()
    monkeypatch.setattr(torch.nn.Linear, "forward", lambda *_: None)
    assert found(functions) == ([], ["torch.Linear.forward"])


def test_what_changed_outside_of_a_model_is_right_from_then_on(monkeypatch):
    functions = Functions()
    monkeypatch.setattr(torch, "equal", lambda *_: True)
    functions.note()
    assert found(functions) == ([], [])
    monkeypatch.undo()
    assert found(functions) == (["torch.equal"], [])
