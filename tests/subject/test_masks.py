"""How a model is told about padding: arguments, their forms, and the padding id."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_transformer_validate.subject.masks import padding_id, takes_anything, ways
from pytest_transformer_validate.subject.subject import Subject
from tests import models


class Takes(models.Decoder):
    def forward(self, src, src_key_padding_mask=None, attention_mask=None, **kwargs):
        return super().forward(src)


def test_the_likeliest_form_comes_first():
    subject = Subject(Takes())
    first, *_ = found = ways(subject, "input_ids")
    assert (first.role, first.keeps, first.dtype, first.axes) == (
        "attention_mask",
        True,
        torch.int64,
        0,
    )
    assert [way.role for way in found] == ["attention_mask"] * 9 + ["padding_mask"] * 9
    assert takes_anything(subject)
    assert ways(subject, "decoder_input_ids") == []


def test_a_mask_in_every_form():
    keep = torch.tensor([[True, True, False]])
    forms = {way.axes: way for way in ways(Subject(Takes()), "input_ids") if way.role != "mask"}
    assert {axes: tuple(way.mask(keep).shape) for axes, way in forms.items()} == {
        0: (1, 3),
        1: (1, 1, 3),
        2: (1, 1, 1, 3),
    }
    way = forms[0]
    assert way.role == "padding_mask"
    assert way.mask(keep).tolist() == [[0, 0, 1]]
    assert way.inverted().mask(keep).tolist() == [[1, 1, 0]]


class Attribute(models.Decoder):
    def __init__(self) -> None:
        super().__init__()
        self.pad_idx = 3


class Compares(models.Decoder):
    def forward(self, input_ids):
        return super().forward(input_ids) * (input_ids != 0)[..., None]


PAD_IDX = 4


class Called(models.Decoder):
    """Its file says what it looks for, and ids are compared with something else too."""

    looks_for = PAD_IDX

    def forward(self, input_ids):
        hidden = super().forward(input_ids) * (input_ids != self.looks_for)[..., None]
        return hidden * (input_ids != 9)[..., None]


class CalledOtherwise(Called):
    looks_for = 3


class Short(models.Decoder):
    def __init__(self) -> None:
        super().__init__()
        self.pad = 2

    def forward(self, input_ids):
        return super().forward(input_ids) * (input_ids != self.pad)[..., None]


class Padded(models.Decoder):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(models.VOCAB, 32, padding_idx=5)


@pytest.mark.parametrize(
    ("model", "config", "found"),
    [
        (models.Decoder, {"pad_token_id": 7}, 7),
        (models.Decoder, {"pad_token_id": 7000}, None),
        (models.Decoder, None, None),
        (Attribute, None, 3),
        (Compares, None, 0),
        (Padded, None, 5),
        (Called, None, 4),
        (CalledOtherwise, None, None),
        (Short, None, 2),
    ],
)
def test_the_padding_id(model, config, found):
    assert padding_id(Subject(model(), config)) == found


@pytest.mark.parametrize("name", ["valid_mask", "encoder_input_mask", "src_seq_mask"])
def test_a_mask_of_the_input_need_not_be_required(name):
    class Masked(models.Decoder):
        pass

    source = f"def forward(self, ids, {name}=None): return self.head(self.hidden(ids))"
    names: dict[str, object] = {}
    exec(source, names)
    Masked.forward = names["forward"]
    first, *_ = ways(Subject(Masked()), "input_ids")
    assert (first.role, first.keeps) == ("mask", True)
