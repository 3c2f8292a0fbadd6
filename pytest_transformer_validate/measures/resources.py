"""Numbers about memory, work and time."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_transformer_validate.measures.measurement import Measurement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_transformer_validate.probe.resources import Counts

MB = 2**20


@dataclass(frozen=True, kw_only=True)
class Footprint(Measurement):
    """Bytes that a model needs.

    ``value`` is by how much the activations that a backward needs grow when the batch doubles, or
    ``kept`` where that is what fails; ``activations`` are their bytes by batch size and length
    (``"2x8"``), ``by_length`` those of as few rows by length; ``length_growth`` the power of the
    length that the fastest growing one follows (``linear``, ``quadratic``); ``cache_per_token``
    the bytes of the returned cache for each token of each row; ``kept`` the bytes that each
    further call leaves alive.
    """

    parameter_bytes: int = 0
    buffer_bytes: int = 0
    activations: dict[str, int] = field(default_factory=dict)
    by_length: dict[int, int] = field(default_factory=dict)
    per_token: float | None = None
    length_growth: str | None = None
    cache_per_token: float | None = None
    kept: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Speed(Measurement):
    """Time of a forward, and the work in it.

    ``value`` is the median time in ms of one forward of ``rows`` x ``length`` tokens over
    ``trials`` after warm-up, the other times are in ms too. Ratios compare doubled sizes with
    it: ``*_batch_ratio`` twice the rows, ``*_length_ratio`` twice the tokens; times are medians,
    ``operations`` (torch operations) and ``multiplications`` (in products of matrices) are
    counted, ``products`` are those between activations. ``by_length`` has the shortest
    times of ``rows`` by length.
    """

    rows: int
    length: int
    trials: int
    mean_ms: float
    std_ms: float
    median_ms: float
    p95_ms: float
    p99_ms: float
    samples_per_second: float
    tokens_per_second: float | None = None
    by_length: dict[int, float] = field(default_factory=dict)
    time_batch_ratio: float | None = None
    time_length_ratio: float | None = None
    operations: int = 0
    multiplications: int = 0
    operations_batch_ratio: float | None = None
    operations_length_ratio: float | None = None
    products_batch_ratio: float | None = None
    products_length_ratio: float | None = None


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that ``percent`` of 100 values do not exceed, interpolated between neighbours."""
    ordered = sorted(values)
    place = percent / 100 * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def times(seconds: Sequence[float]) -> dict[str, float]:
    """Mean, standard deviation and percentiles of ``seconds``, in milliseconds."""
    ms = [1e3 * s for s in seconds]
    return {
        "mean_ms": statistics.fmean(ms),
        "std_ms": statistics.stdev(ms) if len(ms) > 1 else 0.0,
        "median_ms": statistics.median(ms),
        "p95_ms": percentile(ms, 95),
        "p99_ms": percentile(ms, 99),
    }


@dataclass(frozen=True)
class Ratios:
    """By how much counted work grows from one size to another (1 where there is none)."""

    operations: float
    products: float
    multiplications: float
    bytes: float

    @property
    def work(self) -> float:
        """The worst of the work."""
        return max(self.operations, self.products, self.multiplications)

    @property
    def kind(self) -> str:
        """Which work grows fastest."""
        kinds = ("products", "multiplications", "operations")
        return max(kinds, key=lambda kind: float(getattr(self, kind)))


def ratios(small: Counts, large: Counts) -> Ratios:
    """Ratios of what was counted at two sizes."""
    return Ratios(
        operations=_ratio(large.work.operations, small.work.operations),
        products=_ratio(large.work.products, small.work.products),
        multiplications=_ratio(large.work.multiplications, small.work.multiplications),
        bytes=_ratio(large.bytes, small.bytes),
    )


def _ratio(large: float, small: float) -> float:
    return large / small if small else 1.0
