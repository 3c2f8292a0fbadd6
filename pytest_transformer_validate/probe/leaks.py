"""Where in the model padding begins to matter: passes that are run on a failure only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pytest_transformer_validate.probe.compare import difference, over, trace
from pytest_transformer_validate.probe.lookup import OtherVectors
from pytest_transformer_validate.probe.padding import COUNTED
from pytest_transformer_validate.probe.passes import Passes
from pytest_transformer_validate.probe.real_tokens import narrowed, real_entries
from pytest_transformer_validate.probe.trace import ROOT, Call, first_to_differ, running_module
from pytest_transformer_validate.subject.tables import TableReader

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.padded_texts import Lengths
    from pytest_transformer_validate.probe.padding import Content
    from pytest_transformer_validate.subject.masks import Way

_NEAR = 8  # tokens that an n-gram may span


@dataclass(frozen=True)
class Place:
    """Where padding first matters, and what kind of module that is: one that reads nothing but
    ``ids`` (n-grams, ids shifted by one), one that ``pools`` neighbouring tokens, or any."""

    where: str | None
    kind: str | None


class Leaks(Passes):
    """The first module in which padding, or what stands under a mask, is seen."""

    def locate_comparison(self, covers: str, number: int) -> str | None:
        """The module whose code compares ids with a number."""
        subject = self.probe.subject
        batch = self.probe.padding.texts()
        reader = _Comparer(subject.model, {covers: batch[covers]}, subject.sizes[1], number)
        with self.probe.running("compares"), reader:
            subject.call(batch, {})
        return reader.place

    def locate_content(self, found: Content) -> Place:
        """The first module in which a real token sees what is under the mask."""
        with self.probe.padding.under(found.condition):
            before = trace(self.probe, found.before)
            after = trace(self.probe, found.after)
        where = _first_real(before, after, found.keep)
        kind = self._kind(before, where, len(found.keep))
        if kind == "ids" and not _near(_call(before, where), _call(after, where), found.keep):
            kind = None
        return Place(where, kind)

    def locate_vectors(self, way: Way, layout: str, condition: str) -> Place:
        """The first module in which a real token sees other vectors under the mask."""
        batch, keep = self.probe.masks.kept_ids(way, layout, condition)
        with self.probe.padding.under(condition):
            before = trace(self.probe, batch)
            with OtherVectors(batch[way.covers], keep):
                after = trace(self.probe, batch)
        where = _first_real(before, after, keep)
        return Place(where, self._kind(before, where, len(keep)))

    def locate_no_mask(self, way: Way) -> str | None:
        """The first module that a mask of ones changes."""
        padding = self.probe.padding
        batch, _ = padding.text(way.covers, padding.layout(way.covers))
        told = way.tell(batch, torch.ones_like(batch[way.covers], dtype=torch.bool))
        with padding.under("plain"):
            before, after = trace(self.probe, batch), trace(self.probe, told)
        return first_to_differ(before, after, _far)

    def locate_lengths(self, found: Lengths) -> Place:
        """The first module in which a padded text differs from the same text alone."""
        with self.probe.padding.under(found.condition):
            padded = trace(self.probe, found.padded)
            alone = trace(self.probe, found.alone)
        length = found.alone[found.covers].shape[1]
        start = 0 if found.side == "right" else found.size - length
        rows = found.padded.rows

        def part(tensor: torch.Tensor) -> torch.Tensor:
            return narrowed(tensor, rows, found.rows, found.size, start, length)

        cut = [
            Call(call.name, [part(t) for t in call.inputs], [part(t) for t in call.outputs])
            for call in padded
        ]
        where = first_to_differ(cut, alone, _far)
        kind = self._kind(padded, where, rows)
        way, _ = self.probe.padding.way(found.covers)
        if kind == "ids" and way is not None:
            side = COUNTED if way.counts else found.side
            kind = self.locate_content(self.probe.padding.content(way, side, found.condition)).kind
        return Place(where, None if way is None else kind)

    def _kind(self, calls: list[Call], where: str | None, rows: int) -> str | None:
        """What is special about the module called ``where`` in calls with ``rows`` texts: see
        ``Place``.

        It pools neighbours where what it gives has fewer places than there are tokens, and more
        of them for a longer text.
        """
        call = _call(calls, where)
        if call is None or where == ROOT:
            return None
        if not call.inputs:
            return "ids"
        length = self.probe.subject.sizes[1]
        most = min(4 * length, self.probe.subject.max_length or 4 * length)
        with self.probe.padding.under("plain"):
            longer = _call(trace(self.probe, self.probe.batch(rows, most, "padding")), where)
        if longer is None:
            return None
        fewer = any(
            a.dim() == b.dim() > 2
            and any(m < n < most for m, n in zip(a.shape, b.shape, strict=True))
            for a, b in zip(call.outputs, longer.outputs, strict=False)
            if length not in a.shape
        )
        return "pools" if fewer else None


class _Comparer(TableReader):
    """Notices in which module ids are compared with ``number``."""

    def __init__(
        self, model: nn.Module, ids: dict[str, torch.Tensor], length: int, number: int
    ) -> None:
        super().__init__(model, ids, length)
        self.model, self.number = model, number
        self.place: str | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if self.place is None and self.number in self.compared:
            self.place = running_module(self.model)
        return result


def _first_real(before: list[Call], after: list[Call], keep: torch.Tensor) -> str | None:
    """The first module whose output at real tokens differs."""

    def moved(a: torch.Tensor, b: torch.Tensor) -> bool:
        real = real_entries(a, keep)
        return real is not None and over(a.masked_fill(~real, 0), b.masked_fill(~real, 0))

    return first_to_differ(before, after, moved)


def _call(calls: list[Call], name: str | None) -> Call | None:
    return next((call for call in calls if call.name == name), None)


def _near(before: Call | None, after: Call | None, keep: torch.Tensor) -> bool:
    """Whether what a module gives moves at most ``_NEAR`` positions from a masked token: n-grams
    and shifts do, a statistic over the text does not stop there."""
    if before is None or after is None:
        return False
    steps = torch.arange(keep.shape[1], device=keep.device)
    gap = (steps[:, None] - steps).abs().masked_fill(keep[:, None], keep.shape[1]).amin(-1)
    for a, b in zip(before.outputs, after.outputs, strict=False):
        if a.dim() < 3 or a.shape[:2] != keep.shape:
            return False
        moved = difference(a, b).flatten(2).amax(-1) > 0
        if bool((moved & (gap > _NEAR)).any()):
            return False
    return True


def _far(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors differ by more than rounding may between two shapes (256 u)."""
    if not a.numel():
        return False
    numbers = b[b.isfinite()]
    scale = float(numbers.abs().max()) if numbers.numel() else 0.0
    moved = torch.where(a.isnan() & b.isnan(), 0, difference(a, b))
    return not float(moved.max()) <= 256 * torch.finfo(a.dtype).eps * scale
