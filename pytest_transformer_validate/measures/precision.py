"""Numbers about a model in another precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_transformer_validate.measures.measurement import Measurement

if TYPE_CHECKING:
    import torch

    from pytest_transformer_validate.probe.precision import Rounding

# An error model that happens to err nowhere still leaves the rounding of the logits themselves.
FLOOR = 0.25
# Logits of this size are zero: a batch norm at its start can give them.
TINY = 1e-30


@dataclass(frozen=True, kw_only=True)
class Precision(Measurement):
    """How far logits move in another precision.

    In half precision ``value`` is the error in multiples of the emulated one, in the quarter of
    the positions where that is largest; ``error`` and ``emulated`` are both, relative to the
    logits. In float64 ``value`` is the largest difference of a logit and ``units`` the same in u.
    """

    length: int = 0
    error: float | None = None
    emulated: float | None = None
    units: float | None = None
    largest: float | None = None


def excess(rounding: Rounding, eps: float) -> tuple[float, int]:
    """The real error over the emulated one, and the part of the text where it is largest."""
    floor = max(FLOOR * eps * rounding.scale, TINY)
    ratios = [
        real / max(emulated, floor) if real > 0 else 0.0
        for real, emulated in zip(rounding.real, rounding.emulated, strict=True)
    ]
    worst = max(range(len(ratios)), key=ratios.__getitem__)
    return ratios[worst], worst


def far_share(double: torch.Tensor, own: torch.Tensor, limit: float) -> tuple[float, float]:
    """The largest difference of two runs, and the share of positions that differ by more than
    ``limit``."""
    known = double.isfinite() & own.isfinite()
    gap = (double - own).abs().masked_fill(~known, 0)
    by_place = gap.flatten(2).amax(2) if gap.dim() > 2 else gap.flatten(1).amax(1)
    return float(gap.max()), float((by_place > limit).double().mean())
