"""Comparing two runs of one shape: the logits, and every tensor on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pytest_transformer_validate.errors import Blocked
from pytest_transformer_validate.probe.trace import Call, traced
from pytest_transformer_validate.probe.watch import same

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_transformer_validate.probe.positions import Swaps
    from pytest_transformer_validate.probe.probe import Probe
    from pytest_transformer_validate.probe.rows import RowSwaps
    from pytest_transformer_validate.subject.batch import Batch

    Moved = Callable[[torch.Tensor, torch.Tensor], bool]


MANY = 16  # rows that go together through a small model


def finite_logits(probe: Probe, batch: Batch) -> torch.Tensor:
    """The logits of a forward; Blocked where they hold NaN."""
    return without_nan(probe.forward(batch).logits)


def without_nan(logits: torch.Tensor) -> torch.Tensor:
    """The same logits; Blocked where they hold NaN."""
    if bool(logits.sum().isnan()) and bool(logits.isnan().any()):  # both infinities add up to NaN
        raise Blocked("logits hold NaN: see output_stability")
    return logits


def text_logits(probe: Probe, batch: Batch, length: int) -> torch.Tensor:
    """The logits (B, T, V) of rows that have nothing to do with each other, in batches that the
    model takes; Blocked where they hold NaN or have another shape."""
    subject = probe.subject
    most = min(MANY, subject.most_rows) if subject.small else subject.full_batch
    if batch.rows <= most:
        return as_text(finite_logits(probe, batch), length)
    parts = (some_rows(batch, start, start + most) for start in range(0, batch.rows, most))
    return as_text(torch.cat([finite_logits(probe, part) for part in parts]), length)


def as_text(logits: torch.Tensor, length: int) -> torch.Tensor:
    """The logits of texts as (B, T, V); Blocked where they have another shape."""
    if logits.dim() > 3:
        logits = logits.flatten(2)
    if logits.dim() != 3 or logits.shape[1] != length:
        shape = tuple(logits.shape)
        raise Blocked(f"logits are {shape} for {length} tokens: see shape_robustness")
    return logits


def repeats(probe: Probe, swaps: Swaps | RowSwaps) -> float:
    """How far the logits move when the very same batch is run again, with another random state."""
    logits = []
    for time in ("once", "again"):
        with probe.under(swaps.condition), probe.running(time) as subject:
            logits.append(subject(some_rows(swaps.before, 0, subject.full_batch)).logits)
    return float(difference(*logits).max())


def plain_batch(probe: Probe, rows: int | None = None) -> Batch:
    """The first ``rows`` of a full batch of short random texts, or images; all by default."""
    fewest, length = probe.subject.sizes
    batch = probe.batch(max(fewest, probe.subject.full_batch), length, "plain")
    return batch if rows is None else some_rows(batch, 0, rows)


def plain(probe: Probe, rows: int | None = None) -> torch.Tensor:
    """The logits of ``plain_batch``, with which many passes compare."""
    return probe.forward(plain_batch(probe, rows)).logits


def noise(probe: Probe) -> float:
    """The model's own rounding: how far the logits of a row differ between two batch sizes."""
    many, alone = probe.plain()[:1], probe.plain(1)
    both = many.isfinite() & alone.isfinite()
    return float(difference(many, alone)[both].max()) if bool(both.any()) else 0.0


def trace(probe: Probe, batch: Batch) -> list[Call]:
    """The calls of every module in one forward."""
    with probe.running("forward") as subject, traced(subject.model) as calls:
        subject(batch)
    return calls


def sequence(probe: Probe) -> str:
    """The role of the sequence that the output follows."""
    return "decoder_input_ids" if probe.subject.decodes else "input_ids"


def few_rows(probe: Probe) -> tuple[int, int]:
    """(B, T) of one short pass."""
    rows, length = probe.subject.sizes
    return (rows, length) if probe.subject.small else (min(rows, 2), length)


def some_rows(batch: Batch, start: int, stop: int) -> Batch:
    return batch.with_(**{role: t[start:stop] for role, t in batch.inputs.items()})


def joined(*batches: Batch) -> Batch:
    """The rows of batches of one shape, one below the other."""
    first = batches[0]
    return first.with_(**{role: torch.cat([b[role] for b in batches]) for role in first.inputs})


def projection(probe: Probe, width: int) -> torch.Tensor:
    """A fixed random direction (V,): a plain sum has no gradient behind a LayerNorm or softmax."""
    generator = torch.Generator().manual_seed(probe.seed_for("projection"))
    return torch.randn(width, generator=generator)


def finite(tensor: torch.Tensor) -> torch.Tensor:
    return torch.where(tensor.isfinite(), tensor, 0)


def difference(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """|a - b|, 0 where both are the same infinity."""
    apart = (a - b).abs_()  # nothing is negative: one NaN makes the sum NaN, and nothing else does
    return apart.masked_fill_(a == b, 0) if bool(apart.sum().isnan()) else apart


def moved_by(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest movement, NaN being equal to NaN; infinite where the shapes differ."""
    if a.shape != b.shape:
        return float("inf")
    if same(a, b):
        return 0.0
    both = a.isnan() & b.isnan()
    moved = torch.where(both, 0, difference(a, b)).nan_to_num(nan=float("inf"))
    return float(moved.max())


def over(a: torch.Tensor, b: torch.Tensor, part: float | None = None) -> bool:
    """Whether two tensors differ by more than that ``part`` of the first; by default 16 u (same
    shape, see tolerance)."""
    if not a.numel():
        return False
    if a.shape == b.shape and a.equal(b):
        return False
    numbers = a[a.isfinite()]
    scale = float(numbers.abs().max()) if numbers.numel() else 0.0
    both_nan = a.isnan() & b.isnan()
    moved = torch.where(both_nan, 0, difference(a, b))
    part = 16 * torch.finfo(a.dtype).eps if part is None else part
    return not float(moved.max()) <= part * scale


def axis_of(tensor: torch.Tensor, length: int) -> int | None:
    """The axis of positions: the first one of that length."""
    return next((i for i, size in enumerate(tensor.shape) if size == length), None)


def batch_axis(tensor: torch.Tensor, rows: int) -> int | None:
    """The axis of rows: the first of that size, else a leading one that holds rows x something."""
    exact = next((i for i, size in enumerate(tensor.shape) if size == rows), None)
    if exact is not None:
        return exact
    return 0 if tensor.dim() > 1 and tensor.shape[0] > 0 and tensor.shape[0] % rows == 0 else None
