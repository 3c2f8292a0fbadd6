"""Watching operations: cheap, and fit for compiled models."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pytest_transformer_validate import Subject
from pytest_transformer_validate.subject.dispatch import Operations
from tests.models import VOCAB, Decoder


class Names(Operations):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


def test_operations_are_seen():
    with Names() as seen:
        torch.ones(2).exp()
    assert seen.names == ["ones.default", "exp.default"]


def test_watching_does_not_import_the_compiler():
    code = (
        "import sys\n"
        "from tests.models import Decoder\n"
        "from pytest_transformer_validate import Subject\n"
        "Subject(Decoder()).facts\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("used", [False, True])
def test_a_compiled_model_is_read(used, caplog):
    model = torch.compile(Decoder(), backend="eager")
    if used:
        model(torch.zeros(5, 7, dtype=torch.long))
    facts = Subject(model).facts
    assert facts.vocabulary == {"input_ids": VOCAB}
    assert facts.limits == (48,)
    assert [r for r in caplog.records if r.levelname == "WARNING"] == []
