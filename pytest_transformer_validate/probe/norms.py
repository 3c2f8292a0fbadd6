"""What normalisations of the model's own do to positions, and to the size of what they are given.

Axes: B rows, T positions, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from pytest_transformer_validate.probe.passes import Passes, remembered

if TYPE_CHECKING:
    from collections.abc import Callable

_TIMES = 3.0  # what is given is made so many times as large
_GROWS = 8.0  # by the square of it: 9 times, less what a small constant takes away
_SHRINKS = 0.4  # by its inverse


@dataclass
class Found:
    """Modules in which positions depend on each other, and those called a norm whose output grows
    with the square of the input or shrinks with it, with the factor for three times the input."""

    mixing: list[str] = field(default_factory=list)
    sized: dict[str, float] = field(default_factory=dict)


class Norms(Passes):
    """Passes over modules without parts whose parameters are vectors or numbers; torch's are left
    out, which say over which axes they go."""

    @remembered
    def odd(self) -> Found:
        """One forward, in which each is asked again with other inputs than it was given.

        What is looked at for ``mixing`` are those whose output is the same for three times the
        input.
        """
        found = Found()
        probe = self.probe
        with probe.running("norms") as subject:
            handles = [
                module.register_forward_hook(_looker(name, found))
                for name, module in subject.model.named_modules()
                if name and _vectors_only(module)
            ]
            try:
                if handles:
                    subject.call(probe.batch(min(2, subject.most_rows), subject.sizes[1]), {})
            finally:
                for handle in handles:
                    handle.remove()
        return found


def _looker(name: str, found: Found) -> Callable[[torch.nn.Module, Any, Any], None]:
    seen = False

    def look(module: torch.nn.Module, args: Any, output: Any) -> None:
        nonlocal seen
        if seen or not _fits(module, args, output):
            return
        seen = True
        given = args[0]
        size = float(output.abs().max())
        larger = module.forward(_TIMES * given)
        if float((larger - output).abs().max()) > 1e-3 * size:
            factor = _factor(module, given, output, larger)
            if "norm" in type(module).__name__.lower() and not _SHRINKS < factor < _GROWS:
                found.sized[name] = factor
        elif _mixes(module, given, output, size):
            found.mixing.append(name)

    return look


def _vectors_only(module: torch.nn.Module) -> bool:
    """Whether a module of the model's own has no parts, and no parameters but vectors."""
    parameters = list(module.parameters())
    own = not type(module).__module__.startswith("torch.")
    leaf = next(module.children(), None) is None
    return own and leaf and bool(parameters) and all(p.dim() < 2 for p in parameters)


def _fits(module: torch.nn.Module, args: Any, output: Any) -> bool:
    """Whether a call maps (B, T, D), or (B, D, T), to the same shape, by vectors of length D."""
    given = args[0] if args else None
    if not isinstance(given, torch.Tensor) or not isinstance(output, torch.Tensor):
        return False
    if given.dim() != 3 or given.shape != output.shape or len(args) > 1:
        return False
    return given.shape[1:].count(_width(module)) == 1 and min(given.shape[1:]) >= 3


def _width(module: torch.nn.Module) -> int:
    return max(parameter.numel() for parameter in module.parameters())


def _factor(
    module: torch.nn.Module, given: torch.Tensor, output: torch.Tensor, larger: torch.Tensor
) -> float:
    """How many times as large the output is, its bias aside; 1 where that is no number."""
    bias = module.forward(torch.zeros_like(given))
    before, after = (float((x - bias).abs().max()) for x in (output, larger))
    factor = after / before if before > 0 else 1.0
    return factor if 0 < factor < float("inf") else 1.0


def _mixes(
    module: torch.nn.Module, given: torch.Tensor, output: torch.Tensor, size: float
) -> bool:
    """Whether a position of the output changes with the input at another one."""
    axis = 1 if given.shape[2] == _width(module) else 2
    last = given.shape[axis] - 1
    other = given.clone()
    other.select(axis, last).copy_(given.select(axis, last).flip(-1) * 2 + 1)
    moved = (module.forward(other) - output).narrow(axis, 0, last)
    return float(moved.abs().max()) > 1e-3 * size
