"""Which tables a forward reads: the one that token ids index, and those that bound the length.

One forward under a dispatch mode shows every table lookup and every slice of a tensor that
existed before the forward. Nothing here reads names: a table is recognised by how it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from collections.abc import Mapping

_LOOKUPS = {
    torch.ops.aten.embedding.default: (0, 1),
    torch.ops.aten.index_select.default: (0, 2),
}
_SLICE = torch.ops.aten.slice.Tensor
_INDEX = torch.ops.aten.index.Tensor
# What a one-hot encoding is made of.
_SCATTERS = {torch.ops.aten.scatter.value, torch.ops.aten.scatter_.value}


class TableReader(TorchDispatchMode):
    """Records lookups by ``ids`` (B, T) and by positions while a model runs.

    ``vocabulary`` is the number of rows of the smallest table that the ids index directly, and
    ``limits`` the lengths that tables read by consecutive positions allow; ``None`` and empty
    where nothing of the kind was seen.
    """

    def __init__(self, model: torch.nn.Module, ids: torch.Tensor | None, length: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ids = ids
        self.length = length
        self.vocabulary: int | None = None
        self.limits: list[int] = []
        self._own = _storages(model)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in _LOOKUPS:
            table, index = (args[i] for i in _LOOKUPS[func])
            self._lookup(table, index)
        elif func in _SCATTERS and self.ids is not None and _same_values(args[2], self.ids):
            self._found(args[0].shape[args[1]])
        elif func is _INDEX and len(args[1]) == 1 and args[1][0] is not None:
            self._lookup(args[0], args[1][0])
        elif func is _SLICE and isinstance(args[0], torch.Tensor):
            self._sliced(args[0], *args[1:])
        return func(*args, **(kwargs or {}))

    def _lookup(self, table: torch.Tensor, index: torch.Tensor) -> None:
        if not isinstance(index, torch.Tensor) or index.dtype not in (torch.int64, torch.int32):
            return
        if self.ids is not None and _same_values(index, self.ids):
            self._found(table.shape[0])
            return
        first = _consecutive(index, self.length)
        if first is not None and table.shape[0] > 1:
            self.limits.append(table.shape[0] - first)

    def _found(self, rows: int) -> None:
        self.vocabulary = rows if self.vocabulary is None else min(rows, self.vocabulary)

    def _sliced(
        self,
        table: torch.Tensor,
        dim: int = 0,
        start: int | None = None,
        end: int | None = None,
        step: int = 1,
    ) -> None:
        begin, rows = start or 0, table.shape[dim]
        if (
            step == 1
            and end is not None
            and end - begin == self.length
            and rows > self.length
            and table.untyped_storage().data_ptr() in self._own
        ):
            self.limits.append(rows - begin)


def _storages(model: torch.nn.Module) -> set[int]:
    """Storages that the model owns: parameters, buffers, plain tensor attributes."""
    plain = (v for m in model.modules() for v in vars(m).values() if isinstance(v, torch.Tensor))
    owned = [*model.parameters(), *model.buffers(), *plain]
    return {t.untyped_storage().data_ptr() for t in owned if not t.is_meta and t.numel()}


def _same_values(index: torch.Tensor, ids: torch.Tensor) -> bool:
    if index.numel() != ids.numel():
        return False
    if index.shape == ids.T.shape and index.shape != ids.shape:
        index = index.T
    return bool((index.reshape(-1) == ids.reshape(-1)).all())


def _consecutive(index: torch.Tensor, length: int) -> int | None:
    """The first of ``length`` consecutive numbers along the last axis, else ``None``.

    Padding to a multiple may follow them.
    """
    if index.dim() == 0 or index.shape[-1] < length or index.numel() == 0:
        return None
    rows = index.reshape(-1, index.shape[-1])[:, :length]
    run = rows[0, 0] + torch.arange(length, device=rows.device)
    if bool((rows == run).all()):
        return int(rows[0, 0])
    return None
