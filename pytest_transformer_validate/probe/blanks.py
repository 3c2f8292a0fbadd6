"""What a checkpoint has to restore in a fresh instance, blanked before it is loaded."""

from __future__ import annotations

import torch
from torch.nn.parameter import is_lazy

from pytest_transformer_validate.probe.watch import same


def blank(model: torch.nn.Module) -> None:
    """Fill what a checkpoint has to restore with NaN."""
    with torch.no_grad():
        for tensor in _restorable(model).values():
            tensor.fill_(float("nan"))


def blanks(model: torch.nn.Module) -> list[str]:
    """Names of tensors that are still blank."""
    found = _restorable(model).items()
    return [n for n, t in found if bool(t[(0,) * t.dim()].isnan()) and bool(t.isnan().all())]


def _restorable(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters, each by its first name, and persistent buffers of floating point numbers."""
    found: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        left_out = module._non_persistent_buffers_set
        held = [(k, t) for k, t in module._parameters.items() if id(t) not in seen]
        seen.update(id(parameter) for _, parameter in held)
        held += [(k, t) for k, t in module._buffers.items() if k not in left_out]
        for key, tensor in held:
            plain = tensor is not None and not is_lazy(tensor) and tensor.is_floating_point()
            if plain and tensor.numel():
                found[f"{name}.{key}" if name else key] = tensor.detach()
    return found


def hold_the_same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Whether two models hold the same numbers, as far as a checkpoint has to restore them."""
    mine, theirs = _restorable(one), _restorable(other)
    return mine.keys() == theirs.keys() and all(
        same(tensor, theirs[name]) for name, tensor in mine.items()
    )
