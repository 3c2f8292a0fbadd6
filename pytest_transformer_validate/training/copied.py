"""What a copy of a model is told before a check trains it, and what watches it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from pytest_transformer_validate.training.hooks import TrainingHooks

if TYPE_CHECKING:
    from collections.abc import Callable


def without_dropout(model: torch.nn.Module) -> None:
    """Set every rate to zero: of modules, of numbers that are called so, of configurations."""
    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for holder in (module, getattr(module, "config", None)):
            for name, value in list(getattr(holder, "__dict__", {}).items()):
                if "drop" in name.lower() and isinstance(value, float):
                    setattr(holder, name, 0.0)


def kept_gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What is accumulated in each parameter, as of the last backward."""
    found: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Callable[[torch.Tensor], None]:
        def hook(parameter: torch.Tensor) -> None:
            if parameter.grad is not None:
                found[name] = parameter.grad.to_dense().detach().cpu().clone()

        return hook

    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(keep(name))
    return found


class Enough(Exception):
    """Ends a training early; says why."""


class Watch(TrainingHooks):
    """Keeps the losses, and ends the training where there is enough, or no time left."""

    def __init__(self, budget: float, enough: Callable[[list[float]], bool]) -> None:
        self.losses: list[float] = []
        self.budget, self.enough = budget, enough
        self.start = time.monotonic()

    def on_batch_end(self, batch_idx: int, loss: float) -> None:
        self.losses.append(loss)
        if self.enough(self.losses):
            raise Enough("done")
        if self.budget and time.monotonic() - self.start > self.budget:
            raise Enough(f"out of time: {self.budget:g} s")
