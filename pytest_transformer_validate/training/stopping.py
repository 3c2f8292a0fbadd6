"""When a run has got as good as it gets."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.errors import ConfigError
from pytest_transformer_validate.training.config import ConfigWarning

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_transformer_validate.training.config import TrainingConfig


class EarlyStopping:
    """Counts the epochs since the monitored metric was best; NaN is never best.

    Without validation data the training loss stands in for the validation loss.
    """

    def __init__(self, config: TrainingConfig, *, has_validation: bool) -> None:
        self.patience: int | None = config.early_stopping_patience
        self.metric: str = config.early_stopping_metric
        self.mode: str = config.early_stopping_mode
        if not has_validation and self.metric.startswith("val/"):
            if self.metric != "val/loss":
                warnings.warn(
                    f"early_stopping_metric={self.metric!r} needs validation data; the training "
                    "loss is watched",
                    ConfigWarning,
                    stacklevel=2,
                )
            self.metric, self.mode = "train/loss", "min"
        self.best: float | None = None
        self.waited = 0

    @property
    def over(self) -> bool:
        """Whether the metric has not got better for ``patience`` epochs."""
        return self.patience is not None and self.waited >= self.patience

    def see(self, row: Mapping[str, Any]) -> None:
        """One epoch's row of metrics. Raises ConfigError for a metric that is not in it."""
        value = row.get(self.metric)
        if value is None:
            known = ", ".join(name for name, v in row.items() if isinstance(v, float))
            raise ConfigError([f"early_stopping_metric: no {self.metric!r}; there are {known}"])
        sign = 1 if self.mode == "min" else -1
        if math.isfinite(value) and (self.best is None or sign * value < sign * self.best):
            self.best, self.waited = value, 0
        else:
            self.waited += 1
