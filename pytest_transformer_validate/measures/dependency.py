"""Numbers about who depends on whom: positions on later positions, rows on other rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_transformer_validate.measures.measurement import Measurement

if TYPE_CHECKING:
    import torch

    from pytest_transformer_validate.probe.positions import Swaps
    from pytest_transformer_validate.probe.rows import RowSwaps


@dataclass(frozen=True, kw_only=True)
class Causality(Measurement):
    """How far outputs move when later tokens change.

    ``value`` is the largest forbidden movement of a logit; ``gradient`` the largest forbidden
    entry of the dependency matrix and ``gradient_limit`` what it was held against, ``None``
    where no gradient could be read. ``position`` moved when token ``replaced`` changed;
    ``ahead`` are the distances over which anything looks ahead; ``experiments`` how many
    replacements were tried and ``context`` the largest allowed movement (0: nothing was shown).
    ``effects[k][s]`` is how far the output at position ``s`` moved when token ``tried[k]`` was
    replaced: at most 32 x 32.
    """

    gradient: float | None = None
    gradient_limit: float | None = None
    position: int | None = None
    replaced: int | None = None
    ahead: tuple[int, ...] = ()
    looking: int = 0
    length: int = 0
    experiments: int = 0
    context: float = 0.0
    tried: tuple[int, ...] = ()
    effects: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True, kw_only=True)
class BatchIndependence(Measurement):
    """How far a row moves when the others change.

    ``value`` is the largest movement of a logit in a row that was kept; ``gradient`` the largest
    gradient of a row's output at another row's input; ``row`` and ``source`` the rows concerned;
    ``own_effect`` how far the changed rows moved (0: nothing was shown).
    """

    gradient: float | None = None
    gradient_limit: float | None = None
    row: int | None = None
    source: int | None = None
    rows: int = 0
    own_effect: float = 0.0


@dataclass(frozen=True)
class Leak:
    """The worst forbidden entry of an effect matrix, and the pattern of all over the limit."""

    value: float
    experiment: int
    position: int
    replaced: int
    ahead: tuple[int, ...]
    looking: int


def worst_leak(swaps: Swaps, limit: float) -> Leak:
    """The largest effect at a position before the first replaced token.

    ``ahead`` is read from the experiments that replaced one token only.
    """
    worst, place = 0.0, (0, 0)
    ahead: set[int] = set()
    looking: set[int] = set()
    effects = swaps.effect.tolist()
    for row, start in enumerate(swaps.start):
        for position, effect in enumerate(effects[row][:start]):
            if effect > worst:
                worst, place = effect, (row, position)
            if effect > limit and not swaps.suffix[row]:
                ahead.add(start - position)
                looking.add(position)
    row, position = place
    return Leak(worst, row, position, swaps.start[row], tuple(sorted(ahead)), len(looking))


def effects(swaps: Swaps, most: int = 32) -> tuple[tuple[int, ...], tuple[tuple[float, ...], ...]]:
    """Who depends on whom: the tokens that were replaced alone, and a row for each of them."""
    alone = sorted((start, row) for row, start in enumerate(swaps.start) if not swaps.suffix[row])
    rows = swaps.effect[:, :most].tolist()
    shown = alone[:most]
    return tuple(token for token, _ in shown), tuple(tuple(rows[row]) for _, row in shown)


def leaking(swaps: Swaps, limit: float) -> list[int]:
    """Experiments in which an earlier position moves by more than ``limit``, the worst first."""
    moved = {row: float(swaps.effect[row, :start].max()) for row, start in enumerate(swaps.start)}
    over = [row for row, effect in moved.items() if effect > limit]
    return sorted(over, key=lambda row: -moved[row])


def context_effect(swaps: Swaps) -> float:
    """The largest movement at a position after the one replaced token: what is allowed, and
    needed to show that the probe can see anything."""
    effects = [
        float(swaps.effect[row, start + 1 :].max())
        for row, start in enumerate(swaps.start)
        if not swaps.suffix[row] and start + 1 < swaps.effect.shape[1]
    ]
    return max(effects, default=0.0)


def upper_leak(matrix: torch.Tensor) -> tuple[float, int, int]:
    """The largest entry above the diagonal of a dependency matrix, with its row and column."""
    upper = matrix.triu(1)
    index = int(upper.argmax())
    return float(upper.max()), index // matrix.shape[1], index % matrix.shape[1]


def other_row_leak(matrix: torch.Tensor) -> tuple[float, int, int]:
    """The largest entry off the diagonal of a (B, B) matrix, with its row and column."""
    others = matrix.clone()
    others.fill_diagonal_(0)
    index = int(others.argmax())
    return float(others.max()), index // matrix.shape[1], index % matrix.shape[1]


def worst_row(swaps: RowSwaps) -> tuple[float, int]:
    """The largest movement of a kept row, and its index in ``kept``."""
    value = max(swaps.effect)
    return value, swaps.effect.index(value)
