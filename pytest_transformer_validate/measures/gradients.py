"""Numbers about gradients: which parameters get none, and how the sizes are spread."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_transformer_validate.measures.measurement import Measurement

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_transformer_validate.probe.gradients import Gradients


@dataclass(frozen=True, kw_only=True)
class GradientFlow(Measurement):
    """Gradient norms over parameters, as the largest over several batches.

    ``value`` is the number of parameters without a gradient that have no structural reason;
    ``median``, ``smallest`` and ``largest`` describe the non-zero norms, ``at_output`` is the
    largest one in the last module; ``depth`` has the largest one of every block, in the model's
    order (at most 64); ``missing`` names what fails, ``explained`` gives parameters without a
    gradient and the reason, and ``idle`` the modules that did not run.
    """

    parameters: int = 0
    frozen: int = 0
    median: float = 0.0
    smallest: float = 0.0
    largest: float = 0.0
    at_output: float = 0.0
    depth: Mapping[str, float] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    explained: Mapping[str, str] = field(default_factory=dict)
    idle: tuple[str, ...] = ()


def typical(found: Gradients) -> tuple[float, float, float]:
    """Median, smallest and largest of the non-zero gradient norms (0 where there are none)."""
    norms = sorted(norm for norm in found.norms.values() if norm)
    if not norms:
        return 0.0, 0.0, 0.0
    return statistics.median(norms), norms[0], norms[-1]


def over_depth(found: Gradients, most: int = 64) -> dict[str, float]:
    """The largest gradient norm of every block: of names that agree up to their first number."""
    largest: dict[str, float] = {}
    for name, norm in found.norms.items():
        path = name.split(".")[:-1] or [name]
        end = next((n for n, part in enumerate(path, 1) if part.isdigit()), 1)
        block = ".".join(path[:end])
        largest[block] = max(norm or 0.0, largest.get(block, 0.0))
    return dict(list(largest.items())[:most])


def dead_block(found: Gradients, name: str) -> tuple[int, int] | None:
    """The longest run of outputs of a weight without any gradient, as (first, one past the last).

    ``None`` for less than 4 in a row, or less than a sixteenth: single dead units are common.
    """
    if not found.dead_rows[name].any():
        return None
    dead = found.dead_rows[name].tolist()
    best, start = (0, 0), 0
    for index, value in enumerate([*dead, False]):
        if not value:
            best = max(best, (start, index), key=lambda run: run[1] - run[0])
            start = index + 1
    size = best[1] - best[0]
    return best if max(4, len(dead) / 16) <= size < len(dead) else None


def without_gradient(found: Gradients, floor: float) -> set[str]:
    """Parameters that no gradient reaches, or one below ``floor`` times the median norm."""
    median, _, _ = typical(found)
    return {
        name
        for name, norm in found.norms.items()
        if norm is None or norm == 0.0 or norm < floor * median
    }
