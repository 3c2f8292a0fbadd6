"""AdamW with decay groups, linear warm-up with cosine decay, clipping."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_transformer_validate.training.config import Optimization


def decay_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters in two groups: those with two axes or more decay; vectors (biases, gains of
    norms) do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]


def make_optimizer(model: torch.nn.Module, settings: Optimization) -> torch.optim.AdamW:
    """AdamW; fused where every parameter's device has a fused kernel."""
    groups = [g for g in decay_groups(model, settings.weight_decay) if g["params"]]
    if not groups:
        raise ValueError("the model has no parameter that asks for a gradient: nothing to train")
    devices = {p.device.type for g in groups for p in g["params"]}
    floating = all(p.is_floating_point() for g in groups for p in g["params"])
    fused = floating and devices <= {"cpu", "cuda", "mps"}
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=fused)


def warmup_cosine(step: int, steps: int, warmup: int) -> float:
    """The factor on the learning rate in optimizer step ``step`` of ``steps``, counted from 0.

    ``(step + 1) / warmup`` in the first ``warmup`` steps, then ``(1 + cos(pi p)) / 2`` with p
    from 0 in the first step after it to 1 behind the last (Loshchilov & Hutter 2017).
    """
    if step < warmup:
        return (step + 1) / warmup
    part = (step - warmup) / max(steps - warmup, 1)
    return 0.5 * (1 + math.cos(math.pi * min(part, 1.0)))


class Schedule:
    """Sets the learning rate of every group for one optimizer step after the other.

    ``steps`` is the number of optimizer steps of the run.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, steps: int, warmup_ratio: float) -> None:
        self.optimizer = optimizer
        self.steps = steps
        self.warmup = math.ceil(warmup_ratio * steps)
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        self.taken = 0
        self._set()

    @property
    def learning_rate(self) -> float:
        """That of the step that comes next."""
        return float(self.optimizer.param_groups[0]["lr"])

    def step(self) -> None:
        """One optimizer step was taken."""
        self.taken += 1
        self._set()

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self.taken, "steps": self.steps, "peaks": self.peaks}

    def begin(self, part: float) -> None:
        """Go on where that part of the run's steps is taken."""
        self.taken = round(part * self.steps)
        self._set()

    def _set(self) -> None:
        factor = warmup_cosine(self.taken, self.steps, self.warmup)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor


def gradient_norm(parameters: Iterable[torch.nn.Parameter]) -> torch.Tensor:
    """The 2-norm of all gradients together; 0 where there is none."""
    grads = gradients(parameters)
    return (
        torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        if grads
        else torch.zeros(())
    )


def clip_gradients(
    parameters: Iterable[torch.nn.Parameter], most: float, norm: torch.Tensor
) -> None:
    """Scale all gradients so that their ``norm`` is at most ``most``.

    What torch.nn.utils does, for parameters of one device: it sorts them by device first, twice a
    step, which takes longer than the arithmetic of a small model.
    """
    if grads := gradients(parameters):
        torch._foreach_mul_(grads, (most / (norm + 1e-6)).clamp(max=1))


def gradients(parameters: Iterable[torch.nn.Parameter]) -> list[torch.Tensor]:
    """Those that there are."""
    return [p.grad for p in parameters if p.grad is not None]
