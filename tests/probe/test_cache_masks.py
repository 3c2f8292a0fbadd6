"""Caches that count themselves, and masks that a model with a cache asks its caller for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_transformer_validate import validate
from pytest_transformer_validate.probe.probe import Probe
from pytest_transformer_validate.subject.subject import Subject
from tests import models


class Counting(models.Decoder):
    """Keys and values are put where the last ones ended, until the caller empties the caches, as
    in torchtune."""

    behind = 0  # how far positions are off behind a cache
    forgets = False  # the counter, when emptied

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(32, 96)
        self.register_buffer("cache", None)

    def setup_caches(self, batch_size, dtype, *, max_seq_len=48):
        self.register_buffer("cache", torch.zeros(2, batch_size, max_seq_len, 32, dtype=dtype))
        self.register_buffer("filled", torch.tensor(0))

    def reset_caches(self):
        self.cache.zero_()
        if not self.forgets:
            self.filled.zero_()

    def seen(self, mask, steps):
        columns = torch.arange(len(steps) if self.cache is None else self.cache.size(2))
        return columns <= steps[:, None]

    def forward(self, tokens, *, mask=None, input_pos=None):
        steps = torch.arange(tokens.size(1)) if input_pos is None else input_pos
        x = self.tokens(tokens) + self.positions(steps - self.behind * int(steps[0] > 0))
        q, k, v = self.qkv(x).chunk(3, -1)
        if self.cache is not None:
            here = self.filled + torch.arange(len(steps))
            self.cache[0, :, here], self.cache[1, :, here] = k, v
            k, v = self.cache
            self.filled.add_(len(steps))
        hidden = ~self.seen(mask, steps)
        return self.head(x + (q @ k.mT).masked_fill(hidden, float("-inf")).softmax(-1) @ v)


class Masked(Counting):
    """The caller says what is seen: (B, S, room), True keeps."""

    keeps = True

    def seen(self, mask, steps):
        if self.cache is None:
            return super().seen(mask, steps)
        if mask is None:
            raise ValueError("caches are set up: causal masks must be provided")
        rows, new, room = mask.shape
        assert (rows, new, room) == (self.cache.size(1), len(steps), self.cache.size(2))
        return mask if self.keeps else ~mask


class MaskedOtherwise(Masked):
    keeps = False


def judged(model) -> list[str]:
    config = {"block_size": 48}
    found = {r.case: r.status for r in validate(model, config, checks=["kv_cache"])}
    return [found[case] for case in ("steps", "chunks", "long")]


@pytest.mark.parametrize("kind", [Counting, Masked, MaskedOtherwise])
def test_caches_are_emptied_and_masks_given_as_the_caller_has_to(kind):
    model = kind()
    assert judged(model) == ["passed"] * 3
    assert model.cache is None


class Tight(Counting):
    """Caches with room for one text, and none behind it."""

    def setup_caches(self, batch_size, dtype, *, max_seq_len=48):
        super().setup_caches(batch_size, dtype, max_seq_len=5)


def test_a_text_for_which_there_is_no_room_behind_the_one_before():
    subject = Subject(Tight(), {"block_size": 48})
    assert Probe(subject).caches.protocol().reset == "reset_caches"


@pytest.mark.parametrize("kind", [Counting, Masked])
def test_positions_that_are_off_are_found(kind):
    model = kind()
    model.behind = 1
    assert judged(model) == ["failed"] * 3


def test_caches_that_are_not_emptied_are_found():
    model = Counting()
    model.forgets = True
    assert judged(model) == ["failed"] * 3
