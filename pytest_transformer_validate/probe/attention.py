"""Footprints of attention: which heads and positions one vector reaches, and one result.

Axes: R rows of one and the same text, H heads, T positions, D width. Row 0 is left as it is; in
each other row the input of every attention module is changed at one position, or the result of
one head at one position, and the module's output is put back to that of row 0, so that every
layer is looked at by itself in one forward.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from pytest_transformer_validate.probe.hooked import hooked
from pytest_transformer_validate.probe.passes import Passes, remembered
from pytest_transformer_validate.probe.trace import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pytest_transformer_validate.subject.batch import Batch

_ROWS = 5
_MOVED = 1e-4  # of the largest number: a change of a whole vector moves far more
_MASKED = 1e4  # scores beyond this are masked ones

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
_SWAPS = {torch.transpose, torch.Tensor.transpose, torch.Tensor.swapaxes}


@dataclass(frozen=True)
class WrongAxis:
    """Attention weights that sum to one along ``softmax`` and are summed along ``summed`` (axes
    from the end) when they meet the values."""

    module: str
    softmax: int
    summed: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Footprint:
    """What a change of one position reaches inside of one module.

    ``what`` is ``query``, ``key`` or ``value``; ``position`` was changed; ``reached`` holds, for
    each head, the positions that moved.
    """

    module: str
    what: str
    position: int
    reached: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Merge:
    """Where in the module's output the results of two heads at one position arrive."""

    module: str
    position: int
    heads: tuple[int, int]
    arrives: tuple[tuple[int, ...], tuple[int, ...]]


@dataclass
class Footprints:
    """Everything seen: how many sites of attention, in which modules, and what is odd about them.

    ``mixed`` are changes that reach some heads and not others, at positions that were not
    changed; ``scattered`` results of two heads at one position that arrive at different ones;
    ``twins`` modules in which two heads give the same numbers, with their numbers.
    """

    sites: int = 0
    modules: list[str] = field(default_factory=list)
    wrong_axis: list[WrongAxis] = field(default_factory=list)
    mixed: list[Footprint] = field(default_factory=list)
    scattered: list[Merge] = field(default_factory=list)
    twins: list[tuple[str, int, int]] = field(default_factory=list)


class Attention(Passes):
    """Attention seen through the functions that compute it."""

    @remembered
    def footprints(self) -> Footprints:
        """Three short forwards: to find the modules, with changed inputs, with changed results."""
        found = Footprints()
        batch = self._same_rows()
        if batch is None:
            return found
        owners, found.sites = self._owners(batch)
        found.modules = sorted(owners)
        if found.sites:
            with contextlib.suppress(Exception):  # no model has to take tensors that we exchange
                self._inputs(batch, owners, found)
            with contextlib.suppress(Exception):
                self._results(batch, owners, found)
        return found

    def of_torch(self) -> bool:
        """Whether the model holds attention of torch itself."""
        modules = self.probe.subject.model.modules()
        return any(isinstance(m, torch.nn.MultiheadAttention) for m in modules)

    def _same_rows(self) -> Batch | None:
        """One text (or image) in several rows, a number that is neither T nor B elsewhere."""
        subject = self.probe.subject
        length = subject.sizes[1]
        rows = _ROWS if length != _ROWS else _ROWS + 1
        if subject.most_rows < rows or not subject.dtype.itemsize >= 4 or length < 3:
            return None
        batch = self.probe.batch(1, length, "footprints")
        return batch.with_(
            **{r: t.expand(rows, *t.shape[1:]).clone() for r, t in batch.inputs.items()}
        )

    def _owners(self, batch: Batch) -> tuple[set[str], int]:
        """The innermost modules around each site that map (R, T, D) to (R, T, D)."""
        owners: set[str] = set()
        seen: list[tuple[int, list[str]]] = []
        with self.probe.running("footprints") as subject:
            stack: list[str] = []
            good: dict[str, bool] = {}
            sites = _Sites(lambda *_: seen.append((len(seen), list(stack))))

            def enter(name: str, inputs: list[torch.Tensor]) -> None:
                stack.append(name)
                good[name] = any(_sequence(t, batch.rows) for t in inputs)

            def leave(name: str, outputs: list[torch.Tensor]) -> list[torch.Tensor] | None:
                stack.pop()
                good[name] = good[name] and bool(outputs) and _sequence(outputs[0], batch.rows)
                return None

            with hooked(subject.model, enter, leave), sites:
                subject(batch)
        for _, around in seen:
            fitting = [name for name in reversed(around) if good.get(name) and name != ROOT]
            owners.update(fitting[:1])
        return owners, len(seen)

    def _inputs(self, batch: Batch, owners: set[str], found: Footprints) -> None:
        """Change each module's input at one position a row, and look at its heads."""
        stack: list[str] = []
        seen: set[tuple[str, str]] = set()
        lengths: dict[str, list[int]] = {}
        rows = batch.rows

        def enter(name: str, inputs: list[torch.Tensor]) -> list[torch.Tensor] | None:
            if name not in owners:
                return None
            stack.append(name)
            lengths[name] = [t.shape[1] for t in inputs if _sequence(t, rows)]
            return [_changed_positions(t, rows) if _sequence(t, rows) else t for t in inputs]

        def leave(name: str, outputs: list[torch.Tensor]) -> list[torch.Tensor] | None:
            if name not in owners:
                return None
            stack.pop()
            return [_first_row(t, rows) for t in outputs]

        def site(kind: str, tensors: dict[str, torch.Tensor]) -> None:
            if not stack:
                return
            name = stack[-1]
            cells = _cells(tensors, rows)
            for what, moved in cells.items():
                if (name, what) not in seen and moved.shape[-1] in lengths[name]:
                    seen.add((name, what))
                    odd = _uneven(name, what, moved)
                    if odd is not None:
                        found.mixed.append(odd)
            _note_twins(name, kind, tensors, found)

        with self.probe.running("footprints") as subject:
            sites = _Sites(site, self._place(stack), found.wrong_axis)
            with hooked(subject.model, enter, leave), sites:
                subject(batch)

    def _results(self, batch: Batch, owners: set[str], found: Footprints) -> None:
        """Change the result of one head at one position a row, and look where it arrives."""
        stack: list[str] = []
        calls: dict[str, list[tuple[int, int, int]]] = {}
        rows = batch.rows

        def enter(name: str, _inputs: list[torch.Tensor]) -> None:
            if name in owners:
                stack.append(name)
                calls[name] = []

        def change(result: torch.Tensor) -> torch.Tensor:
            if not stack or result.dim() != 4 or result.shape[0] != rows:
                return result
            heads, length = result.shape[1:3]
            calls[stack[-1]].append((heads, length, result.shape[0]))
            return result if heads < 2 else _changed_cells(result)

        def leave(name: str, outputs: list[torch.Tensor]) -> list[torch.Tensor] | None:
            if name not in owners:
                return None
            stack.pop()
            if len(calls[name]) == 1 and outputs and _sequence(outputs[0], rows):
                heads, length, _ = calls[name][0]
                if heads > 1 and outputs[0].shape[1] == length:
                    odd = _scattered(name, outputs[0], heads, length)
                    if odd is not None and all(m.module != name for m in found.scattered):
                        found.scattered.append(odd)
            return [_first_row(t, rows) for t in outputs]

        with self.probe.running("footprints") as subject:
            sites = _Sites(lambda *_: None, None, None, change)
            with hooked(subject.model, enter, leave), sites:
                subject(batch)

    def _place(self, stack: list[str]) -> Callable[[], str]:
        return lambda: stack[-1] if stack else ROOT


