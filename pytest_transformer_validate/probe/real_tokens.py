"""Which entries of a tensor belong to real tokens, wherever rows and positions stand.

Axes: B batch, T positions. ``keep`` (B, T) is True at real tokens.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Iterator


def real_entries(tensor: torch.Tensor, keep: torch.Tensor) -> torch.Tensor | None:
    """Which entries of a tensor belong to real tokens only: every axis of positions counts.
    ``None`` where no axis of rows is found."""
    rows, length = keep.shape
    axis = next((i for i, size in enumerate(tensor.shape) if size == rows), None)
    if axis is None:
        if not tensor.dim() or not tensor.shape[0] or tensor.shape[0] % rows:
            return None
        real = real_entries(tensor.unflatten(0, (rows, -1)), keep)
        return (
            None
            if real is None
            else real.expand(tensor.unflatten(0, (rows, -1)).shape).flatten(0, 1)
        )
    real = torch.ones_like(tensor, dtype=torch.bool)
    for position, size in enumerate(tensor.shape):
        if size == length and position != axis:
            shape = [1] * tensor.dim()
            shape[axis], shape[position] = rows, length
            own = keep if axis < position else keep.T
            real = real & own.reshape(shape)
    return real


def narrowed(
    tensor: torch.Tensor, rows: int, chosen: list[int], size: int, start: int, length: int
) -> torch.Tensor:
    """The part of a tensor that belongs to some rows and to ``length`` positions."""
    axis = next((i for i, n in enumerate(tensor.shape) if n == rows), None)
    folded = axis is None and tensor.dim() > 0 and tensor.shape[0] not in (0, size)
    if folded and tensor.shape[0] % rows == 0:
        parts = tensor.unflatten(0, (rows, -1))
        return narrowed(parts, rows, chosen, size, start, length).flatten(0, 1)
    if axis is not None:
        tensor = tensor.index_select(axis, torch.tensor(chosen, device=tensor.device))
    for position, n in enumerate(tensor.shape):
        if n == size and position != axis:
            tensor = tensor.narrow(position, start, length)
    return tensor


@contextlib.contextmanager
def blanked(keep: torch.Tensor | None) -> Iterator[None]:
    """While inside, what a convolution reads at padding is zero, as it is where a text ends.

    A convolution has no mask; some healthy encoders let it read over the edge. What still leaks
    when it reads zeros there leaks elsewhere. ``None`` changes nothing that is read; either way
    torch's own encoder layers take the path on which modes see them.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with contextlib.nullcontext() if keep is None else _Blanked(keep):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class _Blanked(TorchFunctionMode):
    def __init__(self, keep: torch.Tensor) -> None:
        super().__init__()
        self.keep = keep

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _NEIGHBOURS and isinstance(args[0], torch.Tensor):
            real = real_entries(args[0], self.keep)
            if real is not None:
                args = (args[0].masked_fill(~real, 0), *args[1:])
        return func(*args, **(kwargs or {}))


_NEIGHBOURS = {
    torch.conv1d,
    torch.conv2d,
    nn.functional.conv1d,
    nn.functional.conv2d,
    nn.functional.unfold,
    nn.functional.pad,
    torch._C._nn.pad,
}


def real_positions(keep: torch.Tensor) -> torch.Tensor:
    """Positions (B, T) of the real tokens, 0 at padding in front."""
    return (keep.cumsum(1) - 1).clamp(min=0)
