"""Attention seen through the functions that compute it, however it is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_SOFTMAX = {torch.softmax, functional.softmax, torch.Tensor.softmax}
_PRODUCTS = {torch.matmul, torch.bmm, torch.Tensor.matmul, torch.Tensor.bmm}
_PRODUCTS |= {torch.Tensor.__matmul__}
# What leaves the axes of attention weights where they are.
_SAME = {
    functional.dropout, torch.dropout, torch.Tensor.to, torch.Tensor.type_as, torch.Tensor.float,
    torch.Tensor.half, torch.Tensor.bfloat16, torch.Tensor.type, torch.Tensor.contiguous,
    torch.Tensor.masked_fill, torch.Tensor.clone, torch.nan_to_num, torch.Tensor.nan_to_num,
    torch.Tensor.__getitem__,
}  # fmt: skip
# What may put rows and heads into one axis.
_FOLDS = {
    torch.Tensor.view, torch.Tensor.reshape, torch.reshape, torch.Tensor.flatten, torch.flatten,
}  # fmt: skip
_SWAPS = {torch.transpose, torch.Tensor.transpose, torch.Tensor.swapaxes}


@dataclass(frozen=True)
class WrongAxis:
    """Attention weights that sum to one along ``softmax`` and are summed along ``summed`` (axes
    from the end) when they meet the values."""

    module: str
    softmax: int
    summed: int
    shape: tuple[int, ...]


class AttentionCalls(TorchFunctionMode):
    """Sees attention: ``scaled_dot_product_attention``, and softmax with the product behind it.

    ``site(kind, tensors)`` gets ``sdpa`` with query, key, value and result, or ``values`` with the
    scores that a softmax made weights of, value and result, and query and key where the scores
    are known to be their product.
    """

    def __init__(
        self,
        site: Callable[[str, dict[str, torch.Tensor]], None],
        place: Callable[[], str] | None = None,
        wrong: list[WrongAxis] | None = None,
        change: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.site = site
        self.place = place
        self.wrong = wrong
        self.change = change
        self.weights: dict[int, tuple[torch.Tensor, int, torch.Tensor]] = {}
        self.scores: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not isinstance(result, torch.Tensor):
            return result
        if func is functional.scaled_dot_product_attention:
            names = dict(zip(("query", "key", "value"), args, strict=False))
            tensors = {**names, **{n: kwargs[n] for n in ("query", "key", "value") if n in kwargs}}
            self.site("sdpa", {**tensors, "result": result})
            return self.change(result) if self.change else result
        if func in _SOFTMAX:
            self._softmax(args, kwargs, result)
        elif func in _PRODUCTS and len(args) > 1:
            return self._product(args[0], args[1], result)
        elif func is torch.einsum:
            return self._einsum(args, result)
        elif func in _SAME and args and id(args[0]) in self.weights:
            self._follow(args[0], result)
        elif func in _FOLDS and args and id(args[0]) in self.weights:
            self._fold(args[0], result)
        elif func in _SWAPS and args and id(args[0]) in self.weights:
            self._swap(args, kwargs, result)
        elif self.scores:
            self._follow_scores(args, result)
        return result

    def _follow_scores(self, args: Any, result: torch.Tensor) -> None:
        """Scores stay scores when they are scaled, masked, or get another column (a sink)."""
        for given in args[0] if args and isinstance(args[0], tuple | list) else args:
            known = self.scores.get(id(given))
            if known is not None and result.shape[:-1] == known[0].shape[:-1]:
                self.scores[id(result)] = (result, *known[1:])
                return

    def _softmax(self, args: Any, kwargs: Mapping[str, Any], result: torch.Tensor) -> None:
        scores = args[0] if args else kwargs.get("input")
        dim = args[1] if len(args) > 1 else kwargs.get("dim")
        if isinstance(scores, torch.Tensor) and isinstance(dim, int) and scores.dim() > 2:
            self.weights[id(result)] = (result, dim if dim < 0 else dim - result.dim(), scores)

    def _follow(self, weights: torch.Tensor, result: torch.Tensor) -> None:
        _, dim, scores = self.weights[id(weights)]
        if result.dim() == weights.dim():
            self.weights[id(result)] = (result, dim, scores)

    def _fold(self, weights: torch.Tensor, result: torch.Tensor) -> None:
        """Weights (B, H, T, S) made (B H, T, S)."""
        _, dim, scores = self.weights[id(weights)]
        known = weights.dim() == scores.dim() == 4 and dim > -3
        if known and result.dim() == 3 and result.shape[1:] == weights.shape[2:]:
            self.weights[id(result)] = (result, dim, scores)

    def _swap(self, args: Any, kwargs: Mapping[str, Any], result: torch.Tensor) -> None:
        _, dim, scores = self.weights[id(args[0])]
        axes = [*args[1:], *kwargs.values()]
        if len(axes) == 2 and all(isinstance(a, int) for a in axes):
            a, b = (axis if axis < 0 else axis - result.dim() for axis in axes)
            self.weights[id(result)] = (result, {a: b, b: a}.get(dim, dim), scores)

    def _product(self, left: Any, right: Any, result: torch.Tensor) -> torch.Tensor:
        if not isinstance(left, torch.Tensor) or not isinstance(right, torch.Tensor):
            return result
        for weights, other, summed in ((left, right, -1), (right, left, -2)):
            if id(weights) in self.weights and _depends(other):
                self._check_axis(weights, summed)
                return self._values(weights, other, result) if summed == -1 else result
        if left.dim() == right.dim() == 4:
            self.scores[id(result)] = (result, left, right.transpose(-1, -2))
        return result

    def _einsum(self, args: Any, result: torch.Tensor) -> torch.Tensor:
        """The same for two operands, in any order of their axes; keys and values may have no
        axis for the heads (or some of them), which share them then."""
        named = _letters(args)
        if named is None:
            return result
        (first, a), (second, b), out = named
        summed = [x for x in first if x in second and x not in out]
        if len(summed) != 1:
            return result
        (inner,) = summed
        if id(a) in self.weights and _depends(b):
            return self._weighted(named, inner, result)
        if len(first) != 4:
            return result
        rows, heads, steps, others = list(out)
        if {rows, heads, steps, inner} == set(first) and others in second:
            query = a.permute([first.index(x) for x in (rows, heads, steps, inner)])
            key = _spread(b, second, (rows, heads, others, inner), query)
            if key is not None:
                self.scores[id(result)] = (result, query, key)
        return result

    def _weighted(
        self,
        named: tuple[tuple[str, torch.Tensor], tuple[str, torch.Tensor], str],
        inner: str,
        result: torch.Tensor,
    ) -> torch.Tensor:
        """Values (..., S, D) that weights (..., T, S) sum up over ``inner``."""
        (first, a), (second, b), out = named
        lead, steps = first[:-2], first[-2]
        wide = [x for x in out if x not in first]
        fits = first[-1] == inner and len(wide) == 1 and steps not in second
        if fits or len(first) == len(second) == 4:
            self._check_axis(a, first.index(inner) - len(first))
        if not fits or set(out) != {*lead, steps, *wide}:
            return result
        values = _spread(b, second, (*lead, inner, *wide), a)
        if values is None:
            return result
        order = [out.index(x) for x in (*lead, steps, *wide)]
        changed = self._values(a, values, result.permute(order))
        return changed.permute([order.index(i) for i in range(len(order))])

    def _check_axis(self, weights: torch.Tensor, summed: int) -> None:
        dim, shape = self.weights[id(weights)][1], tuple(weights.shape)
        if self.wrong is None or self.place is None or dim == summed:
            return
        if shape[dim] > 1 and shape[summed] > 1:
            self.wrong.append(WrongAxis(self.place(), dim, summed, shape))

    def _values(
        self, weights: torch.Tensor, values: torch.Tensor, result: torch.Tensor
    ) -> torch.Tensor:
        scores = self.weights[id(weights)][2]
        lead = scores.shape[:2]
        folded = weights.dim() == 3 < scores.dim() and len(values) == len(result) == len(weights)
        seen = result.unflatten(0, lead) if folded else result
        values = values.unflatten(0, lead) if folded else values
        tensors = {"scores": scores, "value": values, "result": seen}
        known = self.scores.get(id(scores))
        if known is not None:
            tensors |= {"query": known[1], "key": known[2]}
        self.site("values", tensors)
        if self.change is None:
            return result
        return self.change(seen).flatten(0, 1) if folded else self.change(result)


def _depends(values: Any) -> bool:
    """Whether a tensor may hold values: a parameter mixes heads, it is not looked up."""
    return not isinstance(values, torch.nn.Parameter) and values.dim() > 2


def _letters(
    args: Any,
) -> tuple[tuple[str, torch.Tensor], tuple[str, torch.Tensor], str] | None:
    """The axes of an einsum of two tensors, the first with as many as the result has and at least
    three, where it is written so."""
    if len(args) < 2 or not isinstance(args[0], str) or "." in args[0]:
        return None
    given = args[1] if isinstance(args[1], tuple | list) else args[1:]
    names, _, out = args[0].replace(" ", "").partition("->")
    parts = names.split(",")
    if len(parts) != 2 or len(given) != 2 or not 3 <= len(out) == len(parts[0]):
        return None
    if [t.dim() if isinstance(t, torch.Tensor) else None for t in given] != [*map(len, parts)]:
        return None
    return (parts[0], given[0]), (parts[1], given[1]), out


def _spread(
    tensor: torch.Tensor, axes: str, wanted: tuple[str, ...], like: torch.Tensor
) -> torch.Tensor | None:
    """The tensor with the ``wanted`` axes: one of the heads that it has not, of those between the
    first and the last two, is as long as that of ``like``; ``None`` where others differ."""
    missing = [x for x in wanted if x not in axes]
    if not set(axes) <= set(wanted) or not set(missing) <= set(wanted[1:-2]):
        return None
    wide = tensor.permute([axes.index(x) for x in wanted if x in axes])
    for place in (wanted.index(x) for x in missing):
        wide = wide.unsqueeze(place)
    return wide.expand([like.shape[i] if x in missing else -1 for i, x in enumerate(wanted)])
