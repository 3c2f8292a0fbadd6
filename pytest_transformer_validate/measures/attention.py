"""Numbers about attention weights. Axes: H heads, T queries, S keys."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_transformer_validate.measures.measurement import Measurement

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import torch

    from pytest_transformer_validate.probe.footprints import Footprint
    from pytest_transformer_validate.probe.sites import Site

_NEAR = 0.01  # of a scale: another head width would be further off
_PICTURE = 32
_UNIFORM = 0.9999  # of the largest entropy


@dataclass(frozen=True, kw_only=True)
class AttentionRows(Measurement):
    """``value`` is how far the sum of a row of weights is from 1, at most, over ``sites`` calls of
    attention; ``judged`` of them promise that sum."""

    sites: int = 0
    judged: int = 0


@dataclass(frozen=True, kw_only=True)
class AttentionMask(Measurement):
    """``value`` is the largest weight of a cell that must not be seen; ``cells`` how many such
    cells were looked at, by what forbids them (``future``, ``padding``, ``window``)."""

    cells: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class AttentionReach(Measurement):
    """``value`` is how many pairs of positions disagree between attention weights and the
    dependency of outputs on tokens; ``visible`` how many pairs attention connects at all."""

    sites: int = 0
    visible: int = 0
    length: int = 0


@dataclass(frozen=True, kw_only=True)
class AttentionHeads(Measurement):
    """``value`` is the smallest distance between the weights of two heads of one layer: the
    largest difference of a weight; ``heads`` how many there are in all."""

    sites: int = 0
    heads: int = 0


@dataclass(frozen=True, kw_only=True)
class AttentionScale(Measurement):
    """``value`` is the factor between query times key and the softmax that is furthest from
    1/sqrt(d), as a multiple of that; ``spread`` the standard deviation of scores by module."""

    factors: Mapping[str, float] = field(default_factory=dict)
    spread: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One call of attention, a number for each head (at most 64).

    ``entropy`` of the rows over the logarithm of the number of visible keys (1: uniform);
    ``first`` the mass on the first key; ``distance`` the mean distance between query and key, in
    positions (``None`` where keys are no positions of the queries' text); ``diversity`` the mean
    distance between two heads, as total variation (0: copies, 1: nothing in common).
    """

    module: str
    entropy: tuple[float, ...]
    first: tuple[float, ...]
    distance: tuple[float, ...] | None
    diversity: float | None
    length: int

    @property
    def uniform(self) -> bool:
        """Whether every head looks at all keys alike: scores differ by about 0.02.

        A short training on texts that need no context leaves an entropy of 0.993 to 0.999
        (measured: GPT-2, Llama and Mixtral of width 32 after 250 steps on a Markov chain).
        """
        return bool(self.entropy) and min(self.entropy) > _UNIFORM


@dataclass(frozen=True, kw_only=True)
class AttentionPatterns(Measurement):
    """Information: ``value`` is the mean normalised entropy over all heads.

    ``layers`` holds a row for each call of attention; ``collapsed`` the modules in which every
    head looks at all keys alike; ``pictures`` mean weights over the heads of the first and the
    last layer, at most 32 x 32.
    """

    layers: tuple[Layer, ...] = ()
    collapsed: tuple[str, ...] = ()
    pictures: Mapping[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict)


def off_one(site: Site) -> float:
    """How far the sum of a row is from 1, at most; rows that see nothing do not count. With
    columns beside the keys, how far it is above 1."""
    sums = site.weights.double().sum(-1)
    sums = sums[sums != 0]
    if not sums.numel():
        return 0.0
    return float((sums - 1).max() if site.more else (sums - 1).abs().max())


def sums_to_one_along(site: Site) -> str:
    """The wrong axis along which weights sum to 1: ``queries`` or ``heads``, or nothing."""
    weights = site.weights.double()
    for name, axis in (("queries", 1), ("heads", 0)):
        if weights.shape[axis] > 1 and float((weights.sum(axis) - 1).abs().max()) < 1e-4:
            return name
    return ""


def seen(site: Site) -> torch.Tensor:
    """(H, T, S): weights on keys that carry anything at all."""
    weights = site.weights.abs()
    if site.silent is None:
        return weights
    return weights.masked_fill(site.silent.to(weights.device), 0)


def visible(site: Site) -> torch.Tensor:
    """(T, S): which cells any head gives a weight that is not zero; below the smallest normal
    number it is."""
    import torch

    found: torch.Tensor = (seen(site) > torch.finfo(site.weights.dtype).tiny).any(0)
    return found


def strong(site: Site) -> torch.Tensor:
    """(T, S): which cells any head gives more than a thousandth."""
    found: torch.Tensor = (site.weights > 1e-3).any(0)
    return found


def mixes(footprint: Footprint) -> bool:
    """Whether a module carries anything from a position to another one."""
    import torch

    matrix = footprint.own
    if matrix is None:
        return True
    apart = matrix.clone()
    apart[torch.arange(len(footprint.positions)), list(footprint.positions)] = 0
    return float(apart.max()) > 1e-12 * float(matrix.max())


def beyond(footprint: Footprint, known: torch.Tensor) -> bool:
    """Whether a module carries anything between positions that are not ``known`` (T, T) to be
    connected."""
    matrix = footprint.own
    if matrix is None or matrix.shape[1] != len(known):
        return False
    rows = known[list(footprint.positions)]
    return bool(((matrix.cpu() > 1e-12 * float(matrix.max())) & ~rows).any())


def reachable(sites: Iterable[Site], length: int) -> torch.Tensor:
    """(T, T): which tokens an output can know of, through any sequence of these sites."""
    import torch

    known = torch.eye(length, dtype=torch.bool)
    for site in sites:
        step = visible(site).cpu() | torch.eye(length, dtype=torch.bool)
        known = (step.double() @ known.double()) > 0
    return known


