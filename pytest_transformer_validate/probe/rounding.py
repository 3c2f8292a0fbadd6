"""Operations whose precision is watched, or changed: modes to run a forward in."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Self

import torch
from torch.overrides import TorchFunctionMode

from pytest_transformer_validate.subject.dispatch import Operations, operation
from pytest_transformer_validate.subject.outputs import floating

if TYPE_CHECKING:
    from collections.abc import Iterator

_aten = torch.ops.aten
_FLOAT32_EPS = torch.finfo(torch.float32).eps
_CASTS = {
    torch.Tensor.float, torch.Tensor.to, torch.softmax, torch.Tensor.softmax,
    torch.nn.functional.softmax,
}  # fmt: skip
_RMS_NORM = {torch.rms_norm, torch.nn.functional.rms_norm}
_ATTENTION = _aten._scaled_dot_product_flash_attention_for_cpu.default
_CHOICES = {
    _aten.topk.default,
    _aten.sort.default,
    _aten.sort.stable,
    _aten.argmax.default,
    _aten.max.dim,
}
_ROUNDS = {_aten.round, _aten.round_, _aten.floor, _aten.sign, _aten.ceil, _aten.trunc}
_POWERS = {_aten.pow.Tensor_Scalar, _aten.square.default}
_HALVES = {torch.bfloat16, torch.float16}
_PRODUCTS = {_aten.mm.default, _aten.addmm.default, _aten.bmm.default, _aten.baddbmm.default}
_SOFTMAX = {_aten._softmax.default, _aten._log_softmax.default}


class _InDouble(TorchFunctionMode):
    """Gives RMSNorm without an eps that of float32, as every dtype but float64 has it: with
    another one, small vectors are another model's. ``throughout`` leaves what is in float64 there
    where it is cast to float32."""

    def __init__(self, throughout: bool) -> None:
        super().__init__()
        self.throughout = throughout

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named = dict(kwargs or {})
        if func in _RMS_NORM and len(args) < 4:
            named["eps"] = named.get("eps") or _FLOAT32_EPS
        elif func in _RMS_NORM and args[3] is None:
            args = (*args[:3], _FLOAT32_EPS)
        elif self.throughout and args and func in _CASTS and args[0].dtype is torch.float64:
            if func is torch.Tensor.float:
                return args[0]
            args = tuple(torch.float64 if a is torch.float32 else a for a in args)
            named = {k: torch.float64 if a is torch.float32 else a for k, a in named.items()}
        return func(*args, **named)


class MaskDtype(Operations):
    """Gives attention masks the dtype of the queries: with a float32 mask, attention in float64
    silently reads wrong numbers from 16 tokens on (torch 2.13, CPU). And see ``_InDouble``."""

    def __init__(self, throughout: bool = False) -> None:
        super().__init__()
        self.throughout = throughout

    def __enter__(self) -> Self:
        super().__enter__()
        self._uncompiled.enter_context(_InDouble(self.throughout))
        return self

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named = dict(kwargs or {})
        mask = named.get("attn_mask")
        if func is _ATTENTION and isinstance(mask, torch.Tensor) and mask.is_floating_point():
            named["attn_mask"] = mask.to(args[0].dtype)
        return func(*args, **named)


class TraitReader(Operations):
    """Counts operations, and sees roundings and numbers in half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.rounds = self.narrows = False
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.count += 1
        if isinstance(result, torch.Tensor) and result.is_floating_point():
            self.rounds |= operation(func) in _ROUNDS
            self.narrows |= result.dtype in _HALVES
        return result


class Squares(Operations):
    """The largest finite power or product of a tensor with itself."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        square = func in _POWERS or (func is _aten.mul.Tensor and args[0] is args[1])
        if square and result.is_floating_point() and result.numel():
            largest = float(result.abs().nan_to_num(0.0, 0.0, 0.0).max())
            self.largest = max(self.largest, largest)
        return result


class _Softmaxes(Operations):
    """Rounds what goes into a softmax and what comes out, and what a choice is made by; and
    ``products`` of matrices, for code whose weights are in no module of their own."""

    def __init__(self, dtype: torch.dtype, *, products: bool) -> None:
        super().__init__()
        self.dtype = dtype
        self.products = products

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _CHOICES:
            args = (args[0].to(self.dtype).to(args[0].dtype), *args[1:])
        if func in _SOFTMAX:
            args = (args[0].to(self.dtype).to(args[0].dtype), *args[1:])
            return func(*args, **(kwargs or {})).to(self.dtype).to(args[0].dtype)
        result = func(*args, **(kwargs or {}))
        if self.products and func in _PRODUCTS:
            return result.to(self.dtype).to(result.dtype)
        return result


def _functional(model: torch.nn.Module) -> bool:
    """Whether no module but the model, or containers of parameters, holds any weight."""
    kinds = torch.nn.ParameterList | torch.nn.ParameterDict
    inner = (m for m in model.modules() if m is not model and not isinstance(m, kinds))
    return all(next(m.parameters(recurse=False), None) is None for m in inner)


@contextlib.contextmanager
def rounding(model: torch.nn.Module, dtype: torch.dtype) -> Iterator[list[float]]:
    """Round the floating point outputs of every module; yields their largest magnitudes."""
    sizes: list[float] = []

    def leave(_module: Any, _args: Any, output: Any) -> None:
        for tensor in floating(output):
            if tensor.numel() and tensor.dtype is torch.float32 and tensor.dim():
                finite = tensor.nan_to_num(0.0, 0.0, 0.0)
                # The smallest number of float32, as a mask has it, is no magnitude.
                size = float(finite.abs().max())
                sizes.append(size if size < 1e30 else 0.0)
                if all(tensor.stride()) or tensor.numel() == 1:
                    inference = tensor.is_inference()  # off, the mode records gradients again
                    with torch.inference_mode() if inference else contextlib.nullcontext():
                        tensor.copy_(tensor.to(dtype))

    handles = [
        module.register_forward_hook(leave)
        for module in model.modules()
        if not isinstance(module, torch.jit.ScriptModule)
    ]
    try:
        with _Softmaxes(dtype, products=_functional(model)):
            yield sizes
    finally:
        for handle in handles:
            handle.remove()
