"""Models whose caches have to be set up before they are called."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_transformer_validate import validate
from pytest_transformer_validate.subject.subject import Subject
from tests import models
from tests.models import VOCAB


class Cached(models.Decoder):
    """Keys and values of one batch size; asked for before the first call, as gpt-fast does."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(32, 96)
        self.mask, self.rows = None, 0

    def setup_caches(self, max_batch_size, max_seq_length):
        if self.rows >= max_batch_size:
            return
        self.rows = max_batch_size
        self.register_buffer("keys", torch.zeros(max_batch_size, max_seq_length, 32))
        self.register_buffer("values", torch.zeros(max_batch_size, max_seq_length, 32))
        self.mask = torch.ones(max_seq_length, max_seq_length).tril().bool()

    def forward(self, idx, input_pos=None):
        assert self.mask is not None, "Caches must be initialized first"
        x = self.tokens(idx) + self.positions(input_pos)
        q, k, v = self.qkv(x).chunk(3, -1)
        self.keys[:, input_pos], self.values[:, input_pos] = k, v
        scores = (q @ self.keys.mT).masked_fill(~self.mask[input_pos], float("-inf"))
        return self.head(x + scores.softmax(-1) @ self.values)


def test_caches_are_set_up_for_a_call_and_taken_away():
    subject = Subject(Cached().eval(), {"block_size": 48})
    for rows in (5, 2):
        assert subject(subject.batch(rows, 7)).logits.shape == (rows, 7, VOCAB)
    assert subject.model.mask is None
    assert "keys" not in subject.model.state_dict()


def test_a_text_that_starts_somewhere_goes_on():
    subject = Subject(Cached().eval(), {"block_size": 48})
    batch = subject.batch(3, 8)
    whole = subject(batch).logits
    for start in (0, 5):
        stop = 5 if start == 0 else 8
        piece = batch.with_(input_ids=batch["input_ids"][:, start:stop])
        logits = subject(piece, input_pos=torch.arange(start, stop)).logits
        torch.testing.assert_close(logits, whole[:, start:stop])


def test_healthy():
    checks = ["load", "causality", "batch_independence", "shape_robustness", "kv_cache"]
    result = validate(Cached(), {"block_size": 48}, checks=checks)
    assert not result.failures, str(result)


def test_a_method_that_asks_for_more_is_not_called():
    class Asks(Cached):
        def setup_caches(self, max_batch_size, pages):
            raise NotImplementedError

    with pytest.raises(AssertionError, match="Caches must be initialized first"):
        _ = Subject(Asks().eval()).facts


class Optional(models.Decoder):
    """A cache that is made where it is wanted, as in litgpt; without, texts are read at once."""

    behind = 0  # how far positions are off behind a cache

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(32, 96)
        self.cache = None

    def set_kv_cache(self, batch_size, max_seq_length=None, rope_length=32, dtype=None):
        length = max_seq_length or 48
        self.cache = torch.zeros(2, batch_size, length, rope_length, dtype=dtype)

    def forward(self, idx, input_pos=None):
        steps = torch.arange(idx.size(1)) if input_pos is None else input_pos
        if input_pos is not None and self.cache is None:
            raise TypeError("You need to call set_kv_cache()")
        x = self.tokens(idx) + self.positions(steps - self.behind * int(steps[0] > 0))
        q, k, v = self.qkv(x).chunk(3, -1)
        if input_pos is not None:
            self.cache[0, :, steps], self.cache[1, :, steps] = k, v
            k, v = self.cache
        seen = torch.arange(k.size(1)) <= steps[:, None]
        return self.head(x + (q @ k.mT).masked_fill(~seen, float("-inf")).softmax(-1) @ v)


def test_an_optional_cache_is_made_where_caches_are_judged():
    model = Optional()
    config = {"block_size": 48}
    judged = {r.case: r.status for r in validate(model, config, checks=["kv_cache"])}
    assert [judged[case] for case in ("steps", "chunks", "long")] == ["passed"] * 3
    assert model.cache is None
    model.behind = 1
    judged = {r.case: r.status for r in validate(model, config, checks=["kv_cache"])}
    assert [judged[case] for case in ("steps", "chunks", "long")] == ["failed"] * 3
