"""A bar that shows loss, speed and the time left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from pytest_transformer_validate.optional import find

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_transformer_validate.training.run import Run
    from pytest_transformer_validate.training.window import StepNumbers


class Progress:
    """tqdm's bar over the optimizer steps of an epoch, on rank 0 of a terminal or notebook.

    Nothing is shown where tqdm is not installed or output goes to a file.
    """

    def __init__(self, run: Run, total: int) -> None:
        tqdm = find("tqdm.auto")
        title = f"epoch {run.epoch + 1}/{run.config.epochs}"
        self._bar: Any = None
        if tqdm is not None and run.leads:
            self._bar = tqdm.tqdm(total=total, desc=title, disable=None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, numbers: Sequence[StepNumbers], speed: Mapping[str, float]) -> None:
        """The steps that were read, and the meter's numbers."""
        if self._bar is None:
            return
        tokens = f"{speed['train/tokens_per_second']:.0f}/s"
        self._bar.set_postfix(loss=f"{numbers[-1].loss:.3f}", tokens=tokens, refresh=False)
        self._bar.update(len(numbers))
