"""A row of a batch is alone in the world."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.registry import check
from pytest_transformer_validate.checks.tier1.causality import require_repeatable
from pytest_transformer_validate.errors import CheckFailed, first_line
from pytest_transformer_validate.measures.dependency import (
    BatchIndependence,
    other_row_leak,
    worst_row,
)
from pytest_transformer_validate.measures.tolerance import (
    same_shape_limit,
    settle_in_doubt,
)

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.probe import Probe
    from pytest_transformer_validate.probe.rows import RowSwaps

RULE = "a row's logits must not depend on the other rows of the batch"


@check(tier=1)
def batch_independence(probe: Probe, *, factor: float = 16.0) -> BatchIndependence:
    """The output of a row depends on no other row of its batch.

    All rows but one or two are replaced, in a full batch and in a smaller one, and the gradient
    of a row's output at another row's input is read. B and T differ, because equal ones hide an
    exchanged axis. The expected movement is exactly 0; ``factor`` u are allowed.
    """
    notes: list[str] = []
    results = [_judge_swaps(probe, plan, factor, notes) for plan in probe.row_plans()]
    return _judge_gradient(probe, results[0], factor, notes)


def _judge_swaps(probe: Probe, plan: str, factor: float, notes: list[str]) -> BatchIndependence:
    swaps = probe.row_swaps(plan)
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
        require_repeatable(probe, swaps, limit.value)
        verdict = settle_in_doubt(probe, value, limit, lambda p: worst_row(p.row_swaps(plan))[0])
        notes.extend(verdict.notes)
        if verdict.exceeded:
            where = probe.locate_row(swaps, index)
            text = _text(measured, swaps, index, where, [*notes, *_way_out(probe)])
            raise CheckFailed(text, measured, where=where)
    return measured


def _judge_gradient(
    probe: Probe, measured: BatchIndependence, factor: float, notes: list[str]
) -> BatchIndependence:
    try:
        matrix = probe.row_gradients()
    except Exception as error:  # noqa: BLE001 - a model need not support a backward in eval mode
        notes.append(f"no gradient could be read (decided by replacing rows): {first_line(error)}")
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
            f"likely: {_MIXED}",
            result,
            where=where,
        )
    return result


def _way_out(probe: Probe) -> list[str]:
    """Where rows see each other as the tokens of a text should, and these do not."""
    if not probe.subject.facts.rank > 2 or "batch_first" in probe.subject.config:
        return []
    swaps = probe.position_swaps(next(p for p in probe.swap_plans() if p.name == "every"))
    if len(swaps.start) < 2 or int((probe.single_swap(swaps, 0) > 0).sum()) > 1:
        return []
    return [
        "the tokens of a text do not see each other: ids (length, batch) on purpose? declare it: "
        '"batch_first": false in config.json'
    ]


_WHAT = {
    "padded": "the other rows were replaced and their padding was left out",
    "noised": "the other rows were replaced (all parameters moved at random)",
    "rolled": "all rows took the place of the next one",
}
_LIKELY = {
    "padded": "one row's mask is used for all (mask[:1], a cached mask), a total over all masks, "
    "or repeat where repeat_interleave is meant",
    "rolled": "something is looked up or computed by the number of the row",
}


def _text(
    measured: BatchIndependence,
    swaps: RowSwaps,
    index: int,
    where: str | None,
    notes: list[str],
) -> str:
    what = _WHAT.get(swaps.condition, "the other rows were replaced")
    return "\n".join(
        [
            RULE,
            f"row {swaps.kept[index]} of {measured.rows} moved by {measured.value:.2g} "
            f"(limit {measured.limit}) when {what}",
            f"first module to differ: {where or 'none stands out'}",
            f"likely: {_LIKELY.get(swaps.condition, _MIXED)}",
            *notes,
        ]
    )


_MIXED = (
    "a view or reshape that exchanges the batch axis with another one, batch_first=False in "
    "nn.MultiheadAttention, a mean, softmax or norm over axis 0, or a capacity or total that all "
    "rows share"
)
