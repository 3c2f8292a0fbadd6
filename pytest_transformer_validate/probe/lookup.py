"""Cut the graph at the token lookup, so that gradients can be read there token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Mapping

_TABLE_FIRST = {torch.embedding, torch.Tensor.__getitem__}


class TokenLookup(TorchFunctionMode):
    """While inside, vectors that are looked up by ``ids`` become leaves of the graph.

    Works for ``nn.Embedding``, ``F.embedding`` and ``table[ids]``, in batch-first and time-major
    order, and for tables that are read more than once. ``gradient()`` gives the size of the
    gradient at every token, (B, T).
    """

    def __init__(self, ids: torch.Tensor) -> None:
        super().__init__()
        self.ids = ids
        self.leaves: list[torch.Tensor] = []
        self._transposed: list[bool] = []

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        index = self._index(func, args, kwargs or {})
        if index is None or not result.is_floating_point() or result.dim() <= self.ids.dim():
            return result
        return self.looked_up(result, index.shape != self.ids.shape)

    def looked_up(self, vectors: torch.Tensor, turned: bool) -> torch.Tensor:
        """What is read in place of ``vectors`` (B, T, ...), or (T, B, ...) where ``turned``."""
        leaf = vectors.detach().requires_grad_()
        self.leaves.append(leaf)
        self._transposed.append(turned)
        return leaf * 1

    def __bool__(self) -> bool:
        """Whether any lookup was seen."""
        return bool(self.leaves)

    def gradient(self) -> torch.Tensor:
        """Largest gradient magnitude at each token (B, T), over all lookups."""
        total = torch.zeros(self.ids.shape, dtype=torch.float64)
        for leaf, transposed in zip(self.leaves, self._transposed, strict=True):
            if leaf.grad is not None:
                size = leaf.grad.detach().abs().flatten(2).amax(2).to("cpu", torch.float64)
                total = torch.maximum(total, size.T if transposed else size)
        return total

    def _index(
        self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> torch.Tensor | None:
        if func is functional.embedding:
            index = args[0] if args else kwargs.get("input")
        elif func in _TABLE_FIRST and len(args) > 1:
            index = args[1]
        else:
            return None
        if not isinstance(index, torch.Tensor) or index.is_floating_point():
            return None
        if index.shape == self.ids.shape and torch.equal(index, self.ids.to(index.dtype)):
            return index
        same = index.shape == self.ids.T.shape and torch.equal(index.T, self.ids.to(index.dtype))
        return index if same else None


class OtherVectors(TokenLookup):
    """While inside, other vectors than the looked up ones are read at the tokens that ``keep``
    (B, T) does not keep; the ids stay as they are. False where no lookup was seen."""

    def __init__(self, ids: torch.Tensor, keep: torch.Tensor) -> None:
        super().__init__(ids)
        self.keep = keep
        self.seen = False

    def looked_up(self, vectors: torch.Tensor, turned: bool) -> torch.Tensor:
        self.seen = True
        keep = self.keep.T if turned else self.keep
        keep = keep.reshape(*keep.shape, *(1,) * (vectors.dim() - keep.dim()))
        # another direction, also where the vector of the padding id is zero
        ramp = torch.linspace(-1, 1, vectors.shape[-1]).to(vectors) * vectors.abs().max()
        return torch.where(keep, vectors, vectors.flip(-1) + ramp)

    def __bool__(self) -> bool:
        return self.seen
