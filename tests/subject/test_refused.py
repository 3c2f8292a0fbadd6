"""A longest text that a model keeps as a number and refuses to go beyond."""

from __future__ import annotations

import types

import pytest
import torch
from torch import nn

from pytest_transformer_validate.errors import SubjectError
from pytest_transformer_validate.subject.subject import Subject

SEEN: list[tuple[int, ...]] = []


class Mean(nn.Module):
    """Running means of token vectors: no table bounds the length."""

    def __init__(self, vocab_size=61, ctx_len=32):
        super().__init__()
        self.ctx_len = ctx_len
        self.emb, self.head = nn.Embedding(vocab_size, 8), nn.Linear(8, vocab_size)

    @property
    def most(self):
        return self.ctx_len

    def forward(self, idx):
        SEEN.append(tuple(idx.shape))
        length = idx.shape[1]
        self.refuse(length)
        x = self.emb(idx).cumsum(1)
        return self.head(x / torch.arange(1, length + 1)[:, None])

    def refuse(self, length):
        assert length <= self.most, "too long"


class Kept(Mean):
    def __init__(self):
        super().__init__(ctx_len=0)
        self.args = types.SimpleNamespace(max_seq_len=24, dim=8)

    @property
    def most(self):
        return self.args.max_seq_len


class Inside(Mean):
    """The number is an attribute of a submodule."""

    def __init__(self):
        super().__init__(ctx_len=0)
        self.emb.max_length = 20

    @property
    def most(self):
        return self.emb.max_length


class Free(Mean):
    """The number bounds nothing."""

    def refuse(self, length):
        pass


class Blocked(Mean):
    """Lengths are multiples, of which the number is one."""

    def refuse(self, length):
        assert length % 8 == 0, "must be a multiple of 8"


@pytest.mark.parametrize(
    ("model", "longest"),
    [
        (Mean(), 32),
        (Mean(ctx_len=9), 9),
        (Kept(), 24),
        (Inside(), 20),
        (Free(), None),
        (Blocked(), None),
        (Mean(ctx_len=4096), None),
    ],
)
def test_what_is_refused_bounds_the_length(model, longest):
    subject = Subject(model)
    assert subject.max_length == longest
    assert not subject.declares_length


def lengths(model, config=None):
    """The lengths of the texts that a first look gives."""
    SEEN.clear()
    assert Subject(model, config).facts.multiple == 1
    return [length for _, length in SEEN]


def test_what_is_declared_is_not_tried():
    assert 33 in lengths(Mean())
    assert 33 not in lengths(Mean(), {"max_seq_len": 32})


def test_a_number_that_bounds_nothing_costs_one_forward():
    assert [n for n in lengths(Free(ctx_len=48)) if n > 32] == [49]


def test_a_model_of_one_flat_text_is_told_to_take_a_batch():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb, self.head = nn.Embedding(61, 8), nn.Linear(8, 61)

        def forward(self, input_seq, target_seq=None):
            assert input_seq.ndim == 1
            return self.head(self.emb(input_seq))[None]

    with pytest.raises(SubjectError, match=r"one text of ids, \(T,\), and no batch") as caught:
        _ = Subject(Flat()).facts
    assert "input_seq, target_seq=None" in str(caught.value)


def test_what_another_model_raises_comes_through():
    class Broken(Mean):
        def refuse(self, length):
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="^broken$"):
        _ = Subject(Broken()).facts