def faint(site: Site) -> tuple[float, tuple[int, int, int]] | None:
    """A weight that was meant to be zero and is not: the same cells are below 1e-8 in every head,
    and no other cell is below 1e-5. The value, and head, query and key."""
    import torch

    weights = site.weights.double()
    there = weights > torch.finfo(site.weights.dtype).tiny
    low = there & (weights < 1e-8)
    between = there & ~low & (weights < 1e-5)
    if not bool(low.any()) or bool(between.any()) or not bool((low == low[:1]).all()):
        return None
    place = weights.where(low, weights.new_zeros(())).argmax()
    head, query, key = (int(n) for n in torch.unravel_index(place, weights.shape))
    return float(weights[head, query, key]), (head, query, key)


def copies(site: Site) -> tuple[float, int, int]:
    """The smallest difference between two heads, as the largest of a weight, and the heads; heads
    that look at all keys alike do not count (infinity where fewer than two are left)."""
    import torch

    weights = site.weights.double()
    there = weights > 0
    count = there.sum(-1, keepdim=True).clamp_min(1)
    uneven = ((weights - weights.sum(-1, keepdim=True) / count).abs() * there).amax((1, 2))
    limit = min(256 * torch.finfo(site.weights.dtype).eps, 0.02)
    heads = [h for h, most in enumerate(uneven.tolist()) if most > limit]
    found = (math.inf, 0, 0)
    for place, one in enumerate(heads[:64]):
        for other in heads[place + 1 : 64]:
            distance = float((weights[one] - weights[other]).abs().max())
            found = min(found, (distance, one, other))
    return found


def usual_scale(site: Site) -> float:
    """1/sqrt(d)."""
    return float(site.query.shape[-1]) ** -0.5 if site.query is not None else math.nan


def near(value: float, other: float) -> bool:
    """Whether two scales are the same one, to a percent."""
    return abs(value - other) <= _NEAR * abs(other)


def score_spread(site: Site) -> float:
    """Standard deviation of the scores that are not masked."""
    if site.scores is None:
        return math.nan
    scores = site.scores.double()
    scores = scores[scores.isfinite() & (scores.abs() < 1e4)]
    return float(scores.std(correction=0)) if scores.numel() else math.nan


def norms(site: Site) -> tuple[float, float, bool]:
    """Root mean square of queries and of keys, and whether the vectors of one of the two are all
    of one length: normalised."""
    if site.query is None or site.key is None:
        return math.nan, math.nan, False
    found = []
    even = False
    for vectors in (site.query, site.key):
        lengths = vectors.double().norm(dim=-1).flatten()
        lengths = lengths[lengths > 0]  # blocks are filled up with zeros
        mean = float(lengths.mean()) if lengths.numel() else 0.0
        even = even or (mean > 0 and float(lengths.std(correction=0)) < 0.01 * mean)
        found.append(mean / vectors.shape[-1] ** 0.5)
    return found[0], found[1], even


def layer(site: Site) -> Layer:
    """The numbers of one call."""
    weights = site.weights.double()[:64]
    sums = weights.sum(-1, keepdim=True)
    rows = weights / sums.where(sums > 0, sums.new_ones(()))
    there = (rows > 0).sum(-1)
    several = there > 1
    entropy = -(rows * rows.clamp_min(1e-300).log()).sum(-1)
    part = (entropy / there.clamp_min(2).double().log()).where(several, entropy.new_zeros(()))
    counts = several.sum(-1).clamp_min(1)
    own = site.shape[0] == site.shape[1]
    return Layer(
        module=site.module,
        entropy=_list(part.sum(-1) / counts),
        first=_list(rows[..., 0].mean(-1)),
        distance=_list((rows * _apart(rows)).sum(-1).mean(-1)) if own else None,
        diversity=_diversity(rows),
        length=site.shape[0],
    )


def picture(site: Site) -> tuple[tuple[float, ...], ...]:
    """Mean weights over the heads, as a table of at most 32 x 32."""
    mean = site.weights.double().mean(0)[:_PICTURE, :_PICTURE]
    return tuple(tuple(round(float(x), 4) for x in row) for row in mean)


def specialization(site: Site) -> float:
    """How much a weight differs between heads, as a standard deviation."""
    return float(site.weights.double().std(0).mean()) if len(site.weights) > 1 else 0.0


def entropy(site: Site) -> float:
    """Of the rows, in nats: the mean over heads and rows."""
    rows = site.weights.double().clamp_min(0)
    rows = rows / rows.sum(-1, keepdim=True).clamp_min(1e-300)
    return float(-(rows * rows.clamp_min(1e-300).log()).sum(-1).mean())


def mean_entropy(layers: Sequence[Layer]) -> float | None:
    """Over all heads of all layers."""
    every = [e for each in layers for e in each.entropy]
    return sum(every) / len(every) if every else None


def _apart(rows: torch.Tensor) -> torch.Tensor:
    import torch

    places = torch.arange(rows.shape[-1], dtype=rows.dtype, device=rows.device)
    return (places[:, None] - places).abs()


def _diversity(rows: torch.Tensor) -> float | None:
    heads = len(rows)
    if heads < 2:
        return None
    apart = [
        0.5 * (rows[one] - rows[one + 1 :]).abs().sum(-1).mean(-1) for one in range(heads - 1)
    ]
    return float(sum(float(a.sum()) for a in apart) / (heads * (heads - 1) / 2))


def _list(values: torch.Tensor) -> tuple[float, ...]:
    return tuple(round(float(v), 5) for v in values)
