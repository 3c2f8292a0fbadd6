"""Numbers about gradients: which parameters get none, and how the sizes are spread."""

from __future__ import annotations

import itertools
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
    """The longest run of outputs of a weight without any gradient, as (first, one past the last);
    the first one where all runs are equally long and far from each other, as heads are.

    ``None`` for less than 4 in a row, or, in all, less than a sixteenth: single dead units are
    common.
    """
    if not found.dead_rows[name].any():
        return None
    dead = found.dead_rows[name].tolist()
    runs, start = [], 0
    for index, value in enumerate([*dead, False]):
        if not value:
            runs.append((start, index))
            start = index + 1
    runs = [run for run in runs if run[1] > run[0]]
    best = max(runs, key=lambda run: run[1] - run[0])
    size = best[1] - best[0]
    steps = {later[0] - one[0] for one, later in itertools.pairwise(runs)}
    whole = size * len(runs) if len(steps) == 1 and sum(dead) == size * len(runs) else size
    return best if size >= 4 and len(dead) / 16 <= whole < len(dead) else None


def without_gradient(found: Gradients, floor: float) -> set[str]:
    """Parameters that no gradient reaches, or one below ``floor`` times the median norm."""
    median, _, _ = typical(found)
    return {
        name
        for name, norm in found.norms.items()
        if norm is None or norm == 0.0 or norm < floor * median
    }
