"""Numbers of the last optimizer steps, left on the device until somebody looks."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
        self._steps: list[tuple[int, torch.Tensor, float, float]] = []
        self._batches: deque[tuple[int, Sequence[Mapping[str, Any]]]] = deque()
        self._read = time.perf_counter()

    def add(
        self,
        step: int,
        numbers: Sequence[torch.Tensor | float],
        learning_rate: float,
        batches: Sequence[Mapping[str, Any]],
    ) -> None:
        """``numbers``: sum of the loss, targets, hits, norm of the gradients."""
        device = next(n.device for n in numbers if isinstance(n, torch.Tensor))
        row = torch.stack(
            [torch.as_tensor(n, device=device, dtype=torch.float32).detach() for n in numbers]
        )
        self._steps.append((step, row, learning_rate, time.perf_counter()))
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
        rows = torch.stack([row for _, row, _, _ in self._steps]).tolist()
        found = [
            StepNumbers(step, loss / max(tokens, 1), tokens, correct, norm, rate, ended)
            for (step, _, rate, ended), (loss, tokens, correct, norm) in zip(
                self._steps, rows, strict=True
            )
        ]
        self._steps.clear()
        return found

    def batches(self, step: int) -> Sequence[Mapping[str, Any]]:
        """The micro-batches of a step."""
        return dict(self._batches)[step]

    def forget(self) -> None:
        """Nothing was wrong with the steps that were read."""
        self._batches.clear()
