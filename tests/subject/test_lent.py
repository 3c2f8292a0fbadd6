from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_transformer_validate import validate
from pytest_transformer_validate.errors import error_line
from pytest_transformer_validate.subject.subject import Subject
from tests import models


class Classifier(models.Decoder):
    """Reads the last token that is no padding; ``config`` is what it asks."""

    def __init__(self, config):
        super().__init__()
        self.config, self.classes = config, nn.Linear(32, 3)

    def forward(self, input_ids, attention_mask=None):
        pad = self.config.pad_token_id
        if pad is None and len(input_ids) > 1:
            raise ValueError("Cannot handle batch sizes > 1 if no padding token is defined.")
        steps = torch.arange(input_ids.shape[1], device=input_ids.device)
        last = ((input_ids != pad).int() * steps).argmax(-1)
        rows = torch.arange(len(input_ids), device=input_ids.device)
        return self.classes(self.hidden(input_ids))[rows, last]


class Config:
    vocab_size, eos_token_id = models.VOCAB, 2

    def __init__(self, pad):
        self.pad_token_id = pad


def test_the_id_is_lent_for_the_time_of_a_call():
    model = Classifier(Config(None))
    subject = Subject(model)
    assert subject.facts.rank == 2
    assert subject.pad_id == subject.lent_pad == 0
    assert subject.twin(model).lent_pad == 0
    assert subject.logits(subject.batch(4, 5)).shape == (4, 3)
    assert model.config.pad_token_id is None


def test_nothing_is_lent_where_it_is_not_asked_for():
    for pad in (0, 5):
        subject = Subject(Classifier(Config(pad)))
        assert subject.facts.rank == 2
        assert subject.lent_pad is None
        assert subject.pad_id == pad


def test_an_id_that_nothing_takes_is_not_lent():
    class Refuses(models.Decoder):
        def forward(self, input_ids):
            if len(input_ids) > 1:
                raise ValueError("a batch needs padding")
            return super().forward(input_ids)

    subject = Subject(Refuses(), {"vocab_size": models.VOCAB})
    assert subject.facts.rank == 3
    assert subject.lent_pad is None
    with pytest.raises(ValueError, match="needs padding") as raised:
        subject.logits(subject.batch(2, 5))
    assert "padding" in error_line(raised.value)


def test_a_classifier_without_a_padding_id_is_judged():
    result = validate(Classifier(Config(None)), checks=["load", "shape_robustness"])
    assert result.passed
    notes = result[0].numbers["notes"]
    assert notes == ["forward asks for a padding id and none is declared: pad_token_id 0 is lent"]
