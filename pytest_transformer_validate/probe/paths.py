"""A straight path between two inputs, and the slope of one logit along it.

Axes: N points of the path, T tokens, D width, V outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pytest_transformer_validate.optional import require

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_transformer_validate.probe.vectors import Reader
    from pytest_transformer_validate.subject.subject import Subject

    Vectors = tuple[torch.Tensor, ...]
    Logit = Callable[..., torch.Tensor]

_POINTS = 32  # at which the gradient is held against differences
# Parts of the path: differences over two of them tell slopes from steps, and need digits.
_STEPS = {torch.float64: (2e-5, 2e-4)}
_LARGER = (2e-3, 2e-2)


@dataclass(frozen=True)
class Path:
    """From ``start`` to ``end``, one row each, as ``reader`` reads them.

    ``target`` is the logit that is explained: the one that moves most between the two, by
    ``change``; ``logits`` are those of both (2, V). ``baseline`` says what start is.
    """

    reader: Reader
    start: Vectors
    end: Vectors
    target: int
    change: float
    logits: torch.Tensor
    baseline: str


@dataclass(frozen=True)
class Slopes:
    """The slope of the logit along the path at N points: by gradient, and by differences over a
    small and over a larger part of the path. ``weights`` are those of a Gauss-Legendre rule, by
    which slopes add up to ``change``."""

    weights: torch.Tensor
    change: float
    gradient: torch.Tensor
    small: torch.Tensor
    large: torch.Tensor


def slopes(subject: Subject, path: Path, rows: int) -> Slopes:
    """The slope along the path, three times, ``rows`` points at a time."""
    function = logit(subject, path)
    points, weights = _rule()
    parts = points.split(rows)
    gradient = torch.cat([_gradients(path, function, few) for few in parts])
    with torch.no_grad():
        small, large = (
            torch.cat([_differences(path, function, few, step) for few in parts])
            for step in _STEPS.get(subject.dtype, _LARGER)
        )
    return Slopes(weights, path.change, gradient, small, large)


def logit(subject: Subject, path: Path) -> Logit:
    """The explained logit (N,) as a function of the vectors."""

    def read(*vectors: torch.Tensor) -> torch.Tensor:
        found = path.reader.logits(subject, vectors)[:, path.target]
        for each in vectors:  # a lookup that is not used further has a gradient of zero
            found = found + 0 * each.flatten(1).sum(1)
        return found

    return read


def _gradients(path: Path, function: Logit, points: torch.Tensor) -> torch.Tensor:
    """(N,): the slope at points of the path, by gradient."""
    vectors = _at(path, points)
    found = torch.autograd.grad(function(*vectors).sum(), vectors)
    ways = (end - start for start, end in zip(path.start, path.end, strict=True))
    slopes = [(g * w).flatten(1).double().sum(1) for g, w in zip(found, ways, strict=True)]
    return torch.stack(slopes).sum(0).cpu()


def _differences(path: Path, function: Logit, points: torch.Tensor, step: float) -> torch.Tensor:
    """(N,): the slope at points of the path, over a ``step`` to either side."""
    up, down = (function(*_at(path, points + way)) for way in (step, -step))
    return ((up - down).double() / (2 * step)).cpu()


def _rule() -> tuple[torch.Tensor, torch.Tensor]:
    """Points from 0 to 1 and their weights."""
    numpy: Any = require("numpy", extra="analysis")
    points, weights = numpy.polynomial.legendre.leggauss(_POINTS)
    return torch.as_tensor(points) / 2 + 0.5, torch.as_tensor(weights) / 2


def _at(path: Path, points: torch.Tensor) -> list[torch.Tensor]:
    """The vectors (N, ...) at points of the path, 0 its start and 1 its end."""
    vectors = []
    for a, b in zip(path.start, path.end, strict=True):
        weight = points.to(a).view(-1, *[1] * (a.dim() - 1))
        vectors.append((a + weight * (b - a)).requires_grad_())
    return vectors
