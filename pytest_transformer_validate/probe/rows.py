"""What each row of a batch depends on: the same two oracles as for positions.

Axes: B batch, T positions, V outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch

from pytest_transformer_validate.probe.compare import (
    batch_axis,
    difference,
    finite,
    finite_logits,
    over,
    projection,
    sequence,
    trace,
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
    told = not subject.vision and subject.sizes[1] > 5 and probe.padding.told()
    padded = ["padded"] if told else []
    if subject.small:
        shorter = ["shorter"] if told else []
        return ["every", *padded, *shorter, "noised", "full", "rolled"]
    return [*padded, "full", "rolled"]


def row_swaps(probe: Probe, plan: str) -> RowSwaps:
    """Replace every row but the first, then every row but the last.

    ``plan`` is ``every``; ``padded``, which gives the replaced rows another padding too (both
    times some, so that the same kernels run), each its own, and the kept rows none; ``shorter``,
    in which the kept rows have padding and their new neighbours none; ``noised``, with every
    parameter moved at random; ``full``, at the full batch size; or ``rolled``, which keeps all
    rows and gives each the next one's place.
    """
    rows, length = probe.subject.sizes
    if plan == "full":
        rows = max(rows, probe.subject.full_batch)
    before = probe.batch(rows, length, "rows")
    if plan == "rolled":
        known = probe.row_swaps("every").reference if probe.subject.small else None
        return _rolled(probe, before, known)
    fresh = probe.batch(rows, length, "other rows")
    if plan == "padded":
        inner = range(1, rows - 1)
        before = _padded(probe, before, [0, *(1 + row % 2 for row in inner), 0])
        fresh = _padded(probe, fresh, [2 + row % 2 for row in range(rows)])
    elif plan == "shorter":
        before = _padded(probe, before, [3, *(row % 2 for row in range(1, rows - 1)), 2])
        fresh = _padded(probe, fresh, [0] * rows)
    kept = [0, rows - 1]
    after = [_keep_row(before, fresh, keep) for keep in kept]
    with probe.under(plan):
        reference = finite_logits(probe, before)
        moved = [
            difference(reference, finite_logits(probe, swapped)).flatten(1).amax(1)
            for swapped in after
        ]
    effect = [float(m[keep]) for m, keep in zip(moved, kept, strict=True)]
    own = max(float(m.max()) for m in moved)
    return RowSwaps(plan, effect, kept, own, reference, before, after)


def _keep_row(before: Batch, fresh: Batch, keep: int) -> Batch:
    """The fresh rows, but for one."""
    inputs = {role: tensor.clone() for role, tensor in fresh.inputs.items()}
    for role, tensor in before.inputs.items():
        inputs[role][keep] = tensor[keep]
    return before.with_(**inputs)


def _rolled(probe: Probe, before: Batch, known: torch.Tensor | None) -> RowSwaps:
    """``known`` are the logits of ``before``, where it was run."""
    after = before.with_(**{role: t.roll(1, 0) for role, t in before.inputs.items()})
    reference = finite_logits(probe, before) if known is None else known
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
    for covers, way in probe.padding.told():
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
            grad = cast("torch.Tensor", leaves[0].grad)
            matrix.append(grad.abs().flatten(1).amax(1).to("cpu", torch.float64))
    return torch.stack(matrix)
