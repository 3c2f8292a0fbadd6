"""Watching operations: cheap, and fit for compiled models."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pytest_transformer_validate import Subject, validate
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


class Flexible(Decoder):
    """Attention by a function that is given functions, uncompiled."""

    def forward(self, input_ids):
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        def earlier(_batch, _head, query, key):
            return query >= key

        def near(score, _batch, _head, query, key):
            return score - (query - key)

        length = input_ids.shape[1]
        mask = create_block_mask(earlier, None, None, length, length, device="cpu")
        x = self.tokens(input_ids) + self.positions(torch.arange(length))
        heads = x.unflatten(-1, (4, 8)).transpose(1, 2)
        seen = flex_attention(heads, heads, heads, score_mod=near, block_mask=mask)
        return self.head(x + seen.transpose(1, 2).flatten(2))


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_flex_attention_is_watched_uncompiled():
    pytest.importorskip("torch._dynamo")  # flex_attention loads it
    checks = ["load", "determinism", "inference_speed", "weight_tying", "gradient_flow"]
    found = {r.check: r for r in validate(Flexible(), checks=checks)}
    assert [found[check].status for check in checks] == ["passed"] * 3 + ["skipped"] * 2
    assert found["weight_tying"].message.startswith("embedding and head are two")
    assert found["gradient_flow"].message.startswith("no gradients on this device: FlexAttention")
