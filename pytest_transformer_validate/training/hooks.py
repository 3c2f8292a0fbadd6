"""What a caller may do while a run goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class TrainingHooks:
    """Derive and override; each method does nothing by itself. Called on rank 0."""

    def on_training_start(self) -> None:
        """Before the first epoch."""

    def on_epoch_start(self, epoch: int) -> None:
        """``epoch`` counts from 0."""

    def on_batch_end(self, batch_idx: int, loss: float) -> None:
        """After an optimizer step was read: ``loss`` is its mean over all targets."""

    def on_validation_end(self, metrics: Mapping[str, float]) -> None:
        """``metrics``: loss, perplexity, accuracy of the validation data."""

    def on_epoch_end(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """``metrics``: everything of the epoch, as in ``metrics_summary``."""

    def on_training_end(self) -> None:
        """After the last epoch, also when it stopped early."""
