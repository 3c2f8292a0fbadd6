"""Numbers about shapes and values of the logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_transformer_validate.measures.measurement import Measurement

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class ShapeOf(Measurement):
    """The batch that was given and the shape of the logits that came back."""

    rows: int
    length: int
    logits: tuple[int, ...]
    expected: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Stability(Measurement):
    """Values of the logits over random inputs.

    ``value`` is the largest finite magnitude. ``between_inputs``, ``between_positions`` and
    ``between_outputs`` are the largest differences between rows, between positions of a row and
    between outputs of a position, each relative to ``value``; ``bad`` names inputs that gave NaN
    or infinity.
    """

    mean: float = 0.0
    std: float = 0.0
    smallest: float = 0.0
    largest: float = 0.0
    between_inputs: float = 0.0
    between_positions: float | None = None
    between_outputs: float | None = None
    bad: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Size(Measurement):
    """What was loaded: number of parameters, of buffers' elements, and the kind of output."""

    parameters: int
    buffers: int
    output: str


def spread(
    logits: torch.Tensor,
) -> tuple[float, float, float, float | None, float | None]:
    """Largest magnitude, and relative differences between rows, positions and outputs.

    ``logits`` (B, T, V) or (B, K); infinities are left out; ``None`` where there are no
    positions, or one output only.
    """
    finite = logits.masked_fill(~logits.isfinite(), 0).double()
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    scale = largest or 1.0
    rows = float((finite - finite[:1]).abs().max()) / scale
    outputs = None
    if finite.shape[-1] > 1:
        outputs = float((finite.amax(-1) - finite.amin(-1)).max()) / scale
    positions = None
    if finite.dim() == 3 and finite.shape[1] > 1:
        positions = float((finite - finite[:, :1]).abs().max()) / scale
    return largest, float(finite.std()), rows, positions, outputs
