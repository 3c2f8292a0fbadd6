"""Values that a backward pass needs and that the forward writes over."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pytest_transformer_validate.probe.hooked import hooked
from pytest_transformer_validate.probe.trace import ROOT

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.probe import Probe


def overwritten(probe: Probe) -> str | None:
    """The innermost module that computed with a value which is written over later in the same
    forward, the first one; ``None`` where none is."""
    running: list[str] = [ROOT]
    kept: list[tuple[str, torch.Tensor, int]] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append((running[-1], tensor, tensor._version))
        return tensor

    def enter(name: str, _given: list[torch.Tensor]) -> None:
        running.append(name)

    def leave(_name: str, _gave: list[torch.Tensor]) -> None:
        running.pop()

    batch = probe.batch(*probe.subject.sizes, "overwritten")
    with (
        probe.running("overwritten", grad=True) as subject,
        hooked(subject.model, enter, leave),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        subject.call(batch, {})
    return next((name for name, tensor, version in kept if tensor._version != version), None)
