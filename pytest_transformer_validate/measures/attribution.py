"""Numbers of attributions: what they lack, and whether the gradient is the slope."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_transformer_validate.measures.measurement import Measurement
from pytest_transformer_validate.measures.tolerance import unit

if TYPE_CHECKING:
    import torch

    from pytest_transformer_validate.probe.attribution import Integrated
    from pytest_transformer_validate.probe.paths import Path, Slopes

_SAME = 1e-2  # differences over two steps that are apart by less show no step
_EQUAL = 1e-3  # the gradient, to the slope; three times what the differences are apart, if more
_BETTER = 0.5
_ONE_NUMBER = 1e-4  # how much a constant factor may vary
_ROUNDING = 64  # u of the logits that a sum of attributions may lack


@dataclass(frozen=True, kw_only=True)
class Attribution(Measurement):
    """Integrated gradients of one logit.

    ``value`` is what the attributions lack to the change of the logit, as a part of it, after
    ``steps`` steps. ``position`` and ``target`` say which logit is explained (the one that moves
    most), ``change`` by how much it moves from ``baseline`` to the text. ``tokens`` holds a
    number for each token of each sequence, by role; ``patches`` rows of numbers for an image.
    ``forbidden`` is the largest attribution that a token got which the task forbids, by what
    forbids it; ``moved`` how far attributions move, as a part of them, when all parameters are
    moved at random. ``slopes`` says, where it was asked, at how many of how many points of the
    path the gradient is not the slope of the logit, and at how many the logit has steps.
    """

    steps: int = 0
    position: int | None = None
    target: int = 0
    change: float = 0.0
    baseline: str = ""
    tokens: dict[str, list[float]] = field(default_factory=dict)
    ids: dict[str, list[int]] = field(default_factory=dict)
    patches: list[list[float]] = field(default_factory=list)
    forbidden: dict[str, float] = field(default_factory=dict)
    moved: float | None = None
    slopes: dict[str, int] = field(default_factory=dict)


def lacking(found: Integrated) -> float:
    """What attributions lack to the change of the logit, as a part of it; 0 for rounding."""
    if abs(found.missing) <= _ROUNDING * unit(found.path.logits):
        return 0.0
    return abs(found.missing / found.path.change)


def moves(path: Path) -> bool:
    """Whether the logit moves by more than rounding."""
    return abs(path.change) > _ROUNDING * unit(path.logits)


def stepped(slopes: Slopes) -> int:
    """At how many points differences over a small and a large part of the path disagree: the
    logit has steps there."""
    return int((_apart(slopes) > _SAME * _size(slopes)).sum())


def wrong(slopes: Slopes) -> int:
    """At how many points the gradient is not the slope, where a slope there is."""
    off = (slopes.gradient - slopes.small).abs()
    return int((off > (_EQUAL * _size(slopes)).maximum(3 * _apart(slopes))).sum())


def jumps(slopes: Slopes) -> bool:
    """Whether the slopes by differences do not add up to the change, and not much better than
    the gradient does: the logit jumps between the points."""
    missing, lacks = (
        abs(float((slopes.weights * each).sum()) - slopes.change)
        for each in (slopes.small, slopes.gradient)
    )
    return missing > _BETTER * lacks


def factor(slopes: Slopes) -> float | None:
    """The gradient over the slope, where that is one number all along the path."""
    size = _size(slopes)
    blur = max(_ONE_NUMBER, 3 * float((_apart(slopes) / size).max()))
    mean = float((slopes.gradient * slopes.small).sum() / slopes.small.square().sum())
    off = (slopes.gradient - mean * slopes.small).abs() / size
    return mean if float(off.max()) <= blur else None


def apart(one: Integrated, other: Integrated) -> float:
    """How far two attributions of the same text are from each other, as a part of the larger."""
    import torch

    a, b = (torch.cat([part.flatten().double() for part in each.parts]) for each in (one, other))
    larger = max(float(a.norm()), float(b.norm()))
    return float((a - b).norm()) / larger if larger else 0.0


def _apart(slopes: Slopes) -> torch.Tensor:
    return (slopes.small - slopes.large).abs()


def _size(slopes: Slopes) -> torch.Tensor:
    """The size of the slope at each point, or its mean where that is more."""
    usual = float(slopes.small.abs().mean())
    return slopes.gradient.abs().maximum(slopes.small.abs()).clamp(min=usual)
