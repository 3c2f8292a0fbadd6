"""Models that read several texts a row and choose among them."""

from __future__ import annotations

import pytest
import torch

from pytest_transformer_validate import validate
from pytest_transformer_validate.subject.choices import as_choices
from pytest_transformer_validate.subject.subject import Subject
from tests import models


class Chooser(models.Decoder):
    """One number for each of several texts, (B, C, T)."""

    hides = True

    def __init__(self) -> None:
        super().__init__(length=32)
        self.score = torch.nn.Linear(32, 1)

    def forward(self, input_ids, attention_mask=None):
        choices = input_ids.shape[1]
        ids = input_ids.view(-1, input_ids.size(-1))
        keep = torch.ones_like(ids)
        if attention_mask is not None and self.hides:
            keep = attention_mask.view(-1, attention_mask.size(-1))
        x = self.tokens(ids) + self.positions(torch.arange(ids.size(1)))
        for block in self.blocks:
            x = block(x, mask=keep[:, None, None].bool())
        return self.score(self.norm(x)[:, 0]).view(-1, choices)


def test_a_text_and_another_are_given():
    ids = torch.arange(8).view(2, 4)
    both = as_choices("input_ids", ids)
    assert both[:, 0].equal(ids)
    assert both[0, 1].tolist() == [1, 0, 2, 3]
    assert as_choices("attention_mask", ids)[0].tolist() == [[0, 1, 2, 3]] * 2
    assert as_choices("labels", ids) is ids


def test_one_number_for_each_text():
    subject = Subject(Chooser().eval())
    assert subject(subject.batch(3, 8)).logits.shape == (3, 2)
    assert subject.vocab_size == models.VOCAB
    assert subject.task.task_type == "classification"


@pytest.mark.parametrize("hides", [True, False])
def test_they_are_judged(hides):
    model = Chooser()
    model.hides = hides
    result = validate(model, checks=["mask_effect", "batch_independence", "shape_robustness"])
    failed = {record.check for record in result.failures}
    assert failed == (set() if hides else {"mask_effect"}), str(result)
