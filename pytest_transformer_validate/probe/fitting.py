"""What a run says about training."""

from __future__ import annotations

from dataclasses import dataclass

EPOCHS = 3
BUDGET = 120.0


@dataclass(frozen=True)
class Fitting:
    """``data`` is the path of a file to fine-tune on (None: there is none), ``epochs`` how often
    it is gone through, ``budget`` how many seconds one training may take (0: any)."""

    data: str | None = None
    epochs: int = EPOCHS
    budget: float = BUDGET
