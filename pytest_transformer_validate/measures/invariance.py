"""Numbers about the same inputs in other sizes, and in another order."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pytest_transformer_validate.measures.measurement import Measurement

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Invariance(Measurement):
    """How far logits move between sizes of a text or of a batch.

    ``value`` is the largest movement, at ``size``, against a run of size ``largest``; ``moved``
    holds that of every size.
    """

    size: int = 0
    largest: int = 0
    moved: dict[int, float] = field(default_factory=dict)

    def value_over(self) -> bool:
        """Whether the value is above its limit (not a number is)."""
        assert self.value is not None
        assert self.limit is not None
        return not self.value <= self.limit.value

    def noting(self, notes: tuple[str, ...]) -> Invariance:
        """The same with more notes."""
        return replace(self, notes=(*self.notes, *notes))


@dataclass(frozen=True, kw_only=True)
class PositionSensitivity(Measurement):
    """What a model knows about order.

    ``value`` is how far the first module that mixes positions moves when tokens change places,
    relative to its largest output (a later module, where the first weighs all tokens alike);
    ``known`` says where order is known from (``tokens``: what
    enters that module; ``module``: it tells by itself; ``mask``: the causal mask only);
    ``not_by_distance`` is the part of attention scores that does not follow the distance and
    ``shift`` how far logits move when all positions are shifted, each ``None`` where it was not
    measured.
    """

    known: str = ""
    module: str | None = None
    not_by_distance: float | None = None
    shift: float | None = None


def worse(first: Invariance | None, second: Invariance) -> Invariance:
    """The one that is closer to its limit, with the notes of both."""
    if first is None:
        return second
    taken = first if _share(first) >= _share(second) else second
    return replace(taken, notes=(*first.notes, *second.notes))


def _share(measured: Invariance) -> float:
    limit = measured.limit.value if measured.limit else 0.0
    return (measured.value or 0.0) / limit if limit else 0.0


_EDGE = 4  # the first positions differ where a short convolution stands before the scores


def not_by_distance(scores: torch.Tensor, eps: float) -> float:
    """The part of scores (H, T, T) that does not follow the distance between two positions.

    For a text that repeats one token every row has to be the next one moved by one place, up to
    a shift and a positive factor of the whole row (a softmax does not see the first; a
    temperature by length is the second). The largest deviation relative to the spread of the
    scores of its head; 0 where that is rounding.
    """
    visible = scores.nan_to_num(nan=float("-inf")).softmax(-1) > 0
    worst = 0.0
    for head, seen in zip(scores.double(), visible, strict=True):
        pairs = []
        for row in range(_EDGE, len(head) - 1):
            both = seen[row, _EDGE:-1] & seen[row + 1, _EDGE + 1 :]
            first, second = head[row, _EDGE:-1][both], head[row + 1, _EDGE + 1 :][both]
            if len(first) > 2:
                pairs.append((first - first.mean(), second - second.mean()))
        largest = float(head[seen].abs().max()) if bool(seen.any()) else 0.0
        spread = max((float(t.abs().max()) for pair in pairs for t in pair), default=0.0)
        if spread <= 1e3 * eps * largest:
            continue
        for first, second in pairs:
            norm = float((second * second).sum())
            factor = max(float((first * second).sum()) / norm, 0.0) if norm else 0.0
            apart = float((first - factor * second).abs().max())
            if apart > 1e3 * eps * largest:
                worst = max(worst, apart / spread)
    return worst


def follows_rows_alone(scores: torch.Tensor, eps: float) -> bool:
    """Whether scores (H, T, T) of a text that repeats one token are one number in each row of
    some head, and go up and down from row to row: only its queries know where they are. What
    only grows, or only falls, is a temperature by length."""
    visible = scores.nan_to_num(nan=float("-inf")).softmax(-1) > 0
    for head, seen in zip(scores.double(), visible, strict=True):
        rows = [row[s] for row, s in zip(head, seen, strict=True) if int(s.sum()) > 1]
        rounding = 1e3 * eps * max((float(row.abs().max()) for row in rows), default=0.0)
        if any(float(row.max() - row.min()) > rounding for row in rows):
            continue
        steps = [float(b[0] - a[0]) for a, b in itertools.pairwise(rows)]
        if max(steps, default=0.0) > rounding and min(steps, default=0.0) < -rounding:
            return True
    return False


def same_vectors(entering: torch.Tensor) -> tuple[int, int] | None:
    """The first two positions that are given one and the same vector, of (T, D) in which others
    differ; ``None`` where all differ, or all are the same, but for the first few (a convolution
    begins there)."""
    import torch

    scale = float(entering.abs().max())
    if constant_over_positions(entering[min(2 * _EDGE, len(entering) // 2) :]):
        return None
    order = entering.double()
    if len(order) > 128:
        return _same_in_long(order, scale)
    gaps = torch.cdist(order, order, p=float("inf"))
    gaps.fill_diagonal_(float("inf"))
    if float(gaps.min()) > 1e-7 * scale:
        return None
    index = int(gaps.argmin())
    first, second = sorted((index // len(gaps), index % len(gaps)))
    return first, second


def _same_in_long(vectors: torch.Tensor, scale: float) -> tuple[int, int] | None:
    """The same for many vectors: equal ones stand together when they are sorted by a sum."""
    import torch

    weights = torch.linspace(1, 2, vectors.shape[1], dtype=vectors.dtype)
    ordered = (vectors * weights).sum(-1).argsort()
    apart = (vectors[ordered[1:]] - vectors[ordered[:-1]]).abs().amax(-1)
    if float(apart.min()) > 1e-7 * scale:
        return None
    index = int(apart.argmin())
    first, second = sorted((int(ordered[index]), int(ordered[index + 1])))
    return first, second


def constant_over_positions(entering: torch.Tensor) -> bool:
    """Whether (T, D) says nothing about positions."""
    scale = float(entering.abs().max())
    return float((entering - entering[:1]).abs().max()) <= 1e-5 * scale
