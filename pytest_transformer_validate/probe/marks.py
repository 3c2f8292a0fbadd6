"""What is known about a tensor while a model runs, and what each operation makes of it.

Followed are constant factors, projections by a parameter, products of queries with keys (scores)
and what a softmax makes of them (weights), through views, casts, masks and arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

# Operations that give the same numbers in another arrangement.
VIEWS = {
    f"aten::{name}"
    for name in (
        "view", "_unsafe_view", "reshape", "expand", "permute", "transpose", "t", "unsqueeze",
        "squeeze", "select", "slice", "clone", "alias", "detach", "split", "split_with_sizes",
        "chunk", "unbind", "narrow", "view_as", "unsafe_split", "swapaxes", "movedim", "repeat",
    )
}  # fmt: skip
_SAME = {
    f"aten::{name}"
    for name in (
        "neg", "_to_copy", "masked_fill", "masked_fill_", "where", "roll", "flip",
        "index", "index_select", "gather", "index_put", "index_put_", "nan_to_num",
        "view_as_complex", "view_as_real", "native_dropout", "constant_pad_nd", "repeat",
        "clamp", "triu", "tril", "neg_", "_conj", "resolve_conj", "lift_fresh",
    )
}  # fmt: skip
_BENDS = {"aten::tanh", "aten::tanh_", "aten::relu", "aten::relu_"}
_TIMES = {"aten::mul", "aten::mul_"}
_OVER = {"aten::div", "aten::div_"}
_SUMS = {"aten::add", "aten::add_", "aten::sub", "aten::sub_", "aten::rsub"}
_JOINS = {"aten::cat", "aten::stack"}
_NORMS = {
    "aten::native_layer_norm", "aten::_fused_rms_norm", "aten::rms_norm",
    "aten::native_group_norm",
}  # fmt: skip
PRODUCTS = {"aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm"}
NOT_THE_SAME = {*PRODUCTS, *_NORMS}
AGAIN = "a softmax again"  # what was done to weights that became the scores of another softmax


@dataclass(frozen=True)
class Facts:
    """``factor`` is the constant that a tensor was multiplied by since it was made by a product
    (``None``: cannot be told), ``learned`` whether parameters scale it too; ``projected`` says
    that a matrix of parameters made it, ``parameter`` that it is made of parameters alone."""

    factor: float | None = 1.0
    learned: bool = False
    projected: bool = False
    parameter: bool = False


NOTHING = Facts()


@dataclass(frozen=True)
class Product:
    """Scores: every query (N, T, D) times every key (N, S, D), and what scaled the two."""

    query: torch.Tensor
    key: torch.Tensor
    facts: Facts


@dataclass(frozen=True)
class Normal:
    """What a softmax, or ``exact=False`` an exponential, made of ``scores``; ``changed`` names
    what was done to the weights after, ``AGAIN`` among it."""

    scores: torch.Tensor
    facts: Facts
    exact: bool
    changed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Mark:
    """All that is known of one tensor.

    ``shape`` is that of the tensor in which scores or weights were last computed, and ``index``
    says for every number of this one where it stood there (``None``: in the same place).
    """

    tensor: torch.Tensor
    facts: Facts = NOTHING
    product: Product | None = None
    normal: Normal | None = None
    shape: torch.Size | None = None
    index: torch.Tensor | None = None

    @property
    def followed(self) -> bool:
        """Whether these are scores or weights."""
        return self.product is not None or self.normal is not None

    def places(self) -> torch.Tensor:
        """``index``, made where it is missing."""
        if self.index is not None:
            return self.index
        return torch.arange(self.tensor.numel()).view(self.tensor.shape)


def facts_after(name: str, args: Any, facts_of: Callable[[Any], Facts]) -> Facts:
    """What is known of the result of an operation on ``args``."""
    tensors = [t for t in _flat(args) if isinstance(t, torch.Tensor)]
    given = [facts_of(t) for t in tensors]
    if given and all(f.parameter for f in given):
        return Facts(parameter=True)
    if name in VIEWS or name in _SAME:
        return given[0] if given else NOTHING
    if name == "aten::copy_":
        return facts_of(args[1])
    if name in _BENDS:
        return replace(given[0], projected=False)
    if name in _TIMES or name in _OVER:
        return _scaled(args[0], args[1], facts_of, over=name in _OVER)
    if name in _SUMS or name in _JOINS:
        return _joined(given)
    if name in PRODUCTS:
        return Facts(projected=True) if any(f.parameter for f in given) else NOTHING
    if not any(f.projected for f in given):
        return NOTHING
    return Facts(learned=True, projected=True) if name in _NORMS else Facts(factor=None)


def change(before: torch.Tensor, after: torch.Tensor, *, learned: bool) -> str:
    """What was done to weights, in one word or two: nothing (""), ``masked`` (some became 0, or
    what a softmax makes 0, the others stayed), ``times 0.25``, or ``changed``, which any gate or
    mixture may do."""
    if before.shape != after.shape:
        return "changed"
    if learned:
        return "changed"
    limit = 4 * max(torch.finfo(t.dtype).eps for t in (before, after))
    old, new = before.double(), after.double()
    kept = (old - new).abs() <= limit * old.abs()
    if bool(kept.all()):
        return ""
    if bool((kept | (new == 0) | (new < -1)).all()):
        return "masked"
    there = (old.abs() > torch.finfo(before.dtype).tiny) & old.isfinite()
    ratios = new[there] / old[there]
    if ratios.numel() and bool(((ratios - ratios[0]).abs() <= limit * ratios[0].abs()).all()):
        return f"times {float(ratios[0]):.6g}"
    return "changed"


def constant(value: Any) -> float | None:
    """A number, or the number in a tensor without axes."""
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, torch.Tensor) and value.dim() == 0 and not value.is_complex():
        return float(value)
    return None


def _scaled(left: Any, right: Any, facts_of: Callable[[Any], Facts], *, over: bool) -> Facts:
    if not isinstance(left, torch.Tensor) or (left.dim() == 0 and not over):
        left, right = right, left
    one, other = facts_of(left), facts_of(right)
    number = None if other.parameter else constant(right)
    if number is not None:
        factor = None if one.factor is None else one.factor * number
        if over:
            factor = None if one.factor is None or not number else one.factor / number
        return replace(one, factor=factor)
    if one.parameter != other.parameter:
        return replace(other if one.parameter else one, learned=True)
    factors = (one.factor, other.factor)
    factor = None if None in factors else one.factor * other.factor  # type: ignore[operator]
    return Facts(factor, one.learned or other.learned, one.projected or other.projected)


def _joined(given: list[Facts]) -> Facts:
    """A sum, or several tensors side by side: masks, biases and positions tell nothing."""
    told = [f for f in given if f != NOTHING and not f.parameter]
    told = [f for f in told if f.projected] or told
    if not told:
        return NOTHING
    factors = {f.factor for f in told}
    factor = factors.pop() if len(factors) == 1 else None
    return Facts(factor, any(f.learned for f in told), any(f.projected for f in told))


def _flat(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return [each for item in value for each in _flat(item)]
    return [value]
