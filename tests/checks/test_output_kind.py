"""What output_kind says of results that are no logits, and what it leaves alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_transformer_validate import validate
from pytest_transformer_validate.checks.tier1.output_kind import output_kind
from pytest_transformer_validate.errors import CheckFailed, NotApplicable
from pytest_transformer_validate.probe.probe import Probe
from pytest_transformer_validate.subject.subject import Subject
from tests import models


def kind(model: nn.Module, config=None, task=None):
    return output_kind(Probe(Subject(model, config, task=task)))


class Behind(models.Decoder):
    """A decoder with something done to its logits."""

    def __init__(self, change) -> None:
        super().__init__()
        self.change = change

    def forward(self, input_ids):
        return self.change(super().forward(input_ids))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x.softmax(-1), "the last operation is softmax"),
        (lambda x: x.exp() / x.exp().sum(-1, keepdim=True), "all rows are positive and sum to 1"),
        (lambda x: x.softmax(-1).transpose(0, 1).transpose(0, 1).contiguous(), "softmax"),
        (torch.sigmoid, "a sigmoid"),
        (lambda x: torch.tanh(x).clone(), "tanh"),
        (F.relu, "ReLU"),
        (F.gelu, "GELU"),
        (lambda x: F.one_hot(x.argmax(-1), x.size(-1)).float(), "a choice is returned"),
        (lambda x: x.argmax(-1), "it returned int64 tensor"),
        (lambda x: x[..., :-1], "100 outputs a token, 101 ids"),
    ],
)
def test_what_is_no_logits_fails(change, words):
    with pytest.raises(CheckFailed, match=words):
        kind(Behind(change), {"vocab_size": models.VOCAB})


@pytest.mark.parametrize(
    "change",
    [
        lambda x: 30 * torch.tanh(x / 30),
        lambda x: F.pad(x, (0, 27)),
        lambda x: x.masked_fill(torch.arange(x.size(-1)) == 0, float("-inf")),
        lambda x: x * 0 + 3,
        lambda x: x.detach(),
    ],
    ids=["soft cap", "padded", "masked", "zero head", "no graph"],
)
def test_logits_of_every_kind_pass(change):
    assert not kind(Behind(change)).notes


def test_log_probabilities_pass_with_a_note():
    measured = kind(Behind(lambda x: x.log_softmax(-1)))
    assert measured.notes == ("log-probabilities: a softmax gives them back as they are",)


def test_a_model_of_whole_numbers_fails_here_and_is_blocked_elsewhere():
    records = validate(Behind(lambda x: x.argmax(-1)), checks=["output_kind", "causality"])
    status = {record.check: record.status for record in records}
    assert status == {"output_kind": "failed", "causality": "blocked"}


class Forgets(models.Decoder):
    def forward(self, input_ids):
        return self.hidden(input_ids)


def test_a_head_that_is_there_and_does_not_run():
    with pytest.raises(CheckFailed, match="head is there and does not run") as caught:
        kind(Forgets())
    assert caught.value.where == "(model)"


def test_hidden_states_without_a_head_are_for_someone_else():
    model = Forgets()
    del model.head
    with pytest.raises(NotApplicable, match="hidden states: no module is as wide"):
        kind(model)
    with pytest.raises(CheckFailed, match="no head maps them"):
        kind(model, {"task": "causal_lm"})


def test_tags_are_fewer_than_ids():
    model = models.Decoder()
    model.head = nn.Linear(32, 9)
    notes = kind(model, {"task": "masked_lm"}).notes
    assert notes == ("9 outputs a token, fewer than ids: tags, not words",)


class Yes(models.Decoder):
    """A binary classifier that ends with a sigmoid on one output."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.head = nn.Linear(32, outputs)

    def forward(self, input_ids):
        return torch.sigmoid(self.head(self.hidden(input_ids).mean(1)))


def test_a_sigmoid_on_one_output_is_an_idiom_and_on_several_has_to_be_declared():
    assert "sigmoid" in kind(Yes(), task="classification").notes[0]
    with pytest.raises(CheckFailed, match="a sigmoid"):
        kind(Yes(5), task="classification")
    several = {"task": "classification", "problem_type": "multi_label_classification"}
    assert "sigmoid" in kind(Yes(5), several).notes[0]


class Ordered(Yes):
    """One score and four thresholds: five ordered classes."""

    def __init__(self) -> None:
        super().__init__()
        self.thresholds = nn.Parameter(torch.arange(4.0))

    def forward(self, input_ids):
        return self.head(self.hidden(input_ids).mean(1)) + self.thresholds


def test_ordered_classes_have_a_threshold_less():
    config = {"task": "classification", "num_labels": 5}
    assert "they are ordered" in kind(Ordered(), config).notes[0]
    with pytest.raises(CheckFailed, match="4 outputs, 6 classes declared"):
        kind(Ordered(), {**config, "num_labels": 6})
    model = Ordered()
    model.head = nn.Linear(32, 4)
    with pytest.raises(CheckFailed, match="4 outputs, 5 classes declared"):
        kind(model, config)


class TorchAttention(Yes):
    """Attention of torch, whose last projection is read and never called."""

    def __init__(self) -> None:
        super().__init__(4)
        self.look = nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, input_ids):
        x = self.hidden(input_ids)
        return self.head(self.look(x, x, x)[0].mean(1))


def test_a_part_of_attention_is_no_head_that_does_not_run():
    with pytest.raises(CheckFailed, match="the head is built for another number") as caught:
        kind(TorchAttention(), {"task": "classification", "num_labels": 5})
    assert caught.value.where == "head"


def test_the_declared_number_of_classes_is_the_width():
    model = models.Patches()
    config = {"task": "vision_classification", "image_size": 32, "num_channels": 3}
    kind(model, {**config, "num_classes": 10})
    with pytest.raises(CheckFailed, match="10 outputs, 12 classes declared"):
        kind(model, {**config, "num_classes": 12})
