"""Numbers of the last optimizer steps, left on the device until somebody looks."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Sums = tuple[torch.Tensor, torch.Tensor]
SECONDS = 0.5
MOST = 64


@dataclass(frozen=True)
class StepNumbers:
    """One optimizer step: mean ``loss`` over its ``tokens`` (all ranks'), how many were
    ``correct``, the norm of the gradients before clipping, and when it was over."""

    step: int
    loss: float
    tokens: float
    correct: float
    norm: float
    learning_rate: float
    ended: float


class Window:
    """Keeps what a step computed and reads it for many steps in one copy from the device.

    ``due`` after half a second or 64 steps. The batches of the steps that nobody has read yet
    are kept, so that a step that went wrong can be looked at.
    """

    def __init__(self) -> None:
        self._steps: list[tuple[int, Sequence[Sums], Any, torch.Tensor, float, float]] = []
        self._batches: deque[tuple[int, Sequence[Mapping[str, Any]]]] = deque()
        self._read = time.perf_counter()

    def add(
        self,
        step: int,
        sums: Sequence[Sums],
        count: torch.Tensor | float,
        norm: torch.Tensor,
        learning_rate: float,
        batches: Sequence[Mapping[str, Any]],
    ) -> None:
        """``sums`` of the loss and of the hits, which together are those over the ``count``
        targets of the step: scalars on the device."""
        self._steps.append((step, sums, count, norm, learning_rate, time.perf_counter()))
        self._batches.append((step, batches))

    @property
    def due(self) -> bool:
        waited = time.perf_counter() - self._read
        return len(self._steps) >= MOST or waited > SECONDS

    def read(self) -> list[StepNumbers]:
        """The steps since the last reading. Waits for the device once."""
        self._read = time.perf_counter()
        if not self._steps:
            return []
        steps, sums, counts, norms, rates, ended = map(list, zip(*self._steps, strict=True))
        values = iter(_numbers([one for pairs in sums for pair in pairs for one in pair]))
        pairs, found = zip(values, values, strict=True), []
        columns = zip(steps, sums, _numbers(counts), _numbers(norms), rates, ended, strict=True)
        for step, parts, count, norm, rate, end in columns:
            loss, correct = map(sum, zip(*islice(pairs, len(parts)), strict=True))
            found.append(StepNumbers(step, loss / max(count, 1), count, correct, norm, rate, end))
        self._steps.clear()
        return found

    def batches(self, step: int) -> Sequence[Mapping[str, Any]]:
        """The micro-batches of a step."""
        return dict(self._batches)[step]

    def forget(self) -> None:
        """Nothing was wrong with the steps that were read."""
        self._batches.clear()


def _numbers(values: list[Any]) -> list[float]:
    """Numbers, or scalars on a device in one copy from it."""
    on_device = isinstance(values[0], torch.Tensor)
    return torch.stack(values).tolist() if on_device else values
