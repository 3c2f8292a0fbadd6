"""Numbers about how weights start, and which of them stand out."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.measures.measurement import Measurement

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pytest_transformer_validate.probe.weights import Rows, Spread


@dataclass(frozen=True, kw_only=True)
class Initialization(Measurement):
    """How the weights start.

    ``value`` is the cost of labels that have nothing to do with the inputs, as cross entropy over
    the logarithm of the number of outputs (1 says that the model knows nothing, as it should), and
    ``initial_loss`` both in nats; ``logits_std`` the spread of the logits. ``parameters`` is a
    table with one row a parameter: ``parameter``, ``shape``, ``mean``, ``std``, ``min``, ``max``
    and ``status`` (``ok``, ``constant``, ``frozen``, or what is wrong with it).
    """

    logits_std: float | None = None
    initial_loss: Mapping[str, float] = field(default_factory=dict)
    parameters: tuple[Mapping[str, Any], ...] = field(default_factory=tuple)


@dataclass(frozen=True)
class Outlier:
    """A matrix whose spread differs from that of the same matrix in the layers beside it."""

    parameter: str
    layer: str
    std: float
    usual: float


def table(spreads: Iterable[Spread], wrong: Mapping[str, str]) -> tuple[Mapping[str, Any], ...]:
    """One row a parameter, as the record shows it."""
    return tuple(
        {
            "parameter": s.parameter,
            "shape": list(s.shape),
            "mean": s.mean,
            "std": s.std,
            "min": s.low,
            "max": s.high,
            "status": wrong.get(s.parameter) or _plain_status(s),
        }
        for s in spreads
    )


def _plain_status(spread: Spread) -> str:
    if not spread.trains:
        return "frozen"
    return "constant" if spread.constant else "ok"


def loss_ratio(cost: float, outputs: int) -> float:
    """Cross entropy over that of a model that knows nothing."""
    return cost / math.log(outputs) if outputs > 1 else 1.0


def beside_a_guess(cost: float, outputs: int) -> dict[str, float]:
    """Cross entropy in nats, and that of a model that knows nothing."""
    return {"measured": cost, f"a guess, ln {outputs}": math.log(outputs)}


def outliers(
    layers: Sequence[Sequence[str]], spreads: Mapping[str, Spread], ratio: float
) -> list[Outlier]:
    """Matrices ``ratio`` times wider or narrower than in both layers beside theirs.

    Laws that scale with depth change little from one layer to the next. Of two layers, the one
    further from the spread of all matrices stands out.
    """
    found = []
    matrices = [s.std for s in spreads.values() if s.matrix and s.std]
    typical = statistics.median(matrices) if matrices else 0.0
    for names in layers:
        own = {n[len(names[0]) :] for n in spreads if n.startswith(f"{names[0]}.")}
        for inner in sorted(own):
            row = [spreads.get(f"{layer}{inner}") for layer in names]
            for index, spread in enumerate(row):
                if spread is None or not spread.matrix or not spread.std:
                    continue
                beside = [row[i] for i in (index - 1, index + 1) if 0 <= i < len(row)]
                stds = [b.std for b in beside if b and b.std and b.shape == spread.shape]
                if not stds or not all(_apart(spread.std, std, ratio) for std in stds):
                    continue
                if len(stds) == 1 and _apart_from(typical, spread.std) < _apart_from(
                    typical, stds[0]
                ):
                    continue
                found.append(
                    Outlier(spread.parameter, names[index], spread.std, statistics.median(stds))
                )
    return found


def _apart(a: float, b: float, ratio: float) -> bool:
    return a > ratio * b or b > ratio * a


def _apart_from(usual: float, std: float) -> float:
    return abs(math.log(std / usual)) if usual else 0.0


def block(rows: Rows, indices: Sequence[int], least: float = 1 / 16) -> tuple[int, int] | None:
    """The longest run among ``indices`` of at least four outputs and a sixteenth of all."""
    best, start = (0, 0), 0
    for place, index in enumerate(indices):
        if place == 0 or index != indices[place - 1] + 1:
            start = index
        best = max(best, (start, index + 1), key=lambda run: run[1] - run[0])
    return best if best[1] - best[0] >= max(4, least * rows.total) else None
