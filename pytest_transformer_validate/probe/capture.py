"""Attention weights as a model computes them, whatever it computes them with.

Watched are torch's operations: a product of queries with keys, a softmax (or an exponential that
is divided by its sum), the product with the values behind it; and fused attention, whose weights
are computed once more from what it is given. torch.einsum, torch.nn.MultiheadAttention and
everything else is made of these.

Axes: see ``sites``.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from pytest_transformer_validate.probe.marks import (
    AGAIN,
    NOT_THE_SAME,
    NOTHING,
    PRODUCTS,
    VIEWS,
    Facts,
    Mark,
    Normal,
    Product,
    change,
    facts_after,
)
from pytest_transformer_validate.probe.scores import fused_scores
from pytest_transformer_validate.probe.sites import Site, table
from pytest_transformer_validate.probe.trace import ROOT, running_module
from pytest_transformer_validate.subject.dispatch import Operations

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_SOFTMAX = {"aten::_softmax", "aten::_safe_softmax", "aten::softmax"}
_EXP = {"aten::exp", "aten::exp_"}
_SHIFTS = {"aten::convolution", "aten::roll", "aten::constant_pad_nd", "aten::_fft_r2c"}
_FUSED = "scaled_dot_product"


class Capture(Operations):
    """Records every site of attention while a model runs over one text.

    ``lengths`` are the numbers of tokens there are: only a product of two such axes counts as
    scores without a softmax. ``caches`` are tensors that were written into, by their memory;
    ``shifts`` tells whether anything else moved vectors along an axis.
    """

    def __init__(self, model: torch.nn.Module, lengths: set[int]) -> None:
        super().__init__()
        self.model = model
        self.lengths = lengths
        self.sites: list[Site] = []
        self.shifts = False
        self.marks: dict[int, Mark] = {}
        self.caches: dict[int, tuple[torch.Tensor, Facts]] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        schema = getattr(func, "_schema", None)
        if schema is None:
            return self._higher_order(func, args, kwargs)
        if torch.is_inference_mode_enabled() and func._can_decompose():
            with self:  # operations arrive whole there: see what they are made of
                return func.decompose(*args, **kwargs)
        name = schema.name
        self.shifts = self.shifts or name in _SHIFTS
        if _FUSED in name and "backward" not in name:
            given = dict(zip((a.name for a in schema.arguments), args, strict=False))
            self._fused({**given, **kwargs})
        before = self._before(args, inplace=name.endswith("_"))
        if name in PRODUCTS:
            self._meets_values(args)
        result = func(*args, **kwargs)
        self._mark(name, func, args, kwargs, result, before)
        return result

    # What is known of tensors...

    def mark_of(self, value: Any) -> Mark | None:
        """What is known of a tensor, where anything is."""
        return self.marks.get(id(value)) if isinstance(value, torch.Tensor) else None

    def facts_of(self, value: Any) -> Facts:
        """The facts about a tensor."""
        if isinstance(value, torch.nn.Parameter):
            return Facts(parameter=True)
        mark = self.mark_of(value)
        if mark is None and self.caches and isinstance(value, torch.Tensor):
            return self.caches.get(_memory(value), (value, NOTHING))[1]
        return NOTHING if mark is None else mark.facts

    def _before(self, args: Any, *, inplace: bool) -> torch.Tensor | None:
        """Weights as they are before an operation that may change them."""
        first = self.mark_of(args[0]) if args else None
        if first is None or first.normal is None or not first.normal.exact:
            return None
        return first.tensor.clone() if inplace else first.tensor

    def _mark(
        self,
        name: str,
        func: Any,
        args: Any,
        kwargs: Mapping[str, Any],
        result: Any,
        before: torch.Tensor | None,
    ) -> None:
        results = result if isinstance(result, list | tuple) else [result]
        if not results or not isinstance(results[0], torch.Tensor):
            return
        facts = facts_after(name, args, self.facts_of)
        if name == "aten::copy_" and facts.projected:
            self.caches[_memory(args[0])] = (args[0], facts)
        source = self._followed(args)
        if name in VIEWS:
            moved = None
            if source is not None:
                moved = func(source.places(), *args[1:], **kwargs)
                moved = moved if isinstance(moved, list | tuple) else [moved]
            for place, each in enumerate(results):
                index = None if moved is None else moved[place]
                self._set(each, facts, source, index)
            return
        first = results[0]
        if name in ("aten::bmm", "aten::mm", "aten::baddbmm") and facts == NOTHING:
            self._product(args, kwargs, first, baddbmm=name == "aten::baddbmm")
        elif name in _SOFTMAX or (name in _EXP and source is not None):
            self._softmax(args[0], first, source, exact=name in _SOFTMAX)
        elif source is not None and name not in NOT_THE_SAME and _fits(source.tensor, first):
            changed = replace(source, normal=self._changed(source, before, first, args))
            self._set(first, facts, changed, None)
        else:
            self._set(first, facts, None, None)

    def _followed(self, args: Any) -> Mark | None:
        """The first argument that holds scores or weights: weights before scores."""
        flat = [a for item in args for a in (item if isinstance(item, list | tuple) else [item])]
        marks = [m for a in flat if (m := self.mark_of(a)) is not None and m.followed]
        return min(marks, key=lambda m: m.normal is None, default=None)

    def _set(
        self, tensor: Any, facts: Facts, source: Mark | None, index: torch.Tensor | None
    ) -> None:
        if not isinstance(tensor, torch.Tensor):
            return
        if source is None:
            if facts != NOTHING:
                self.marks[id(tensor)] = Mark(tensor, facts)
            else:
                self.marks.pop(id(tensor), None)
            return
        shape = tensor.shape if index is None else source.shape or source.tensor.shape
        self.marks[id(tensor)] = replace(
            source, tensor=tensor, facts=facts, shape=shape, index=index
        )

    def _changed(
        self, source: Mark, before: torch.Tensor | None, after: torch.Tensor, args: Any
    ) -> Normal | None:
        normal = source.normal
        if normal is None or not normal.exact:
            return normal
        learned = any(self.facts_of(a).parameter or self.facts_of(a).projected for a in args)
        words = "changed" if before is None else change(before, after, learned=learned)
        return replace(normal, changed=(*normal.changed, words)) if words else normal

    # ... where scores, weights and sites begin...

    def _product(
        self, args: Any, kwargs: Mapping[str, Any], result: torch.Tensor, *, baddbmm: bool
    ) -> None:
        left, right = args[1:3] if baddbmm else args[:2]
        if any((m := self.mark_of(t)) is not None and m.followed for t in (left, right)):
            self._set(result, NOTHING, None, None)
            return
        one, other = self.facts_of(left), self.facts_of(right)
        factors = (one.factor, other.factor)
        factor = None if None in factors else one.factor * other.factor  # type: ignore[operator]
        if factor is not None and baddbmm:
            factor *= float(kwargs.get("alpha", 1))
        facts = Facts(factor, one.learned or other.learned, one.projected and other.projected)
        query, key = left, right.transpose(-1, -2)
        product = Product(query.detach(), key.detach(), facts)
        self.marks[id(result)] = Mark(result, facts, product, None, result.shape)

    def _softmax(
        self, given: torch.Tensor, result: torch.Tensor, source: Mark | None, *, exact: bool
    ) -> None:
        mark = self.mark_of(given)
        facts = Facts(factor=None) if mark is None else mark.facts
        product = None if source is None else source.product
        earlier: tuple[str, ...] = ()
        if mark is not None and mark.normal is not None:
            if not (exact and mark.normal.exact):  # exponentials of weights
                self._set(result, NOTHING, None, None)
                return
            facts, earlier = Facts(factor=None), (*mark.normal.changed, AGAIN)
        scores = given.detach().clone() if not exact else given.detach()
        normal = Normal(scores, facts, exact, earlier)
        self.marks[id(result)] = Mark(result, NOTHING, product, normal, result.shape)

    def _meets_values(self, args: Any) -> None:
        tensors = [a for a in args if isinstance(a, torch.Tensor)][-2:]
        if len(tensors) < 2:
            return
        left, right = tensors
        for weights, values, last in ((left, right, True), (right, left, False)):
            mark = self.mark_of(weights)
            if mark is None or not mark.followed or self.facts_of(values).parameter:
                continue
            found = self._site(mark, values, last=last)
            if found is not None:
                self.sites.append(found)
                return

    def _site(self, mark: Mark, values: torch.Tensor, *, last: bool) -> Site | None:
        """The site in which the tensor of ``mark`` is summed over its ``last`` axis, or over the
        last but one."""
        turn = (lambda t: t) if last else (lambda t: t.transpose(-1, -2))
        found = table(mark, turn, self.lengths)
        if found is None:
            return None
        weights, more = found
        normal = mark.normal
        both = {int(n) for n in weights.shape[1:]} <= self.lengths
        if normal is None and not both:
            return None
        other = values if last else values.transpose(-1, -2)
        other = other[None] if other.dim() == 2 else other.flatten(0, -3)
        facts = Facts(factor=None) if normal is None else normal.facts
        product = mark.product
        return Site(
            module=self._place(),
            weights=weights.detach(),
            normal="none" if normal is None else "softmax" if normal.exact else "exponential",
            more=more,
            changed=() if normal is None else normal.changed,
            values=other.detach() if other.shape[1] == weights.shape[2] else None,
            scale=None if product is None or facts.learned else facts.factor,
            learned=facts.learned,
            projected=product is not None and product.facts.projected,
            query=None if product is None else product.query,
            key=None if product is None else product.key,
            scores=None if normal is None else normal.scores,
        )

    def _fused(self, given: Mapping[str, Any]) -> None:
        scores = fused_scores(given)
        if scores is None or scores.shape[0] != 1:
            return
        query, key, value = (given[n].detach()[0] for n in ("query", "key", "value"))
        weights = scores[0].softmax(-1).nan_to_num(0.0)
        one, other = self.facts_of(given["query"]), self.facts_of(given["key"])
        scale = given.get("scale")
        scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
        known = one.factor is not None and other.factor is not None
        learned = one.learned or other.learned
        self.sites.append(
            Site(
                module=self._place(),
                weights=weights,
                normal="softmax",
                values=value,
                scale=scale * one.factor * other.factor  # type: ignore[operator]
                if known and not learned
                else None,
                learned=learned,
                projected=one.projected and other.projected,
                query=query,
                key=key,
                scores=scores[0],
            )
        )

    def _higher_order(self, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """flex_attention: values that are an identity show its weights."""
        if "flex_attention" in str(func) and args[0].dim() == 4 and args[0].shape[0] == 1:
            key, value = args[1], args[2]
            names = torch.eye(key.shape[2], dtype=value.dtype, device=value.device)
            unit = names.expand(*value.shape[:2], -1, -1)
            found = func(*args[:2], unit, *args[3:], **kwargs)
            weights = found[0] if isinstance(found, tuple) else found
            one, other = self.facts_of(args[0]), self.facts_of(key)
            self.sites.append(
                Site(
                    module=self._place(),
                    weights=weights[0].detach(),
                    normal="softmax",
                    values=value[0].detach(),
                    projected=one.projected and other.projected,
                )
            )
        return func(*args, **kwargs)

    def _place(self) -> str:
        return running_module(self.model) or ROOT


@contextlib.contextmanager
def captured(model: torch.nn.Module, lengths: set[int]) -> Iterator[Capture]:
    """Sites of attention while inside, with torch.nn.MultiheadAttention off its fast path."""
    backend = torch.backends.mha
    fast = backend.get_fastpath_enabled()
    backend.set_fastpath_enabled(False)
    capture = Capture(model, lengths)
    try:
        with capture:
            yield capture
    finally:
        backend.set_fastpath_enabled(fast)
        capture.marks.clear()
        capture.caches.clear()


def _memory(tensor: torch.Tensor) -> int:
    """Where the memory of a tensor begins, which it shares with its views."""
    return int(tensor.untyped_storage().data_ptr())


def _fits(source: torch.Tensor, result: torch.Tensor) -> bool:
    """Whether a result may hold the same cells: of the same last axes, or with more columns."""
    if not result.is_floating_point() or result.dim() < 2 or source.dim() < 2:
        return False
    if result.shape[-2:] == source.shape[-2:]:
        return True
    return result.shape[:-1] == source.shape[:-1] and result.shape[-1] > source.shape[-1] > 1
