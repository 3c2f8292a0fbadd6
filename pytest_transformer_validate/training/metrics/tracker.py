"""The numbers of one run in memory, handed on to sinks."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any, Protocol

from pytest_transformer_validate.optional import require
from pytest_transformer_validate.task import IGNORE_INDEX
from pytest_transformer_validate.training.losses import perplexity
from pytest_transformer_validate.training.metrics.wandb_sink import ActiveRun

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch


class Sink(Protocol):
    """Somebody who is told about a run. No method may stop the run by raising."""

    def log_scalars(self, values: Mapping[str, float], step: int | None) -> None:
        """Numbers of one optimizer step."""

    def log_epoch(self, row: Mapping[str, Any]) -> None:
        """One row of ``metrics_summary``."""

    def close(self, status: str) -> None:
        """The run is over: ``completed``, ``failed`` or ``stopped``."""


class MetricsTracker:
    """Keeps every number and hands it to the sinks.

    Args:
        use_wandb: hand numbers to the run of W&B that is open in this process, if there is one.
        gradient_accumulation_steps: tells micro steps from optimizer steps in
            ``get_step_metrics``.
        sinks: who else is told.
    """

    def __init__(
        self,
        use_wandb: bool = True,
        gradient_accumulation_steps: int = 1,
        *,
        sinks: Sequence[Sink] = (),
    ) -> None:
        self.sinks: list[Sink] = [*sinks, *([ActiveRun()] if use_wandb else [])]
        self.accumulation = gradient_accumulation_steps
        self.metrics_history: list[dict[str, Any]] = []
        self._scalars: list[dict[str, Any]] = []
        self._waiting: dict[str, float] = {}

    def log_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of optimizer step ``step``, counted from 1."""
        now = time.time()
        for name, value in values.items():
            self._keep(name, value, step, now)
        for sink in self.sinks:
            sink.log_scalars(values, step)

    def log_scalar(
        self, metric_name: str, value: float, step: int | None = None, commit: bool = True
    ) -> None:
        """One number; without ``commit`` the sinks get it together with the next one."""
        self._keep(metric_name, value, step, time.time())
        self._waiting[metric_name] = value
        if commit:
            values, self._waiting = self._waiting, {}
            for sink in self.sinks:
                sink.log_scalars(values, step)

    def log_epoch(
        self,
        epoch: int,
        train_metrics: Mapping[str, float],
        val_metrics: Mapping[str, float] | None = None,
        learning_rate: float | None = None,
        gradient_norm: float | None = None,
        epoch_duration: float | None = None,
    ) -> dict[str, Any]:
        """The row of an epoch in ``get_summary``; metrics hold ``loss`` and ``accuracy``."""
        row: dict[str, Any] = {"epoch": epoch}
        for split, metrics in (("train", train_metrics), ("val", val_metrics or {})):
            for name, value in metrics.items():
                row[f"{split}/{name}"] = value
            if "loss" in metrics:
                row.setdefault(f"{split}/perplexity", perplexity(metrics["loss"]))
        row |= {"learning_rate": learning_rate, "gradient_norm": gradient_norm}
        row["epoch_duration"] = epoch_duration
        self.metrics_history.append(row)
        for sink in self.sinks:
            sink.log_epoch(row)
        return row

    def compute_perplexity(self, loss: float) -> float:
        """``exp(loss)``, the loss taken as at most 100."""
        return perplexity(loss)

    def compute_accuracy(
        self, logits: torch.Tensor, labels: torch.Tensor, ignore_index: int = IGNORE_INDEX
    ) -> float:
        """The part of the labels that count whose logits (..., V) are largest; 0 without any."""
        counted = labels != ignore_index
        hits = (logits.argmax(-1) == labels) & counted
        return float(hits.sum()) / max(int(counted.sum()), 1)

    def get_best_epoch(self, metric: str = "val/loss", mode: str = "min") -> int | None:
        """The epoch with the best value; ``None`` where no epoch has a finite one."""
        rows = [r for r in self.metrics_history if _finite(r.get(metric))]
        pick = min if mode == "min" else max
        return None if not rows else int(pick(rows, key=lambda r: r[metric])["epoch"])

    def get_summary(self) -> Any:
        """A DataFrame, a row an epoch. Raises MissingDependency without pandas."""
        return require("pandas", extra="train").DataFrame(self.metrics_history)

    def get_step_metrics(self) -> Any:
        """A DataFrame: ``step, effective_step, metric, value, timestamp``."""
        return require("pandas", extra="train").DataFrame(
            self._scalars, columns=["step", "effective_step", "metric", "value", "timestamp"]
        )

    def close(self, status: str = "completed") -> None:
        """Tell every sink that the run is over."""
        for sink in self.sinks:
            sink.close(status)

    def _keep(self, name: str, value: float, step: int | None, now: float) -> None:
        micro = None if step is None else step * self.accumulation
        entry = {"step": micro, "effective_step": step, "metric": name, "value": value}
        self._scalars.append({**entry, "timestamp": now})


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
