"""The first module whose gradient is not the slope of what it computes.

Each call of a module is repeated with its own inputs: the gradient of a random projection of its
results, along a random direction, is held against differences over two steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pytest_transformer_validate.probe.hooked import put
from pytest_transformer_validate.probe.trace import ROOT
from pytest_transformer_validate.subject.outputs import floating

if TYPE_CHECKING:
    from collections.abc import Callable

_STEPS = (1e-3, 1e-2)  # of the size of an input
_SAME = 1e-2


class _Found(Exception):
    """The module that was looked for."""


def first_wrong(model: torch.nn.Module, run: Callable[[], Any]) -> str | None:
    """The name of the first module, in the order in which calls end; ``run`` calls the model with
    gradients on."""
    handles: list[Any] = []
    busy = False

    def after(name: str) -> Callable[..., None]:
        def hook(module: Any, args: Any, kwargs: Any, _output: Any) -> None:
            nonlocal busy
            if busy:
                return
            busy = True
            try:
                wrong = _wrong(module, args, kwargs)
            finally:
                busy = False
            if wrong:
                raise _Found(name)

        return hook

    for name, module in model.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):
            handles.append(module.register_forward_hook(after(name or ROOT), with_kwargs=True))
    try:
        run()
    except _Found as found:
        return str(found)
    finally:
        for handle in handles:
            handle.remove()
    return None


def _wrong(module: torch.nn.Module, args: Any, kwargs: Any) -> bool:
    inputs = floating((args, kwargs))
    if not inputs:
        return False
    generator = torch.Generator().manual_seed(len(inputs))

    def draw(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)

    # a direction for each input; a mask (0 and very large numbers) stays as it is
    ways = [draw(t) * _size(t) for t in inputs]
    weights: list[torch.Tensor] = []

    def projected(step: float, leaves: list[torch.Tensor] | None = None) -> torch.Tensor:
        given = leaves or [t.detach() + step * w for t, w in zip(inputs, ways, strict=True)]
        values = [t * 1 for t in given]
        new_args, new_kwargs = put((args, kwargs), inputs, values)
        results = floating(module.forward(*new_args, **new_kwargs))
        if not weights:
            weights.extend(draw(t) for t in results)
        products = zip(results, weights, strict=True)
        return torch.stack([(t * w).sum() for t, w in products]).sum()

    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    try:
        value = projected(0, leaves)
        if not value.requires_grad:
            return False
        gradients = torch.autograd.grad(value, leaves, allow_unused=True)
        with torch.no_grad():
            small, large = (
                float(projected(step) - projected(-step)) / (2 * step) for step in _STEPS
            )
    except Exception:  # noqa: BLE001 - what cannot be called by itself is not asked
        return False
    slope = sum(
        float((g * w).sum()) for g, w in zip(gradients, ways, strict=True) if g is not None
    )
    size = max(abs(slope), abs(small))
    return abs(small - large) <= _SAME * size < abs(slope - small)


def _size(tensor: torch.Tensor) -> float:
    numbers = tensor.detach()[tensor.isfinite()]
    largest = float(numbers.abs().max()) if numbers.numel() else 0.0
    if not largest or largest > 1e4 or not bool(tensor.isfinite().all()):
        return 0.0
    return float(numbers.square().mean().sqrt())
