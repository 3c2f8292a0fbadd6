"""Another dtype for a whole model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Mapping

# What has no useful complex counterpart leaves complex tensors as they are.
_COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}


def convert(
    model: torch.nn.Module,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> torch.nn.Module:
    """``model.to(device, dtype)``, in place, that leaves complex tensors complex.

    ``Module.to`` casts them to the real ``dtype`` and so drops half of a rotary table. Here they
    become complex64 with float32, complex128 with float64, and stay as they are otherwise.
    """
    with _StayComplex():
        return model.to(device, dtype)


class _StayComplex(TorchFunctionMode):
    """``tensor.to(dtype)`` of a complex tensor gives a complex one."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func is torch.Tensor.to and args[0].is_complex():
            args = (args[0], *(_counterpart(args[0], each) for each in args[1:]))
            given = {name: _counterpart(args[0], each) for name, each in given.items()}
        return func(*args, **given)


def _counterpart(tensor: torch.Tensor, given: Any) -> Any:
    """The complex dtype for a real one; anything else unchanged."""
    if isinstance(given, torch.dtype) and not given.is_complex:
        return _COMPLEX.get(given, tensor.dtype)
    return given