class _Sites(TorchFunctionMode):
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
        elif func in _SWAPS and args and id(args[0]) in self.weights:
            self._swap(args, kwargs, result)
        else:
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
        """The same for two operands with four axes each, in any order of their axes."""
        named = _letters(args)
        if named is None:
            return result
        (first, a), (second, b), out = named
        summed = [x for x in first if x in second and x not in out]
        if len(summed) != 1:
            return result
        (inner,) = summed
        if id(a) in self.weights and _depends(b):
            self._check_axis(a, first.index(inner) - 4)
            rows, heads, steps = list(first[:3])
            wide = [x for x in out if x not in first]
            if first[3] != inner or len(wide) != 1 or set(second) != {rows, heads, inner, *wide}:
                return result
            order = [out.index(x) for x in (rows, heads, steps, *wide)]
            values = b.permute([second.index(x) for x in (rows, heads, inner, *wide)])
            changed = self._values(a, values, result.permute(order))
            return changed.permute([order.index(i) for i in range(4)])
        rows, heads, steps, others = list(out)
        if {rows, heads, steps, inner} == set(first) and {rows, heads, others, inner} == set(
            second
        ):
            query = a.permute([first.index(x) for x in (rows, heads, steps, inner)])
            key = b.permute([second.index(x) for x in (rows, heads, others, inner)])
            self.scores[id(result)] = (result, query, key)
        return result

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
        tensors = {"scores": scores, "value": values, "result": result}
        known = self.scores.get(id(scores))
        if known is not None:
            tensors |= {"query": known[1], "key": known[2]}
        self.site("values", tensors)
        return self.change(result) if self.change else result


def _depends(values: Any) -> bool:
    """Whether a tensor may hold values: a parameter mixes heads, it is not looked up."""
    return not isinstance(values, torch.nn.Parameter) and values.dim() > 2


def _letters(args: Any) -> tuple[tuple[str, Any], tuple[str, Any], str] | None:
    """The axes of an einsum of two tensors with four axes each, where it is written so."""
    if len(args) < 2 or not isinstance(args[0], str):
        return None
    given = args[1] if isinstance(args[1], tuple | list) else args[1:]
    names, _, out = args[0].replace(" ", "").partition("->")
    parts = names.split(",")
    if len(parts) != 2 or len(given) != 2 or {len(p) for p in (*parts, out)} != {4}:
        return None
    if "." in args[0] or any(not isinstance(t, torch.Tensor) or t.dim() != 4 for t in given):
        return None
    return (parts[0], given[0]), (parts[1], given[1]), out


