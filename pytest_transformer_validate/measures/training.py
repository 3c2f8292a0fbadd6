"""Numbers from trainings: curves of losses, and what tells two trainings apart."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_transformer_validate.measures.measurement import Measurement

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST = 64  # points of a curve
SMOOTHING = 0.9


@dataclass(frozen=True, kw_only=True)
class Overfit(Measurement):
    """``value`` is the smallest loss as a part of the first, ``rate`` the learning rate that gave
    it after ``steps`` optimizer steps; ``curves`` are the losses by learning rate."""

    rate: float | None = None
    steps: int = 0
    start: float | None = None
    curves: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LossCurve(Measurement):
    """``value`` is the mean of the last losses as a part of that of the first; ``start`` the very
    first, ``chance`` that of a guess among all outputs (ln V), ``spike`` the largest loss as a
    multiple of the smoothed losses before it."""

    start: float
    chance: float
    end: float
    spike: float
    losses: list[float] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Accumulated(Measurement):
    """``value`` is how far a gradient is from that of one batch, in limits; ``worst`` is the
    parameter; ``losses`` those of one batch and of micro-batches."""

    losses: tuple[float, float]
    worst: str | None = None


@dataclass(frozen=True, kw_only=True)
class Seeded(Measurement):
    """``value`` is the largest difference between weights of two trainings from one seed, ``step``
    the first optimizer step whose losses differ (from 1)."""

    step: int | None = None
    differing: int = 0


@dataclass(frozen=True, kw_only=True)
class FineTuned(Measurement):
    """``value`` is the validation loss after the last epoch, ``start`` the loss of the first
    optimizer steps; ``losses`` those of all steps, ``val`` the validation losses by epoch."""

    start: float
    steps: int
    seconds: float
    losses: list[float] = field(default_factory=list)
    val: list[float] = field(default_factory=list)


def thinned(losses: Sequence[float], most: int = MOST) -> list[float]:
    """At most ``most`` points of a curve, the first and the last among them."""
    if len(losses) <= most:
        return list(losses)
    last = len(losses) - 1
    return [losses[round(at * last / (most - 1))] for at in range(most)]


def largest_spike(losses: Sequence[float]) -> float:
    """The largest loss as a multiple of the exponential mean of the losses before it."""
    mean, found = losses[0], 1.0
    for loss in losses[1:]:
        found = max(found, loss / mean) if mean > 0 else found
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
    return found


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)
