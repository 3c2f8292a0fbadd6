"""A bar that shows loss, speed and the time left."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Self

from pytest_transformer_validate.optional import find

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_transformer_validate.training.trainer import Run
    from pytest_transformer_validate.training.window import StepNumbers


class Progress:
    """tqdm's bar over the optimizer steps of an epoch, on rank 0 of a terminal or notebook.

    Nothing is shown where tqdm is not installed or output goes to a file.
    """

    def __init__(self, run: Run, total: int) -> None:
        tqdm = find("tqdm.auto")
        title = f"epoch {run.epoch + 1}/{run.config.epochs}"
        self._bar: Any = None
        if tqdm is not None and run.strategy.rank == 0:
            self._bar = tqdm.tqdm(total=total, desc=title, disable=None)
        self._since = time.perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, numbers: Sequence[StepNumbers]) -> None:
        """The steps that were read."""
        if self._bar is None or not numbers:
            return
        now = time.perf_counter()
        speed = sum(n.tokens for n in numbers) / max(now - self._since, 1e-9)
        self._since = now
        self._bar.set_postfix(
            loss=f"{numbers[-1].loss:.3f}", tokens=f"{speed:.0f}/s", refresh=False
        )
        self._bar.update(len(numbers))
