"""Which tables a forward reads: the one that token ids index, and those that bound the length.

One forward under a dispatch mode shows every table lookup and every slice of a tensor that
existed before the forward. Nothing here reads names: a table is recognised by how it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pytest_transformer_validate.subject.dispatch import Operations

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_aten = torch.ops.aten
# Operation -> places of the table and of the index among its arguments.
_LOOKUPS = {
    _aten.embedding.default: (0, 1),
    _aten.index_select.default: (0, 2),
    _aten._embedding_bag.default: (0, 1),
    _aten._embedding_bag_forward_only.default: (0, 1),
}
# Padding is the smallest id where ids are compared by size: ``ids > 0``.
_COMPARISONS = {_aten.eq.Scalar, _aten.ne.Scalar, _aten.gt.Scalar, _aten.le.Scalar}
# What a one-hot encoding is made of.
_SCATTERS = {_aten.scatter.value, _aten.scatter_.value}
# Tokens that a model may put in front of, or behind, those that it is given.
_ADDED = 8
# Ids that a model may take for others, as one does that folds the last of its vocabulary.
_READ_AS_OTHERS, _MOST = 3, 0.9


class TableReader(Operations):
    """Records lookups by ids, (B, T) for each role, and by positions while a model runs.

    ``rows`` are, by role, the numbers of rows of the tables that the ids index;
    ``limits`` are the lengths that the model's tables read by consecutive positions allow;
    ``compared`` the numbers that ids are compared with.
    """

    def __init__(
        self, model: torch.nn.Module, ids: Mapping[str, torch.Tensor], length: int
    ) -> None:
        super().__init__()
        self.ids = ids
        self.length = length
        self.rows: dict[str, list[int]] = {}
        self.limits: list[int] = []
        self.compared: set[int] = set()
        self._own = _storages(model)

    @property
    def vocabulary(self) -> dict[str, int]:
        """By role, the number of rows of the smallest table that the ids index."""
        return {role: min(rows) for role, rows in self.rows.items()}

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
        elif func is _aten.index.Tensor and len(args[1]) == 1 and args[1][0] is not None:
            self._lookup(args[0], args[1][0])
        elif func in _SCATTERS:
            self._found(args[2], args[0].shape[args[1]])
        elif func in _COMPARISONS:
            if self._role(args[0]) is not None:
                self.compared.add(int(args[1]))
        elif func is _aten.slice.Tensor and isinstance(args[0], torch.Tensor):
            self._sliced(args[0], *args[1:])
        return func(*args, **(kwargs or {}))

    def _lookup(self, table: torch.Tensor, index: torch.Tensor) -> None:
        if not isinstance(index, torch.Tensor) or index.dtype not in (torch.int64, torch.int32):
            return
        if self._found(index, table.shape[0]) or not self._owns(table):
            return
        run = _consecutive(index, self.length)
        if run is not None and table.shape[0] > 1:
            first, added = run
            self.limits.append(table.shape[0] - first - added)

    def _found(self, index: torch.Tensor, rows: int) -> bool:
        """Note the vocabulary where ``index`` holds the ids of a role."""
        role, added = self._role(index), 0
        if role is None:
            role, added = next(self._offset(index), (None, 0))
        if role is None:
            return False
        self.rows.setdefault(role, []).append(rows - added)
        return True

    def _offset(self, index: torch.Tensor) -> Iterator[tuple[str, int]]:
        """The role to whose ids a number is added at each place, and the largest one: a table
        may have a part for each of several places."""
        for role, ids in self.ids.items():
            if index.shape == ids.shape and ids.dim() == 2 and len(ids) > 1:
                added = index - ids
                if int(added.min()) >= 0 and bool((added == added[:1]).all()):
                    yield role, int(added.max())

    def _role(self, index: torch.Tensor) -> str | None:
        return next((role for role, ids in self.ids.items() if _holds(index, ids)), None)

    def _owns(self, table: torch.Tensor) -> bool:
        return table.untyped_storage().data_ptr() in self._own

    def _sliced(
        self,
        table: torch.Tensor,
        dim: int = 0,
        start: int | None = None,
        end: int | None = None,
        step: int = 1,
    ) -> None:
        rows = table.shape[dim]
        behind = start is not None and start < 0
        begin = max(0, rows + start) if behind and start is not None else start or 0
        stop = rows if end is None or end > rows else end
        added = stop - begin - self.length
        if step == 1 and 0 <= added <= _ADDED and stop - begin < rows and self._owns(table):
            self.limits.append(rows - added - (0 if behind else begin))


def _storages(model: torch.nn.Module) -> set[int]:
    """Storages that the model owns: parameters, buffers, plain tensor attributes."""
    plain = (v for m in model.modules() for v in vars(m).values() if isinstance(v, torch.Tensor))
    owned = [*model.parameters(), *model.buffers(), *plain]
    return {t.untyped_storage().data_ptr() for t in owned if not t.is_meta and t.numel()}


def _holds(index: torch.Tensor, ids: torch.Tensor) -> bool:
    """Whether ``index`` is the ids (B, T), transposed or flattened, of which a few may be read as
    others, or holds them with some tokens in front or behind, or all but the last, in patches or
    not; or ends with them behind many; or is one text of them."""
    if not isinstance(index, torch.Tensor) or index.is_floating_point():
        return False
    if index.numel() == ids.numel():
        turned = index.shape == ids.T.shape and index.shape != ids.shape
        same = (index.T if turned else index).reshape(-1) == ids.reshape(-1)
        if bool(same.sum() >= max(len(same) - _READ_AS_OTHERS, _MOST * len(same))):
            return True
    if index.dim() == 1 and index.shape == ids.shape[1:] and len(index) > 2:
        return bool((index == ids).all(1).any())
    if index.dim() == 3:
        index = index.flatten(1)
    if index.dim() != 2 or index.shape[0] != ids.shape[0] or ids.shape[1] < 3:
        return False
    behind = index[:, -ids.shape[1] :]  # a prompt of the model's own
    if behind.shape == ids.shape and ids.numel() > _ADDED and bool((behind == ids).all()):
        return True
    part = ids[:, :-1]
    spare = index.shape[1] - part.shape[1]
    places = range(min(spare, _ADDED) + 1) if spare >= 0 else range(0)
    return any(bool((index[:, p : p + part.shape[1]] == part).all()) for p in places)


def _consecutive(index: torch.Tensor, length: int) -> tuple[int, int] | None:
    """The first of ``length`` consecutive numbers along the last axis, the same in every row, and
    how many more the run has; ``None`` where there is no such run.

    A few tokens put in front make the run longer; padding to a multiple, one number or a run that
    goes on, may follow it.
    """
    if index.dim() == 0 or index.shape[-1] < length or index.numel() == 0:
        return None
    rows = index.reshape(-1, index.shape[-1])
    if index.dim() == 1 and len(index) % length == 0:
        rows = index.reshape(-1, length)  # of all texts, one after another
    added = rows.shape[1] - length
    run = rows[0, 0] + torch.arange(rows.shape[1], device=rows.device)
    if bool((rows == run).all()):
        return int(rows[0, 0]), added if added <= _ADDED else 0
    padded = rows[:1, -1:].expand_as(rows).clone()
    padded[:, :length] = run[:length]
    return (int(rows[0, 0]), 0) if bool((rows == padded).all()) else None
