"""Numbers of what small changes of the input do."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_transformer_validate.measures.measurement import Measurement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_transformer_validate.probe.vector_noise import Response


@dataclass(frozen=True, kw_only=True)
class TokenEffects(Measurement):
    """``effects`` holds, by the kind of change, how far the output moved for each changed token
    or patch, in standard deviations of the logits; ``value`` is the part of all changes that
    move it. ``slope`` is the gradient times the vectors at each token and ``agreement`` its rank
    correlation with the effect of replacing; ``grid`` how many patches stand in a row.
    """

    effects: dict[str, list[float]] = field(default_factory=dict)
    slope: list[float] | None = None
    agreement: float | None = None
    grid: int = 0


@dataclass(frozen=True, kw_only=True)
class Smoothness(Measurement):
    """``gains`` holds, for each of ``scales``, how far the output moves over how far the vectors
    do, both as parts of their sizes: the median of a few directions. ``value`` is the largest
    over the smallest gain, among those above rounding; ``decides`` names operations that choose or
    round."""

    scales: list[float] = field(default_factory=list)
    gains: list[float] = field(default_factory=list)
    decides: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Adversarial(Measurement):
    """``value`` is how many tokens had to be replaced until the prediction was another one
    (``None``: it stayed); ``margins`` of the first prediction over the next, before and after
    each swap; ``swaps`` are (position, old id, new id)."""

    margins: list[float] = field(default_factory=list)
    swaps: list[tuple[int, int, int]] = field(default_factory=list)


def moving(effects: dict[str, list[float]], floor: float) -> float:
    """The part of all changes that move the output by more than ``floor``."""
    every = [effect for kind in effects.values() for effect in kind]
    return sum(effect > floor for effect in every) / len(every) if every else 0.0


def gains(found: Response) -> list[float]:
    """The median gain at each scale."""
    return [
        statistics.median(float(x) for x in row) / scale
        for scale, row in zip(found.scales, found.moved, strict=True)
    ]


def told(found: Response) -> list[float]:
    """The gains at scales at which the output moves by more than rounding does."""
    medians = [statistics.median(float(x) for x in row) for row in found.moved]
    pairs = zip(gains(found), medians, strict=True)
    return [gain for gain, median in pairs if median > found.rounding]


def spearman(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Rank correlation; ``None`` where one of the two is constant."""
    if len(one) < 3 or len(set(one)) < 2 or len(set(other)) < 2:
        return None
    return statistics.correlation(_ranks(one), _ranks(other))


def _ranks(numbers: Sequence[float]) -> list[float]:
    order = sorted(range(len(numbers)), key=numbers.__getitem__)
    ranks = [0.0] * len(numbers)
    for rank, place in enumerate(order):
        ranks[place] = float(rank)
    return ranks
