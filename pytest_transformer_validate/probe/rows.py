"""What each row of a batch depends on: the same two oracles as for positions.

Axes: B batch, T positions, V outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pytest_transformer_validate.probe.compare import (
    batch_axis,
    difference,
    finite,
    finite_logits,
    over,
    plain_batch,
    projection,
    sequence,
    trace,
    without_nan,
)
from pytest_transformer_validate.probe.lookup import TokenLookup
from pytest_transformer_validate.probe.trace import first_to_differ
from pytest_transformer_validate.subject.masks import padding_id

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.compare import Moved
    from pytest_transformer_validate.probe.probe import Probe
    from pytest_transformer_validate.subject.batch import Batch


@dataclass(frozen=True)
class RowSwaps:
    """All rows but one replaced: ``effect[i]`` is how far the kept row ``kept[i]`` moved."""

    condition: str
    effect: list[float]
    kept: list[int]
    own_effect: float
    reference: torch.Tensor
    before: Batch
    after: list[Batch]


def row_plans(probe: Probe) -> list[str]:
    """The ways in which rows are replaced: see ``rows.row_swaps``."""
    subject = probe.subject
    told = not subject.vision and subject.sizes[1] > 5 and probe.padding.told(lengths=True)
    padded = ["padded"] if told else []
    return ["full", *padded, *(["noised"] if subject.small else []), "rolled"]


def row_swaps(probe: Probe, plan: str) -> RowSwaps:
    """Replace all rows but some.

    ``plan`` is ``full``, a full batch of which the last row is kept (and the first one, in a run
    of its own, in a large model, which has fewer plans); ``padded``, in which the other rows have
    padding before and none after, while one kept row has none and another less than the others
    had; ``noised``, with every parameter moved at random, which keeps one row that has others on
    both sides; or ``rolled``, which keeps all rows and gives each the next one's place.
    """
    rows, length = probe.subject.sizes
    if plan == "rolled":
        return _rolled(probe, plain_batch(probe, rows), without_nan(probe.plain(rows)))
    before = plain_batch(probe, None if plan == "full" else rows)
    rows = before.rows
    fresh = probe.batch(rows, length, "other rows")
    if plan == "padded":
        before, fresh, kept = _padded_pair(probe, before, fresh)
        runs = [kept]
    elif plan == "noised":
        runs = [[max(0, rows - 2)]]
    else:
        runs = [[rows - 1]] if probe.subject.small else [[0], [rows - 1]]
    after = [_keep_rows(before, fresh, kept) for kept in runs]
    with probe.under(plan):
        full = plan == "full"
        reference = without_nan(probe.plain()) if full else finite_logits(probe, before)
        moved = [
            difference(reference, finite_logits(probe, swapped)).flatten(1).amax(1)
            for swapped in after
        ]
    places = [(row, run) for run, kept in enumerate(runs) for row in kept]
    return RowSwaps(
        plan,
        effect=[float(moved[run][row]) for row, run in places],
        kept=[row for row, _ in places],
        own_effect=max(float(m.max()) for m in moved),
        reference=reference,
        before=before,
        after=[after[run] for _, run in places],
    )


def _keep_rows(before: Batch, fresh: Batch, kept: list[int]) -> Batch:
    """The fresh rows, but for some."""
    inputs = {role: tensor.clone() for role, tensor in fresh.inputs.items()}
    for role, tensor in before.inputs.items():
        inputs[role][kept] = tensor[kept]
    return before.with_(**inputs)


def _padded_pair(probe: Probe, before: Batch, fresh: Batch) -> tuple[Batch, Batch, list[int]]:
    """Two batches, and the rows of the first that keep their place in the second. Both have some
    padding, so that the same kernels run."""
    rows = before.rows
    many = rows > 3
    own = {1: 0, rows - 2: 1} if many else {rows // 2: 0}
    before = _padded(probe, before, [own.get(row, 2 + row % 2) for row in range(rows)])
    return before, _padded(probe, fresh, [0 if many else 1] * rows), list(own)


def _rolled(probe: Probe, before: Batch, reference: torch.Tensor) -> RowSwaps:
    after = before.with_(**{role: t.roll(1, 0) for role, t in before.inputs.items()})
    moved = difference(reference, finite_logits(probe, after).roll(-1, 0)).flatten(1).amax(1)
    worst = int(moved.argmax())
    own = float(difference(reference, reference.roll(1, 0)).max())
    return RowSwaps("rolled", [float(moved[worst])], [worst], own, reference, before, [after])


def row_gradients(probe: Probe, rows: int, length: int) -> torch.Tensor | None:
    """(B, B): gradient of a projection of row i's output (row) at row j's input (column)."""
    batch = probe.batch(rows, length, "rows")
    with probe.running("row_gradients", grad=True) as subject:
        if subject.vision:
            pixels = batch["pixel_values"].requires_grad_()
            logits = subject(batch).logits
            return _row_matrix(probe, logits, [pixels])
        role = sequence(probe)
        with TokenLookup(batch[role]) as lookup:
            logits = subject(batch).logits
        return _row_matrix(probe, logits, lookup.leaves, lookup)


def locate_row(probe: Probe, swaps: RowSwaps, index: int) -> str | None:
    """The first module in which the kept row moves."""
    rows, keep = swaps.before.rows, swaps.kept[index]
    place = (keep + 1) % rows if swaps.condition == "rolled" else keep
    with probe.under(swaps.condition):
        before, after = trace(probe, swaps.before), trace(probe, swaps.after[index])
    return first_to_differ(before, after, _row_moved(rows, keep, place))


def locate_row_gradient(probe: Probe, row: int, source: int) -> str | None:
    """The first module in which a row moves when the ``source`` row alone is replaced."""
    rows, length = probe.subject.sizes
    before = probe.batch(rows, length, "rows")
    fresh = probe.batch(rows, length, "other rows")
    after = before.with_(
        **{
            role: torch.cat([t[:source], fresh[role][source : source + 1], t[source + 1 :]])
            for role, t in before.inputs.items()
        }
    )
    return first_to_differ(trace(probe, before), trace(probe, after), _row_moved(rows, row, row))


def _padded(probe: Probe, batch: Batch, amounts: list[int]) -> Batch:
    """The batch with the end of each row padded, in every way in which the model can be told; a
    text still ends with its end id."""
    subject = probe.subject
    for covers, way in probe.padding.told(lengths=True):
        ids = batch[covers]
        steps = torch.arange(ids.shape[1], device=ids.device)
        left = ids.shape[1] - torch.tensor(amounts[: len(ids)], device=ids.device)[:, None]
        keep = steps < left
        pad = padding_id(subject)
        padded = torch.where(keep, ids, ids[0, 0] if pad is None else pad)
        if subject.ends:
            padded.scatter_(1, left - 1, ids[:, -1:])
        batch = batch.with_(**{covers: padded})
        batch = batch if way is None else way.tell(batch, keep)
    return batch


def _row_moved(rows: int, keep: int, place: int) -> Moved:
    """Whether row ``keep`` of one tensor is another one than row ``place`` of the other."""

    def moved(a: torch.Tensor, b: torch.Tensor) -> bool:
        axis = batch_axis(a, rows)
        if axis is None:
            return False
        size = a.shape[axis] // rows
        return over(a.narrow(axis, keep * size, size), b.narrow(axis, place * size, size))

    return moved


def _row_matrix(
    probe: Probe,
    logits: torch.Tensor,
    leaves: list[torch.Tensor],
    lookup: TokenLookup | None = None,
) -> torch.Tensor | None:
    if not leaves:
        return None
    weight = projection(probe, logits.shape[-1]).to(logits)
    matrix = []
    for row in range(logits.shape[0]):
        for leaf in leaves:
            leaf.grad = None
        loss = finite(logits[row]).mul(weight).sum()
        torch.autograd.backward(loss, retain_graph=True, inputs=leaves)
        if lookup is not None:
            matrix.append(lookup.gradient().amax(1))
        else:
            grad = leaves[0].grad
            if grad is None:  # what reads the image is frozen and runs under no_grad
                return None
            matrix.append(grad.abs().flatten(1).amax(1).to("cpu", torch.float64))
    return torch.stack(matrix)
