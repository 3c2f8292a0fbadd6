"""Cross entropy as sums over the targets that count, so that batches add up token by token.

Axes: B rows, T positions, V vocabulary (or K classes). A target equal to ``ignore_index`` does
not count. For a causal LM the output at t is held against the label at t + 1: the labels are
moved, because outputs are V times as large and would be copied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from pytest_transformer_validate.task import TaskSpec

LARGEST_EXPONENT = 100.0  # exp of more is no number that says anything


def pairs(
    logits: torch.Tensor, labels: torch.Tensor, task: TaskSpec
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (N, V) and the targets (N,) that they are held against, of ``logits`` (B, T, V) or
    (B, K) and ``labels`` (B, T) or (B,). Where they shift, the last of a row is ignored."""
    if task.shifts:
        labels = functional.pad(labels[:, 1:], (0, 1), value=task.ignore_index)
    return logits.flatten(0, -2), labels.flatten()


def counted(labels: torch.Tensor, task: TaskSpec) -> torch.Tensor:
    """How many targets count: a scalar on the labels' device."""
    own = labels[:, 1:] if task.shifts else labels
    return (own != task.ignore_index).count_nonzero()


def target_count(labels: torch.Tensor, task: TaskSpec) -> int:
    """How many targets count. Of labels on a CPU this waits for nothing."""
    return int(counted(labels, task))


def loss_sum(scores: torch.Tensor, wanted: torch.Tensor, task: TaskSpec) -> torch.Tensor:
    """The sum of the cross entropy over all targets that count, in float32: a scalar.

    ``label_smoothing`` is torch's: with e, the target has 1 - e + e / V and every other class
    e / V (Szegedy et al. 2016).
    """
    return functional.cross_entropy(
        scores.float(),
        wanted,
        ignore_index=task.ignore_index,
        label_smoothing=task.label_smoothing,
        reduction="sum",
    )


def correct_sum(scores: torch.Tensor, wanted: torch.Tensor, task: TaskSpec) -> torch.Tensor:
    """How many targets that count have the highest score: a scalar on the scores' device.

    Of equal scores the first one is the highest. An ``ignore_index`` that is a class, 0 say, does
    not count either.
    """
    if scores.device.type == "cpu":
        # The largest score is found ten times faster than its place, which few rows then need.
        classes = wanted.clamp(0, scores.shape[-1] - 1).unsqueeze(-1)
        places = (scores.gather(-1, classes) == scores.amax(-1, keepdim=True)).nonzero()[:, 0]
        if not len(places):
            return torch.zeros(())
        scores, wanted = scores[places], wanted[places]
    hits = (scores.argmax(-1) == wanted) & (wanted != task.ignore_index)
    return hits.sum(dtype=torch.float32)


def perplexity(loss: float) -> float:
    """``exp(loss)``, the loss taken as at most 100."""
    return float(torch.tensor(min(loss, LARGEST_EXPONENT), dtype=torch.float64).exp())
