"""The same inputs in other sizes: prefixes of texts, rows in other batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_transformer_validate.errors import Blocked, first_line
from pytest_transformer_validate.probe.compare import (
    as_text,
    batch_axis,
    difference,
    over,
    plain,
    plain_batch,
    sequence,
    some_rows,
    text_logits,
    trace,
    without_nan,
)
from pytest_transformer_validate.probe.passes import Passes, remembered
from pytest_transformer_validate.probe.trace import Call, first_to_differ
from pytest_transformer_validate.subject.promises import stretched_beyond
from pytest_transformer_validate.subject.sizes import long_text

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from pytest_transformer_validate.subject.batch import Batch

_VISIBLE = 1e-4  # of the largest number of a tensor: two shapes round differently


@dataclass(frozen=True)
class Resized:
    """Inputs run in several sizes.

    ``moved[size]`` is how far the logits were from those of the largest size, and ``place[size]``
    the position, or the row, that moved most; ``reference`` the logits of the largest.
    """

    condition: str
    moved: dict[int, float]
    place: dict[int, int]
    reference: torch.Tensor

    @property
    def worst(self) -> tuple[float, int]:
        """The largest movement and its size; not a number counts as the largest."""
        size = max(self.moved, key=lambda n: (self.moved[n] != self.moved[n], self.moved[n]))
        return self.moved[size], size


class Resizing(Passes):
    """Runs of prefixes and of single rows. ``condition`` is that of ``Probe.under``."""

    @remembered
    def prefixes(self, condition: str) -> Resized:
        """The first k tokens of a text alone, for a few k, against the first k of the whole."""
        probe = self.probe
        length = probe.subject.sizes[1]
        batch = self._text(length)
        with probe.under(condition):
            whole = as_text(self._plain(1, condition), length)
            moved, place = {}, {}
            for size in self.prefix_sizes(condition):
                part = text_logits(probe, self._cut(batch, size), size)
                apart = difference(whole[:, :size], part).amax((0, 2))
                moved[size], place[size] = float(apart.max()), int(apart.argmax())
        return Resized(condition, moved, place, whole)

    def long_sizes(self) -> tuple[int, int] | None:
        """Lengths of a long text, about 64 (48 for a large model), and of its prefix: the shortest
        beyond the short texts, so that what begins at any length between them shows."""
        subject = self.probe.subject
        most = 64 if subject.small else 48
        length = long_text(subject.model, subject.max_length, most, subject.multiple)
        size = subject.sizes[1] + subject.multiple
        return (length, size) if size < length else None

    @remembered
    def long_prefix(self, length: int, size: int, condition: str) -> Resized:
        """``prefixes`` for one size of one long text; Blocked where that does not run."""
        probe = self.probe
        batch = self._text(length)
        with probe.under(condition):
            try:
                whole = text_logits(probe, batch, length)
                part = text_logits(probe, self._cut(batch, size), size)
            except Exception as error:
                raise Blocked(f"a text of {length} tokens raises: {first_line(error)}") from error
        apart = difference(whole[:, :size], part).amax((0, 2))
        moved, place = {size: float(apart.max())}, {size: int(apart.argmax())}
        return Resized(condition, moved, place, whole)

    def prefix_sizes(self, condition: str = "eval") -> list[int]:
        """Lengths of prefixes, all shorter than the text."""
        subject = self.probe.subject
        length, step = subject.sizes[1], subject.multiple
        sizes = {1, 2, length // 2, length - 1} if condition == "noised" else {length // 2}
        if step > 1:
            sizes = set(range(step, length, step))
        return sorted(size for size in sizes if size < length)

    def stretched(self, size: int, length: int) -> str | None:
        """In words, that positions are declared to turn otherwise in the longer of two texts."""
        beyond = stretched_beyond(self.probe.subject)
        if beyond is None or not size <= beyond < length:
            return None
        return f"{size} of {length} tokens give other logits, as declared beyond {beyond} tokens"

    def locate_prefix(self, condition: str, size: int, length: int | None = None) -> str | None:
        """The first module that gives the first ``size`` positions another value."""
        length = length or self.probe.subject.sizes[1]
        batch = self._text(length)
        with self.probe.under(condition):
            whole = trace(self.probe, batch)
            part = trace(self.probe, self._cut(batch, size))

        def cut(tensor: torch.Tensor) -> torch.Tensor:
            if length not in tensor.shape:
                return tensor.new_empty(0)  # a summary of the text may follow its length
            for axis, n in enumerate(tensor.shape):
                tensor = tensor.narrow(axis, 0, size) if n == length else tensor
            return tensor

        return first_to_differ(_each(whole, cut), part, _moved)

    def _text(self, length: int) -> Batch:
        if length == self.probe.subject.sizes[1]:
            return plain_batch(self.probe, 1)
        return self.probe.batch(1, length, "prefixes")

    def _cut(self, batch: Batch, size: int) -> Batch:
        """The batch with its sequence cut; what stands token by token beside it is too."""
        role = sequence(self.probe)
        length = batch[role].shape[1]
        keep = {"input_ids", "attention_mask"} if role == "decoder_input_ids" else set[str]()
        shorter = {
            name: t[:, :size].contiguous()
            for name, t in batch.inputs.items()
            if name not in keep and t.dim() == 2 and t.shape[1] == length
        }
        return batch.with_(**shorter)

    @remembered
    def rows(self, condition: str) -> Resized:
        """The first row alone, in smaller batches, and in the largest."""
        probe = self.probe
        _, sizes = self._rows(condition)
        noised = condition == "noised"
        full = probe.row_swaps("noised").reference if noised else without_nan(probe.plain())
        with probe.under(condition):
            moved, place = {}, {}
            for size in sizes:
                part = self._plain(size, condition)
                if part.shape[1:] != full.shape[1:] or len(part) != size:
                    shape = tuple(part.shape)
                    raise Blocked(f"logits are {shape} for {size} rows: see shape_robustness")
                apart = difference(full[:size], part).flatten(1).amax(1)
                moved[size], place[size] = float(apart.max()), int(apart.argmax())
        return Resized(condition, moved, place, full)

    @remembered
    def _plain(self, rows: int, condition: str) -> torch.Tensor:
        """The logits of short texts, where the probe is under the condition."""
        noised = condition == "noised"
        return without_nan(plain(self.probe, rows) if noised else self.probe.plain(rows))

    def _rows(self, condition: str) -> tuple[int | None, list[int]]:
        """Rows of the largest batch, ``None`` for a full one, and of those that are smaller."""
        subject = self.probe.subject
        rows = subject.sizes[0]
        if condition == "noised":
            return rows, [size for size in (1, 2, 3) if size < rows]
        return None, [1] if subject.small else [1, 2]

    def locate_rows(self, condition: str, size: int, row: int) -> str | None:
        """The first module in which a row of a smaller batch has another value."""
        batch = plain_batch(self.probe, self._rows(condition)[0])
        with self.probe.under(condition):
            full = trace(self.probe, batch)
            part = trace(self.probe, some_rows(batch, 0, size))
        return first_to_differ(
            _each(full, _row_of(batch.rows, row)), _each(part, _row_of(size, row)), _moved
        )


def _row_of(rows: int, row: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Cuts one row out of a tensor of ``rows``; all of it where it has no axis of rows."""

    def cut(tensor: torch.Tensor) -> torch.Tensor:
        axis = batch_axis(tensor, rows)
        if axis is None:
            return tensor
        size = tensor.shape[axis] // rows
        return tensor.narrow(axis, row * size, size)

    return cut


def _each(calls: list[Call], cut: Callable[[torch.Tensor], torch.Tensor]) -> list[Call]:
    return [Call(c.name, [cut(t) for t in c.inputs], [cut(t) for t in c.outputs]) for c in calls]


def _moved(a: torch.Tensor, b: torch.Tensor) -> bool:
    return over(a, b, _VISIBLE)
