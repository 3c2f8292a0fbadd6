"""Footprints of attention: which heads and positions one vector reaches, and one result.

Axes: R rows of one and the same text, H heads, T positions, D width. Row 0 is left as it is; in
each other row the input of every attention module is changed at one position, or the result of
one head at one position, and the module's output is put back to that of row 0, so that every
layer is looked at by itself in one forward.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from pytest_transformer_validate.probe.attention_calls import AttentionCalls, WrongAxis
from pytest_transformer_validate.probe.compare import some_rows
from pytest_transformer_validate.probe.heads import note_crossed, note_twins
from pytest_transformer_validate.probe.hooked import hooked
from pytest_transformer_validate.probe.passes import Passes, remembered
from pytest_transformer_validate.probe.trace import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_transformer_validate.subject.batch import Batch

_ROWS = 5
_MOVED = 1e-4  # of the largest number: a change of a whole vector moves far more


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
    ``twins`` modules in which two heads give the same numbers, with their numbers; ``crossed``
    those in which heads that share keys do not share values, with the heads that share them.
    """

    sites: int = 0
    modules: list[str] = field(default_factory=list)
    wrong_axis: list[WrongAxis] = field(default_factory=list)
    mixed: list[Footprint] = field(default_factory=list)
    scattered: list[Merge] = field(default_factory=list)
    twins: list[tuple[str, int, int]] = field(default_factory=list)
    crossed: list[tuple[str, list[int], list[int]]] = field(default_factory=list)


class Attention(Passes):
    """Attention seen through the functions that compute it."""

    @remembered
    def footprints(self) -> Footprints:
        """Three short forwards: to find the modules, with changed inputs, with changed results."""
        found = Footprints()
        batch = self._same_rows()
        if batch is None:
            return found
        owners, found.sites = self._owners(some_rows(batch, 0, 2))
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
            sites = AttentionCalls(lambda *_: seen.append((len(seen), list(stack))))

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
            stack.append(name)
            lengths[name] = [t.shape[1] for t in inputs if _sequence(t, rows)]
            return [_changed_positions(t, rows) if _sequence(t, rows) else t for t in inputs]

        def leave(_name: str, outputs: list[torch.Tensor]) -> list[torch.Tensor] | None:
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
            note_twins(name, kind, tensors, found)
            note_crossed(name, tensors, found)

        with self.probe.running("footprints") as subject:
            sites = AttentionCalls(site, self._place(stack), found.wrong_axis)
            with hooked(subject.model, enter, leave, owners), sites:
                subject(batch)

    def _results(self, batch: Batch, owners: set[str], found: Footprints) -> None:
        """Change the result of one head at one position a row, and look where it arrives."""
        stack: list[str] = []
        calls: dict[str, list[tuple[int, int, int]]] = {}
        rows = batch.rows

        def enter(name: str, _inputs: list[torch.Tensor]) -> None:
            stack.append(name)
            calls[name] = []

        def change(result: torch.Tensor) -> torch.Tensor:
            if not stack or result.dim() != 4 or result.shape[0] != rows:
                return result
            heads, length = result.shape[1:3]
            calls[stack[-1]].append((heads, length, result.shape[0]))
            return result if heads < 2 else _changed_cells(result)

        def leave(name: str, outputs: list[torch.Tensor]) -> list[torch.Tensor] | None:
            stack.pop()
            if len(calls[name]) == 1 and outputs and _sequence(outputs[0], rows):
                heads, length, _ = calls[name][0]
                if heads > 1 and outputs[0].shape[1] == length:
                    odd = _scattered(name, outputs[0], heads, length)
                    if odd is not None and all(m.module != name for m in found.scattered):
                        found.scattered.append(odd)
            return [_first_row(t, rows) for t in outputs]

        with self.probe.running("footprints") as subject:
            sites = AttentionCalls(lambda *_: None, None, None, change)
            with hooked(subject.model, enter, leave, owners), sites:
                subject(batch)

    def _place(self, stack: list[str]) -> Callable[[], str]:
        return lambda: stack[-1] if stack else ROOT


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
    changed, noise = x.clone(), _noise(x[:1])
    for row in range(1, rows):
        changed[row, _position(row, x.shape[1], rows)] += noise
    return changed


def _changed_cells(result: torch.Tensor) -> torch.Tensor:
    """Rows 1 and 2: first and last head at one position; rows 3 and 4: at another one."""
    changed, noise = result.clone(), _noise(result[:1])
    for row, (head, position) in _places(result.shape[1], result.shape[2]).items():
        changed[row, head, position] += noise
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
    found: dict[str, torch.Tensor] = {}
    for what, tensor in named.items():
        if tensor.dim() == 4 and tensor.shape[0] == rows and tensor.shape[1] > 1:
            found[what] = _moved(tensor)
        elif tensor.dim() == 3 and len(tensor) > rows and len(tensor) % rows == 0:
            moved = _moved_folded(tensor, rows)
            found |= {} if moved is None else {what: moved}
    return found


def _moved_folded(tensor: torch.Tensor, rows: int) -> torch.Tensor | None:
    """``_moved`` where rows and heads are one axis, in the order in which little moves; ``None``
    where that is neither."""
    orders = (tensor.unflatten(0, (rows, -1)), tensor.unflatten(0, (-1, rows)).transpose(0, 1))
    moved = min(map(_moved, orders), key=lambda cells: float(cells.double().mean()))
    return moved if 2 * int(moved.sum()) <= moved.numel() else None


def _uneven(module: str, what: str, moved: torch.Tensor) -> Footprint | None:
    """A change that reaches some of the heads that others reach, at positions not its own."""
    heads = moved.any(-1)
    some = heads.any(1) & (heads.any(0) & ~heads).any(1)
    rows = len(moved) + 1
    for row in (some.nonzero().flatten() + 1).tolist():
        reached = moved[row - 1]
        position = _position(row, moved.shape[-1], rows)
        elsewhere = reached.clone()
        elsewhere[:, position] = False
        if bool(elsewhere.any()):
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
