"""A row of a batch is alone in the world."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.registry import check
from pytest_transformer_validate.errors import CheckFailed
from pytest_transformer_validate.measures.dependency import (
    BatchIndependence,
    other_row_leak,
    worst_row,
)
from pytest_transformer_validate.measures.tolerance import same_shape_limit, settle

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.dependency import RowSwaps
    from pytest_transformer_validate.probe.probe import Probe

RULE = "a row's logits must not depend on the other rows of the batch"


@check(tier=1)
def batch_independence(probe: Probe, *, factor: float = 16.0) -> BatchIndependence:
    """The output of a row depends on no other row of its batch.

    All rows but one are replaced, and the gradient of every row's output at every row's input is
    read. B and T are different primes, because equal ones hide an exchanged axis. The expected
    movement is exactly 0; ``factor`` u are allowed.
    """
    notes: list[str] = []
    measured = _judge_swaps(probe, False, factor, notes)
    subject = probe.subject
    if subject.signature.takes("attention_mask") and not subject.vision and subject.sizes[1] > 4:
        _judge_swaps(probe, True, factor, notes)
    return _judge_gradient(probe, measured, factor, notes)


def _judge_swaps(probe: Probe, padded: bool, factor: float, notes: list[str]) -> BatchIndependence:
    swaps = probe.row_swaps(padded)
    limit = same_shape_limit(swaps.reference, factor)
    value, index = worst_row(swaps)
    measured = BatchIndependence(
        value=value,
        limit=limit,
        row=swaps.kept[index] if value > limit.value else None,
        rows=swaps.before.rows,
        own_effect=swaps.own_effect,
    )
    if not value <= limit.value:
        verdict = settle(
            value, limit, lambda: probe.repeated(lambda p: worst_row(p.row_swaps(padded))[0])
        )
        notes.extend(verdict.notes)
        if verdict.exceeded:
            where = probe.locate_row(swaps, index)
            what = "were replaced and padded differently" if padded else "were replaced"
            text = _text(measured, swaps, index, where, what, notes)
            raise CheckFailed(text, measured, where=where)
    return measured


def _judge_gradient(
    probe: Probe, measured: BatchIndependence, factor: float, notes: list[str]
) -> BatchIndependence:
    try:
        matrix = probe.row_gradients()
    except Exception as error:  # noqa: BLE001 - a model need not support a backward in eval mode
        notes.append(f"no gradient could be read (decided by replacing rows): {error}"[:200])
        matrix = None
    if matrix is None:
        return BatchIndependence(**{**vars(measured), "notes": tuple(notes)})
    if not float(matrix.sum()) < float("inf"):
        notes.append("the gradient holds NaN (see gradient_flow): decided by replacing rows")
        return BatchIndependence(**{**vars(measured), "notes": tuple(notes)})
    value, row, source = other_row_leak(matrix)
    limit = factor * probe.eps * float(matrix.max())
    result = BatchIndependence(
        **{**vars(measured), "gradient": value, "gradient_limit": limit, "notes": tuple(notes)}
    )
    if not value <= limit:
        where = probe.locate_row_gradient(row, source)
        raise CheckFailed(
            f"{RULE}\n"
            f"the gradient of row {row} at the input of row {source} is {value:.2g} "
            f"(limit {limit:.2g} = {factor:g} u), of at most {float(matrix.max()):.2g}\n"
            f"first module to differ: {where or 'none stands out'}\n"
            f"likely: {_likely()}",
            result,
            where=where,
        )
    return result


def _text(
    measured: BatchIndependence,
    swaps: RowSwaps,
    index: int,
    where: str | None,
    what: str,
    notes: list[str],
) -> str:
    return "\n".join(
        [
            RULE,
            f"row {swaps.kept[index]} of {measured.rows} moved by {measured.value:.2g} "
            f"(limit {measured.limit}) when the other rows {what}",
            f"first module to differ: {where or 'none stands out'}",
            f"likely: {_likely_mask() if 'padded' in what else _likely()}",
            *notes,
        ]
    )


def _likely_mask() -> str:
    return "one row's mask is used for every row (mask[:1], mask[0], or a mask that was cached)"


def _likely() -> str:
    return (
        "a view or reshape that exchanges the batch axis with another one, batch_first=False in "
        "nn.MultiheadAttention, or a mean, softmax or norm over axis 0"
    )