# How rows, positions and cells move...


def _sequence(tensor: torch.Tensor, rows: int) -> bool:
    return tensor.dim() == 3 and tensor.shape[0] == rows and tensor.shape[1] > 2


def _position(row: int, length: int, rows: int) -> int:
    """The position that is changed in a row: spread over the length, never the first."""
    return 1 + (row - 1) * (length - 1) // (rows - 1)


def _noise(like: torch.Tensor) -> torch.Tensor:
    """A fixed vector of the size of the numbers in ``like`` (..., D)."""
    generator = torch.Generator().manual_seed(like.shape[-1])
    vector = torch.randn(like.shape[-1], generator=generator).to(like)
    scale = like.square().mean().sqrt()
    return vector * torch.where(scale > 0, scale, torch.ones_like(scale))


def _changed_positions(x: torch.Tensor, rows: int) -> torch.Tensor:
    changed = x.clone()
    for row in range(1, rows):
        changed[row, _position(row, x.shape[1], rows)] += _noise(x[:1])
    return changed


def _changed_cells(result: torch.Tensor) -> torch.Tensor:
    """Rows 1 and 2: first and last head at one position; rows 3 and 4: at another one."""
    changed = result.clone()
    for row, (head, position) in _places(result.shape[1], result.shape[2]).items():
        changed[row, head, position] += _noise(result[:1])
    return changed


def _places(heads: int, length: int) -> dict[int, tuple[int, int]]:
    early, late = 1, length - 2
    return {1: (0, early), 2: (heads - 1, early), 3: (0, late), 4: (heads - 1, late)}


def _first_row(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    if tensor.dim() < 2 or tensor.shape[0] != rows:
        return tensor
    return tensor[:1].expand_as(tensor).clone()


def _moved(tensor: torch.Tensor) -> torch.Tensor:
    """Which vectors of the rows behind the first differ from those of the first, (R - 1, ...)."""
    difference = (tensor[1:] - tensor[:1]).abs().amax(-1)
    return difference > _MOVED * float(tensor[0].abs().max())


def _cells(tensors: dict[str, torch.Tensor], rows: int) -> dict[str, torch.Tensor]:
    """By what they are, the cells (R - 1, H, T) that moved."""
    named = {n: tensors[n] for n in ("query", "key", "value") if n in tensors}
    return {
        what: _moved(t)
        for what, t in named.items()
        if t.dim() == 4 and t.shape[0] == rows and t.shape[1] > 1
    }


def _uneven(module: str, what: str, moved: torch.Tensor) -> Footprint | None:
    """A change that reaches some of the heads that others reach, at positions not its own."""
    alive = moved.any(-1).any(0)
    rows = len(moved) + 1
    for row in range(1, rows):
        reached = moved[row - 1]
        position = _position(row, moved.shape[-1], rows)
        heads = reached.any(-1)
        elsewhere = reached.clone()
        elsewhere[:, position] = False
        if bool(heads.any()) and bool((alive & ~heads).any()) and bool(elsewhere.any()):
            places = tuple(tuple(head.nonzero().flatten().tolist()) for head in reached)
            return Footprint(module, what, position, places)
    return None


def _scattered(module: str, output: torch.Tensor, heads: int, length: int) -> Merge | None:
    """Results of two heads at one position that arrive at positions with nothing in common."""
    moved = _moved(output)
    for first, second in ((1, 2), (3, 4)):
        here, there = (tuple(moved[r - 1].nonzero().flatten().tolist()) for r in (first, second))
        if here and there and not set(here) & set(there):
            position = _places(heads, length)[first][1]
            return Merge(module, position, (0, heads - 1), (here, there))
    return None


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal but for rounding; infinities where the other has them."""
    both = a.isfinite() & b.isfinite()
    if not torch.equal(a[~both], b[~both]):
        return False
    limit = 16 * torch.finfo(a.dtype).eps * float(a[both].abs().max()) if bool(both.any()) else 0.0
    return bool(((a - b)[both].abs() <= limit).all())


def _note_twins(
    module: str, kind: str, tensors: dict[str, torch.Tensor], found: Footprints
) -> None:
    """Note two heads that look for the same and give the same numbers."""
    result = tensors["result"]
    looks = tensors["query" if kind == "sdpa" else "scores"]
    if result.dim() != 4 or looks.dim() != 4 or looks.shape[:2] != result.shape[:2]:
        return
    for head in range(1, result.shape[1]):
        a, b = result[0, 0], result[0, head]
        same = _alike(a, b) and _alike(looks[0, 0], looks[0, head])
        shown = looks[0, 0][looks[0, 0].isfinite() & (looks[0, 0].abs() < _MASKED)]
        varied = bool(shown.numel()) and float(shown.std(correction=0)) > 0
        if same and varied and float(a.std(correction=0)) > 0:
            if all(module != other for other, _, _ in found.twins):
                found.twins.append((module, 0, head))
            return
