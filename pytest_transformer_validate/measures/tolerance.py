"""How far apart two numbers may be, and who decides close to the limit.

Everything is in u = eps(dtype) x max|reference|, the spacing of floating point numbers at the
scale of the output. Probes of one shape (another token, another row) repeat the same arithmetic:
they are expected to differ by exactly 0, and mixtures of experts, whose grouped products change
with the routing, by up to 3 u (measured over 183 causal language models of transformers 5.23).
Hence 16 u. Probes of two shapes or paths (cached and full, padded and not, batch 3 and 1) add in
another order: up to 6.5 u measured (12 layers, d = 256), more where the model's own noise is
larger. Hence max(64 u, 16 x noise). A value above its limit and below 16 times it is decided in
float64: rounding shrinks by about 1e8 there, a defect keeps its size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_transformer_validate.measures.measurement import Limit

if TYPE_CHECKING:
    import torch

    from pytest_transformer_validate.probe.probe import Probe

SAME_SHAPE = 16
TWO_SHAPES = 64
NOISE = 16
ARBITRATED = 16
SHRINKS = 1e-4

Repeat = Callable[[], "tuple[float, str]"]


@dataclass(frozen=True)
class Verdict:
    """Whether the limit is exceeded, and how that was settled where it was close."""

    exceeded: bool
    notes: tuple[str, ...] = ()


def unit(reference: torch.Tensor) -> float:
    """u for outputs like ``reference``: eps of its dtype x its largest finite magnitude."""
    import torch

    largest = max(map(abs, map(float, reference.aminmax()))) if reference.numel() else 0.0
    if not math.isfinite(largest):
        finite = reference[reference.isfinite()]
        largest = float(finite.abs().max()) if finite.numel() else 0.0
    return torch.finfo(reference.dtype).eps * largest


def same_shape_limit(reference: torch.Tensor, factor: float = SAME_SHAPE) -> Limit:
    """The limit for two runs of one shape: ``factor`` u (default 16)."""
    return Limit(value=factor * unit(reference), rule=f"{factor:g} u")


def two_shapes_limit(
    reference: torch.Tensor, noise: float = 0.0, factor: float = TWO_SHAPES
) -> Limit:
    """The limit for two runs of different shape or path: ``factor`` u (default 64), or 16 times
    the model's own ``noise`` where that is more (see ``Probe.noise``)."""
    units = factor * unit(reference)
    if NOISE * noise > units:
        return Limit(value=NOISE * noise, rule=f"{NOISE} x the model's own noise")
    return Limit(value=units, rule=f"{factor:g} u")


def shapes_limit(
    value: float, reference: torch.Tensor, noise: Callable[[], float], factor: float = TWO_SHAPES
) -> Limit:
    """``two_shapes_limit`` for a value; the model's ``noise()`` is asked for only where it is
    needed: above ``factor`` u."""
    limit = two_shapes_limit(reference, 0.0, factor)
    return limit if value <= limit.value else two_shapes_limit(reference, noise(), factor)


def doubtful(dtype: torch.dtype) -> float:
    """How many times its limit a value is repeated for (see ``settle``) in a model of ``dtype``:
    one that computes in half precision may still return float32, whose u is far smaller."""
    import torch

    return ARBITRATED * max(1.0, torch.finfo(dtype).eps / torch.finfo(torch.float32).eps)


def settle(value: float, limit: Limit, repeat: Repeat, *, sure: float = ARBITRATED) -> Verdict:
    """Compare, and repeat the probe where the value is within ``sure`` times its limit.

    ``repeat()`` gives the value of the same probe from an independent run and the words for it
    (``in float64``, ``with another seed``).
    """
    if value <= limit.value:
        return Verdict(exceeded=False)
    if not value <= sure * limit.value:
        return Verdict(exceeded=True)
    again, how = repeat()
    if again > SHRINKS * value:
        note = f"close to its limit, so repeated {how}: still {again:.2g}"
        return Verdict(exceeded=True, notes=(note,))
    note = f"{value:.2g} was over its limit {limit}; repeated {how} it is {again:.2g}: rounding"
    return Verdict(exceeded=False, notes=(note,))


def settle_in_doubt(
    probe: Probe, value: float, limit: Limit, measure: Callable[[Probe], float]
) -> Verdict:
    """``settle`` by ``measure`` of a probe in float64, or with another seed: in doubt for as long
    as the dtype that the model computes in lets it be (see ``doubtful``)."""
    sure = doubtful(probe.computes_in)
    return settle(value, limit, lambda: probe.repeated(measure), sure=sure)
