"""The size of a text, or of a batch, changes nothing for what stands in it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.registry import check
from pytest_transformer_validate.errors import Blocked, CheckFailed, NotApplicable
from pytest_transformer_validate.measures.dependency import upper_leak, worst_leak
from pytest_transformer_validate.measures.invariance import Invariance, worse
from pytest_transformer_validate.measures.tolerance import (
    same_shape_limit,
    settle,
    settle_in_doubt,
    two_shapes_limit,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_transformer_validate.measures.measurement import Limit
    from pytest_transformer_validate.measures.tolerance import Repeat
    from pytest_transformer_validate.probe.probe import Probe
    from pytest_transformer_validate.probe.resized import Resized

_MOVED = {"eval": "", "noised": " (all parameters moved at random)"}


def _conditions(probe: Probe) -> tuple[str, ...]:
    """Moving all parameters of a large model costs more than the runs."""
    return ("eval", "noised") if probe.subject.small else ("eval",)


@check(tier=1, tasks=("causal_lm", "seq2seq"))
def prefix_consistency(probe: Probe, *, factor: float = 64.0) -> Invariance:
    """The logits of the first k tokens are the same with and without the tokens after them.

    Beyond causality: no tokens are replaced, there are fewer. Texts are short, so that every
    window, chunk and choice holds all of them, and one is long, for which a limit that anything
    tells of is an excuse; two lengths round differently, so ``factor`` u are allowed, or 16 times
    the model's own noise.
    """
    if probe.subject.task.task_type == "seq2seq" and not probe.subject.decodes:
        raise NotApplicable("forward takes no decoder input")
    if not probe.resizing.prefix_sizes():
        raise NotApplicable("the longest text is too short to have a prefix")
    if _leaks(probe):
        raise NotApplicable("outputs depend on later tokens: see causality")
    measured = None
    for condition in _conditions(probe):
        runs = probe.resizing.prefixes(condition)
        limit = two_shapes_limit(runs.reference, probe.noise(), factor)
        found = _measure(runs, limit, probe.subject.sizes[1])
        if not found.value_over():
            measured = worse(measured, found)
            continue
        value, size = runs.worst
        stretched = probe.resizing.stretched(size, probe.subject.sizes[1])
        if stretched is not None:
            return Invariance(notes=(stretched,))
        verdict = settle_in_doubt(probe, value, limit, _worst_prefix(condition))
        if not verdict.exceeded:
            measured = worse(measured, found.noting(verdict.notes))
            continue
        where = probe.resizing.locate_prefix(condition, size)
        raise CheckFailed(
            "the logits of a prefix must not depend on how many tokens follow it\n"
            f"position {runs.place[size]} moved by {value:.2g} (limit {limit}) when {size} of "
            f"{probe.subject.sizes[1]} tokens were given{_MOVED[condition]}\n"
            f"first module to differ: {where or 'none stands out'}\n"
            "likely: positions are counted from the end, or something is divided or scaled by "
            "the length of the text",
            found,
            where=where,
        )
    assert measured is not None
    return _judge_long(probe, measured, factor)


def _judge_long(probe: Probe, measured: Invariance, factor: float) -> Invariance:
    """The same for one long text: what depends on the length may begin above some length."""
    sizes = probe.resizing.long_sizes()
    if sizes is None:
        return measured
    length, size = sizes
    condition = _conditions(probe)[-1]
    try:
        runs = probe.resizing.long_prefix(length, size, condition)
    except Blocked:
        return measured  # causality says what a long text raises
    limit = two_shapes_limit(runs.reference, probe.noise(), factor)
    found = _measure(runs, limit, length)

    def again() -> tuple[float, str]:
        return probe.repeated(lambda p: p.resizing.long_prefix(length, size, condition).worst[0])

    verdict = settle(runs.worst[0], limit, again, sure=math.inf)
    if not verdict.exceeded:
        return worse(measured, found.noting(verdict.notes)) if not verdict.notes else measured
    stretched = probe.resizing.stretched(size, length)
    if stretched is not None:
        return measured.noting((stretched,))
    where = probe.resizing.locate_prefix(condition, size, length)
    inside = where if where != probe.root else None
    told = probe.tells_of_limits() and probe.tells_of_limits(inside=inside)
    if told:
        note = f"{size} of {length} tokens give other logits: a pattern by length ({told})"
        return measured.noting((note,))
    raise CheckFailed(
        "the logits of a prefix must not depend on how many tokens follow it\n"
        f"position {runs.place[size]} moved by {found.value:.2g} (limit {limit}) when {size} of "
        f"{length} tokens were given{_MOVED[condition]}; shorter texts agree\n"
        f"first module to differ: {where or 'none stands out'}\n"
        "likely: a scale by the length of the text that begins above some length, or positions "
        "that are stretched to it",
        found,
        where=where,
    )


def _worst_prefix(condition: str) -> Callable[[Probe], float]:
    return lambda probe: probe.resizing.prefixes(condition).worst[0]


def _leaks(probe: Probe) -> bool:
    """Whether replacing a later token moves an earlier output (causality judges that)."""
    plan = next(p for p in probe.swap_plans() if p.name == "every")
    swaps = probe.position_swaps(plan)
    limit = same_shape_limit(swaps.reference).value
    if worst_leak(swaps, limit).value > limit:
        return True
    try:
        matrix = probe.position_gradients("eval")
    except Exception:  # noqa: BLE001 - a model need not support a backward in eval mode
        return False
    return matrix is not None and upper_leak(matrix)[0] > 16 * probe.eps * float(matrix.max())


def _measure(runs: Resized, limit: Limit, largest: int) -> Invariance:
    value, size = runs.worst
    return Invariance(value=value, limit=limit, size=size, largest=largest, moved=runs.moved)


@check(tier=1)
def batch_size_invariance(probe: Probe, *, factor: float = 64.0) -> Invariance:
    """A row gives the same alone, in a small batch and in a full one.

    Two batch sizes round differently: ``factor`` u are allowed, and what is above is repeated in
    float64, where rounding vanishes and a choice between near ties (routing) is made alike.
    """
    if probe.subject.most_rows < 2:
        raise NotApplicable("the largest batch is one row")
    measured = None
    for condition in _conditions(probe):
        runs = probe.resizing.rows(condition)
        limit = two_shapes_limit(runs.reference, 0.0, factor)
        found = _measure(runs, limit, len(runs.reference))
        if not found.value_over():
            measured = worse(measured, found)
            continue
        value, size = runs.worst
        verdict = settle(value, limit, _rows_again(probe, condition), sure=math.inf)
        if not verdict.exceeded:
            measured = worse(measured, found.noting(verdict.notes))
            continue
        row = runs.place[size]
        where = probe.resizing.locate_rows(condition, size, row)
        what = "alone" if size == 1 else f"in a batch of {size}"
        raise CheckFailed(
            "a row's logits must not depend on the size of its batch\n"
            f"row {row} {what} differs by {value:.2g} (limit {limit}) from the same row in a "
            f"batch of {found.largest}{_MOVED[condition]}\n"
            f"first module to differ: {where or 'none stands out'}\n"
            "likely: a sum over the batch is divided by its size, squeeze() drops the batch "
            "axis of a single row, or there is a branch for one row",
            found,
            where=where,
        )
    assert measured is not None
    return measured


def _rows_again(probe: Probe, condition: str) -> Repeat:
    return lambda: probe.repeated(lambda p: p.resizing.rows(condition).worst[0])
