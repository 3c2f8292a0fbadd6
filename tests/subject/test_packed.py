"""Forwards with one parameter that holds all inputs."""

from __future__ import annotations

import pytest
import torch

from pytest_transformer_validate import validate
from pytest_transformer_validate.errors import SubjectError
from pytest_transformer_validate.subject.subject import Subject
from tests import models


class Packed(models.Decoder):
    """Hides what a mask hides; a mask that is left out hides nothing."""

    def read(self, ids, mask=None):
        x = self.tokens(ids) + self.positions(torch.arange(ids.size(1)))
        keep = torch.ones_like(ids) if mask is None else mask
        for block in self.blocks:
            x = block(x, mask=keep[:, None, None].bool())
        kept = keep[..., None].to(x)
        return self.head((self.norm(x) * kept).sum(1) / kept.sum(1).clamp(min=1))


class Dict(Packed):
    def forward(self, batch):
        return self.read(batch["input_ids"], batch["attention_mask"])


class Optional(Packed):
    def forward(self, batch):
        return self.read(batch["input_ids"], batch.get("attention_mask"))


class Attributes(Packed):
    def forward(self, data):
        return self.read(data.input_ids, data.attention_mask)


class Pair(Packed):
    def forward(self, x):
        ids, lengths = x
        steps = torch.arange(ids.size(1))
        return self.read(ids, (steps < torch.as_tensor(lengths)[:, None]).long())


class First(Packed):
    def forward(self, x):
        return self.read(x[0])


class Unknown(Packed):
    def forward(self, batch):
        return self.read(batch["something"])


@pytest.mark.parametrize(
    ("model", "names", "required"),
    [
        (Dict, ["input_ids", "attention_mask"], {"input_ids", "attention_mask"}),
        (Optional, ["input_ids", "attention_mask"], {"input_ids"}),
        (Attributes, ["input_ids", "attention_mask"], {"input_ids", "attention_mask"}),
        (Pair, ["input_ids", "lengths"], {"input_ids", "lengths"}),
        (First, ["input_ids"], {"input_ids"}),
    ],
)
def test_what_is_taken_out_is_the_signature(model, names, required):
    subject = Subject(model().eval())
    assert subject(subject.batch(3, 8)).logits.shape == (3, models.VOCAB)
    assert list(subject.signature.names) == names
    assert subject.signature.required == required


def test_what_nobody_knows_is_not_made_up():
    with pytest.raises(SubjectError, match="forward takes 'something' out of batch"):
        _ = Subject(Unknown().eval()).facts


@pytest.mark.parametrize("model", [Dict, Optional])
def test_healthy(model):
    checks = ["padding", "mask_effect", "batch_independence", "gradient_flow", "statelessness"]
    result = validate(model(), checks=checks)
    assert not result.failures, str(result)
    assert {r.status for r in result if r.check != "padding"} == {"passed"}
    assert [r.status for r in result if r.case in {"content", "right"}] == ["passed"] * 2


def test_a_mask_that_is_not_read_is_found():
    class Leaks(Optional):
        def read(self, ids, mask=None):
            return super().read(ids, None if mask is None else torch.ones_like(mask))

    result = validate(Leaks(), checks=["mask_effect"])
    assert [r.status for r in result] == ["failed"]


class Photographs(models.Patches):
    def forward(self, batch):
        return super().forward(batch["image"])


def test_images_in_one_object():
    subject = Subject(Photographs().eval(), task="vision_classification")
    assert subject(subject.batch(3, 1)).logits.shape == (3, 10)
    assert subject.facts.width == 10
    assert subject.signature.names == {"pixel_values": "image"}
    assert not validate(Photographs(), task="vision_classification", checks=["padding"]).failures
