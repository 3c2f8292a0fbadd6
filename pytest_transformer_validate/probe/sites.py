"""A site of attention: weights as they meet the values, and how they stood when they were made.

Axes: H heads, T queries, S keys, N batches of a product, D width. One text in the batch.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pytest_transformer_validate.probe.marks import AGAIN

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.marks import Mark


@dataclass(frozen=True)
class Site:
    """One call of attention over one text.

    ``weights`` (H, T, S) are those that meet the ``values`` (N, S, D). ``normal`` says how they
    were made: ``softmax``, ``exponential`` (divided by hand), ``none`` (scores as they are), or
    ``unknown`` (returned by the model). ``more`` is the number of columns that the softmax had
    beside the keys (sinks), ``changed`` what was done between softmax and values. ``scale`` is the
    factor between query times key and the softmax; ``None`` where it cannot be told, or is
    ``learned``. ``projected`` says that parameters made both queries and keys, given as (N, T, D)
    and (N, S, D).
    """

    module: str
    weights: torch.Tensor
    normal: str
    more: int = 0
    changed: tuple[str, ...] = ()
    values: torch.Tensor | None = None
    scale: float | None = None
    learned: bool = False
    projected: bool = False
    query: torch.Tensor | None = None
    key: torch.Tensor | None = None
    scores: torch.Tensor | None = None

    @property
    def silent(self) -> torch.Tensor | None:
        """(S,): the keys whose value is zero in every head."""
        return None if self.values is None else self.values.abs().amax((0, 2)) == 0

    @property
    def twice(self) -> bool:
        """Whether the weights of one softmax were, masked or as they stood, the scores of
        another."""
        return AGAIN in self.changed and set(self.changed) <= {AGAIN, "masked"}

    @property
    def remade(self) -> bool:
        """Whether a gate, a mixture or another function made the weights once more."""
        return "changed" in self.changed or (AGAIN in self.changed and not self.twice)

    @property
    def shape(self) -> tuple[int, int]:
        """(T, S)."""
        return int(self.weights.shape[1]), int(self.weights.shape[2])


def table(mark: Mark, turn: Any, lengths: set[int]) -> tuple[torch.Tensor, int] | None:
    """(H, T, S) in the order in which the weights were computed, and how many columns the
    product with the values leaves out; ``None`` where there is one query, or one key."""
    given, places = (turn(t) for t in (mark.tensor, mark.places()))
    if given.dim() == 2:
        given, places = given[None], places[None]
    if given.shape[1] < 2 or given.shape[2] < 2 or places.unique().numel() < 4:
        return None
    shape = mark.shape or mark.tensor.shape
    along = torch.unravel_index(places, shape)
    keys = _varies(along, (0, 0, slice(None)), shape, set(), lengths)
    queries = _varies(along, (0, slice(None), 0), shape, {keys}, lengths)
    if keys is None or queries is None:
        return None
    whole = torch.zeros(shape, dtype=given.dtype, device=given.device)
    whole[along] = given
    kept = {axis: along[axis].unique() for axis in (queries, keys)}
    whole = functools.reduce(lambda t, axis: t.index_select(axis, kept[axis]), kept, whole)
    table = whole.movedim((queries, keys), (-2, -1)).reshape(-1, *(len(k) for k in kept.values()))
    return table, int(shape[keys] - len(kept[keys]))


def _varies(
    along: tuple[torch.Tensor, ...],
    line: tuple[Any, ...],
    shape: torch.Size,
    without: set[int | None],
    lengths: set[int],
) -> int | None:
    """The axis along which a line of places runs: one as long as a text before any other."""
    axes = [
        axis
        for axis, places in enumerate(along)
        if axis not in without and places[line].unique().numel() > 1
    ]
    return min(axes, key=lambda axis: (shape[axis] not in lengths, -axis), default=None)
