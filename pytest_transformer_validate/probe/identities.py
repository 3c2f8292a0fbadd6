"""How much of what a layer is given, and of what the attention in it gives, is in its output."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

MOVED = 6  # rows, of which all but the first are moved where a layer begins
INSIDE = 2  # rows more, which are moved behind its attention
_SLIGHT = 0.1  # of the usual size: such vectors are left out
_STEP = 1e-2  # of the input's size: small enough for a slope, large enough for float32


@dataclass(frozen=True)
class Identity:
    """How much of a layer's input is in its output: ``share`` is the mean slope of an output
    number in its own input number, ``relative`` the same with both scaled to size one,
    ``spread`` how uncertain they are (from feature to feature), ``positive`` the part of the
    features with a positive slope; ``handed`` says that the layer was given just what the one
    before it in its list gave, so that nothing is added around it. ``inner`` is the same for what
    a part of the layer, in which attention is, gives."""

    layer: str
    share: float
    relative: float
    spread: float
    positive: float
    handed: bool = False
    inner: Identity | None = None


class Moves:
    """What is done around layers, and parts of them, in a forward of equal rows.

    Row 0 stays as it is. Where a layer begins, the rows up to ``MOVED`` are moved a little at
    random; behind its first part with ``attention``, or behind the one of ``projections`` that is
    given just what that gave, the rows after them are. Both say in which layer a part stands.
    Each layer's output is put back to that of row 0. Rows may stand behind the length, (T, B, D).
    """

    def __init__(
        self,
        groups: Sequence[Sequence[str]],
        attention: Mapping[str, str],
        projections: Mapping[str, str],
        rows: int,
        seed: Callable[[str], int],
    ) -> None:
        self.found: dict[str, Identity] = {}
        self._attention, self._rows, self._seed = attention, rows, seed
        self._parts = {**projections, **attention}
        self._before = {b: a for group in groups for a, b in itertools.pairwise(group)}
        self._given: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._axes: dict[str, int] = {}  # of the rows
        self._inner: dict[str, tuple[str, torch.Tensor, torch.Tensor]] = {}
        self._ends: dict[str, torch.Tensor] = {}  # what the last part of a layer gave
        self._follows: set[str] = set()
        self._gave: dict[str, torch.Tensor] = {}
        self._handed: set[str] = set()

    def enter(self, name: str, given: list[torch.Tensor]) -> list[torch.Tensor] | None:
        """The moved input of a layer."""
        if name in self._parts:
            end = self._ends.get(self._parts[name])
            if end is not None and any(tensor is end for tensor in given):
                self._follows.add(name)
            return None
        axis = _axis(given[0], self._rows) if given else None
        if axis is None:
            return None
        x = given[0].transpose(0, axis)
        previous = self._gave.get(self._before.get(name, ""))
        if previous is not None and torch.equal(previous, x[:1]):
            self._handed.add(name)
        step = _signs(x, slice(1, MOVED), self._seed(name))
        self._given[name], self._axes[name] = (x, step), axis
        return [(x + step).transpose(0, axis), *given[1:]]

    def leave(self, name: str, outputs: list[torch.Tensor]) -> list[torch.Tensor] | None:
        """The moved output of a part; that of a layer without what was moved."""
        if name in self._parts:
            return self._leave_part(name, outputs)
        if name not in self._given or not outputs:
            return None
        x, step = self._given.pop(name)
        inner = self._inner.pop(name, None)
        self._ends.pop(name, None)
        axis = self._axes.pop(name)
        y = outputs[0].transpose(0, axis) if outputs[0].dim() == 3 else outputs[0]
        if y.shape != x.shape:
            return None
        if name not in self.found:
            within = None if inner is None else _identity(*inner, y)
            own = _identity(name, x, step, y)
            self.found[name] = replace(own, handed=name in self._handed, inner=within)
        self._gave[name] = y[:1]
        return [y[:1].expand_as(y).clone().transpose(0, axis), *outputs[1:]]

    def _leave_part(self, name: str, outputs: list[torch.Tensor]) -> list[torch.Tensor] | None:
        layer = self._parts[name]
        first = layer not in self._inner and name in self._attention
        if layer not in self._given or not outputs or not (first or name in self._follows):
            return None
        self._follows.discard(name)
        axis = _axis(outputs[0], self._rows)
        if axis is None or outputs[0].transpose(0, axis).shape != self._given[layer][0].shape:
            return None
        clean = outputs[0].transpose(0, axis).clone()
        clean[MOVED:] = clean[:1]
        step = _signs(clean, slice(MOVED, self._rows), self._seed(name))
        self._inner[layer] = (name, clean, step)
        self._ends[layer] = (clean + step).transpose(0, axis)
        return [self._ends[layer], *outputs[1:]]


def _axis(tensor: torch.Tensor, rows: int) -> int | None:
    """The axis of the rows: the first or the second one of three."""
    if tensor.dim() != 3 or tensor.shape[-1] <= 7:
        return None
    return next((axis for axis in (0, 1) if tensor.shape[axis] == rows), None)


def _signs(x: torch.Tensor, rows: slice, seed: int) -> torch.Tensor:
    """Random steps of one size in these rows."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.zeros_like(x)
    moved = steps[rows]
    signs = torch.randint(0, 2, moved.shape, generator=generator).mul_(2).sub_(1).to(x)
    steps[rows] = signs * (_STEP * x[0].square().mean().sqrt())
    return steps


def _identity(name: str, x: torch.Tensor, step: torch.Tensor, y: torch.Tensor) -> Identity:
    sizes = x[0].double().square().mean(-1).sqrt()
    # A norm in the layer blows up a step from a vector that is next to nothing: filled-up places.
    usual = sizes >= _SLIGHT * sizes.square().mean().sqrt()
    rows = step.flatten(1).any(1)
    step = step[rows][:, usual].double()
    moved = (y[rows] - y[:1])[:, usual].double() * step
    slopes = moved.mean((0, 1)) / step.square().mean((0, 1)).clamp_min(1e-30)
    mean, spread = float(slopes.mean()), float(slopes.std()) / len(slopes) ** 0.5
    size = float(x[0].double().square().mean().sqrt() / y[0].double().square().mean().sqrt())
    positive = float((slopes > 0).double().mean())
    return Identity(name, mean, mean * size, spread, positive)
