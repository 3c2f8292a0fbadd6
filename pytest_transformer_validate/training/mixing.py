"""Where a model in training mode lets the rows of a batch see each other."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pytest_transformer_validate.probe.trace import traced

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_transformer_validate.probe.trace import Call
    from pytest_transformer_validate.training.steps import Stepper

    Tensors = Sequence[torch.Tensor]

U = 256  # one row and several may be rounded in other ways


@dataclass(frozen=True)
class Mixing:
    """``forward`` is the first module whose output for a row is another in a batch than alone
    (``None``: none is), ``order`` the modules in the order in which they end."""

    forward: str | None
    order: tuple[str, ...]

    def nearest(self, parameters: set[str]) -> str | None:
        """The last module in order that owns one of these parameters. A backward hands what is
        wrong on to all before it, so that is the one nearest to the cause."""
        owners = {name.rpartition(".")[0] for name in parameters}
        return next((name for name in reversed(self.order) if name in owners), None)


def find_mixing(stepper: Stepper, batch: Mapping[str, torch.Tensor]) -> Mixing:
    """Run ``batch``, and its last row alone, in training mode."""
    whole = _calls(stepper, batch)
    alone = _calls(stepper, {name: tensor[-1:] for name, tensor in batch.items()})
    rows = len(batch[stepper.task.target_field])
    place = next(
        (
            name
            for (name, number), call in whole.items()
            if (other := alone.get((name, number))) is not None
            and _differ(call.outputs, other.outputs, rows)
            and not _differ(call.inputs, other.inputs, rows)
        ),
        None,
    )
    return Mixing(place, tuple(name for name, _ in whole))


def _calls(stepper: Stepper, batch: Mapping[str, torch.Tensor]) -> dict[tuple[str, int], Call]:
    """Each call in order, by the module's name and how often it was called before."""
    stepper.model.train()
    with torch.no_grad(), traced(stepper.model) as calls:
        stepper(batch)
    seen: Counter[str] = Counter()
    found = {}
    for call in calls:
        found[call.name, seen[call.name]] = call
        seen[call.name] += 1
    return found


def _differ(whole: Tensors, alone: Tensors, rows: int) -> bool:
    return any(_moved(one, two, rows) for one, two in zip(whole, alone, strict=False))


def _moved(whole: torch.Tensor, alone: torch.Tensor, rows: int) -> bool:
    """Whether the last row is another. Its axis is the one that is longer in a batch: the first,
    the second, or the first with what it was flattened with."""
    if whole.dim() != alone.dim() or not alone.numel():
        return False
    axis = next((n for n, s in enumerate(alone.shape) if whole.shape[n] == rows * s), None)
    if axis is None:
        return False
    size = alone.shape[axis]
    part = whole.narrow(axis, whole.shape[axis] - size, size)
    if part.shape != alone.shape:
        return False
    limit = U * torch.finfo(whole.dtype).eps * float(whole.abs().max())
    return bool(((part - alone).abs() > limit).any())
