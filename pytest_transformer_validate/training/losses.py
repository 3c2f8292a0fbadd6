"""Cross entropy as sums over the targets that count, so that batches add up token by token.

Axes: B rows, T positions, V vocabulary (or K classes). A target equal to ``ignore_index`` does
not count. For a causal LM the output at t is held against the label at t + 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from pytest_transformer_validate.task import TaskSpec

LARGEST_EXPONENT = 100.0  # exp of more is no number that says anything


def targets(labels: torch.Tensor, task: TaskSpec) -> torch.Tensor:
    """What the outputs are held against: labels (B, T), without the first one where they shift."""
    return labels[:, 1:] if task.shifts else labels


def counted(labels: torch.Tensor, task: TaskSpec) -> torch.Tensor:
    """How many targets count: a scalar on the labels' device."""
    return (targets(labels, task) != task.ignore_index).sum()


def target_count(labels: torch.Tensor, task: TaskSpec) -> int:
    """How many targets count. Of labels on a CPU this waits for nothing."""
    return int(counted(labels, task))


def loss_sum(logits: torch.Tensor, labels: torch.Tensor, task: TaskSpec) -> torch.Tensor:
    """The sum of the cross entropy over all targets that count, in float32: a scalar.

    ``logits`` (B, T, V) or (B, K), ``labels`` (B, T) or (B,). ``label_smoothing`` is torch's:
    with e, the target has 1 - e + e / V and every other class e / V (Szegedy et al. 2016).
    """
    scores = logits[:, :-1] if task.shifts else logits
    return functional.cross_entropy(
        scores.flatten(0, -2).float(),
        targets(labels, task).flatten(),
        ignore_index=task.ignore_index,
        label_smoothing=task.label_smoothing,
        reduction="sum",
    )


def correct_sum(logits: torch.Tensor, labels: torch.Tensor, task: TaskSpec) -> torch.Tensor:
    """How many targets that count have the highest score: a scalar on the logits' device.

    Of equal scores the first one is the highest.
    """
    scores = (logits[:, :-1] if task.shifts else logits).flatten(0, -2)
    wanted = targets(labels, task).flatten()
    counts = wanted != task.ignore_index
    if scores.device.type == "cpu":
        # The largest score is found ten times faster than its place, which few rows then need.
        own = scores.gather(-1, wanted.where(counts, 0).unsqueeze(-1)).squeeze(-1)
        places = ((own == scores.amax(-1)) & counts).nonzero().squeeze(-1)
        if not len(places):
            return counts.new_zeros((), dtype=torch.long)
        return (scores[places].argmax(-1) == wanted[places]).sum()
    return ((scores.argmax(-1) == wanted) & counts).sum()


def perplexity(loss: float) -> float:
    """``exp(loss)``, the loss taken as at most 100."""
    return float(torch.tensor(min(loss, LARGEST_EXPONENT), dtype=torch.float64).exp())
