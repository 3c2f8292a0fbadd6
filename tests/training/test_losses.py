"""Losses as sums over the targets that count."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from pytest_transformer_validate.task import TaskSpec
from pytest_transformer_validate.training.losses import (
    correct_sum,
    loss_sum,
    pairs,
    perplexity,
    target_count,
)

CAUSAL, MASKED = TaskSpec("causal_lm"), TaskSpec("masked_lm")


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))


def test_a_causal_loss_holds_each_output_against_the_next_label(logits):
    labels = torch.tensor([[1, 2, 3, -100, -100], [4, 5, -100, 6, 0]])
    places = [(0, 0, 2), (0, 1, 3), (1, 0, 5), (1, 2, 6), (1, 3, 0)]
    expected = sum(-logits[b, t].log_softmax(-1)[label] for b, t, label in places)
    assert torch.isclose(loss_sum(*pairs(logits, labels, CAUSAL), CAUSAL), expected)
    assert target_count(labels, CAUSAL) == len(places)


def test_other_losses_do_not_shift(logits):
    labels = torch.tensor([[1, -100, 3, -100, -100], [-100, 5, -100, 6, 0]])
    expected = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    assert torch.isclose(loss_sum(*pairs(logits, labels, MASKED), MASKED), expected)
    assert target_count(labels, MASKED) == 5


def test_classes_are_one_target_a_row(logits):
    task, labels = TaskSpec("classification"), torch.tensor([3, 1])
    expected = functional.cross_entropy(logits[:, 0], labels, reduction="sum")
    assert torch.isclose(loss_sum(*pairs(logits[:, 0], labels, task), task), expected)


def test_label_smoothing_is_torchs(logits):
    task, labels = TaskSpec("masked_lm", label_smoothing=0.2), torch.randint(7, (2, 5))
    expected = functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), label_smoothing=0.2, reduction="sum"
    )
    assert torch.isclose(loss_sum(*pairs(logits, labels, task), task), expected)


def test_hits_count_where_targets_count():
    logits = functional.one_hot(torch.tensor([[2, 3, 4, 0]]), 7).float()
    labels = torch.tensor([[1, 2, -100, 4]])
    assert correct_sum(*pairs(logits, labels, CAUSAL), CAUSAL) == 2


def test_losses_of_low_precision_are_summed_in_float32(logits):
    labels = torch.randint(7, (2, 5))
    assert loss_sum(*pairs(logits.bfloat16(), labels, MASKED), MASKED).dtype is torch.float32


def test_all_ignored_labels_give_zero_and_no_nan(logits):
    labels = torch.full((2, 5), -100)
    logits.requires_grad_()
    loss = loss_sum(*pairs(logits, labels, CAUSAL), CAUSAL)
    loss.backward()
    assert loss == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize(("loss", "value"), [(0, 1), (math.log(50), 50), (1e6, math.exp(100))])
def test_perplexity_is_capped(loss, value):
    assert perplexity(loss) == pytest.approx(value)


@pytest.mark.parametrize("rounded", [False, True])
def test_hits_are_those_of_argmax_ties_included(rounded):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 9, 5, generator=generator)
    logits = logits.round() if rounded else logits
    labels = torch.randint(5, (4, 9), generator=generator)
    labels[:, ::3] = -100
    for kind in ("causal_lm", "masked_lm"):
        task = TaskSpec(kind)
        scores, wanted = (logits[:, :-1], labels[:, 1:]) if task.shifts else (logits, labels)
        expected = int((scores.argmax(-1) == wanted).sum())
        assert int(correct_sum(*pairs(logits, labels, task), task)) == expected
    assert int(correct_sum(*pairs(logits * float("nan"), labels, task), task)) == 0


@pytest.mark.parametrize("ignored", [0, -100, 7, 50_000])
def test_hits_leave_out_what_is_ignored_whatever_its_number(logits, ignored):
    task = TaskSpec("causal_lm", ignore_index=ignored)
    labels = torch.randint(7, (2, 5), generator=torch.Generator().manual_seed(1))
    labels[:, 1] = logits[:, 0].argmax(-1)
    labels[0, 2:] = ignored
    counts = labels[:, 1:] != ignored
    expected = ((logits.argmax(-1)[:, :-1] == labels[:, 1:]) & counts).sum()
    assert correct_sum(*pairs(logits, labels, task), task) == expected
    assert target_count(labels, task) == counts.sum()


def test_the_last_output_of_a_row_gets_no_gradient(logits):
    logits.requires_grad_()
    loss_sum(*pairs(logits, torch.randint(7, (2, 5)), CAUSAL), CAUSAL).backward()
    assert logits.grad is not None
    assert not logits.grad[:, -1].any()
    assert logits.grad[:, :-1].all()
