"""Functions that are replaced are found, whether this Python counts writes to dicts or not."""

from __future__ import annotations

import pytest
import torch

import pytest_transformer_validate.probe.probe  # noqa: F401 - what verdicts are made with
from pytest_transformer_validate import identity
from pytest_transformer_validate.containment.functions import Functions, Names


@pytest.fixture(params=[True, False], ids=["counted", "not counted"], autouse=True)
def _counted(request, monkeypatch):
    monkeypatch.setattr(identity, "COUNTED", request.param and identity.COUNTED)


def found(names: Names) -> tuple[list[str], list[str]]:
    judged, others = names.changes()
    return list(map(str, judged)), list(map(str, others))


def test_one_that_verdicts_are_made_with(monkeypatch):
    near = Functions().near
    assert found(near) == ([], [])
    monkeypatch.setattr(torch, "equal", lambda *_: True)
    assert found(near) == (["torch.equal"], [])
    monkeypatch.undo()
    assert found(near) == ([], [])


def test_a_layer(monkeypatch):
    far = Functions().far
    monkeypatch.setattr(torch.nn.Linear, "forward", lambda *_: None)
    assert found(far) == ([], ["torch.Linear.forward"])


def test_what_changed_outside_of_a_model_is_right_from_then_on(monkeypatch):
    near = Functions().near
    monkeypatch.setattr(torch, "equal", lambda *_: True)
    near.note()
    assert found(near) == ([], [])
    monkeypatch.undo()
    assert found(near) == (["torch.equal"], [])
