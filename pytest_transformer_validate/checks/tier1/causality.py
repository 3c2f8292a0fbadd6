"""No output of an autoregressive model knows a later token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.registry import check
from pytest_transformer_validate.errors import Blocked, CheckFailed, NotApplicable, first_line
from pytest_transformer_validate.measures.dependency import (
    Causality,
    Leak,
    context_effect,
    effects,
    leaking,
    upper_leak,
    worst_leak,
)
from pytest_transformer_validate.measures.tolerance import (
    same_shape_limit,
    settle_in_doubt,
)

if TYPE_CHECKING:
    from pytest_transformer_validate.measures.measurement import Limit
    from pytest_transformer_validate.probe.positions import Plan, Swaps
    from pytest_transformer_validate.probe.probe import Probe
    from pytest_transformer_validate.probe.rows import RowSwaps

RULE = "logits of a causal LM must not change when a later token changes"
_LIKELY = {
    "masked": "the causal mask is dropped, or overwritten, when an attention mask is given",
    "special": "the mask that separates texts or hides padding replaces the causal one",
    "long": "the mask (or a chunk, or a window) is right for short texts only",
}
_CONFIRMED = 5  # experiments that are repeated with their text alone in the batch
WAY_OUT = 'an encoder? declare it: --tb-task=masked_lm, or "task" in config.json'


@check(tier=1, tasks=("causal_lm", "seq2seq"))
def causality(probe: Probe, *, factor: float = 16.0) -> Causality:
    """The output at a position depends on no later token.

    Every token of a short text is replaced in turn, and whole suffixes: as it is, with an
    explicit attention mask, in a text with special ids, with every parameter moved at random (a
    gate that starts at zero hides what is behind it), and some tokens of a text of full length;
    and the gradient of every output at every token vector is read in one backward, in eval and
    in training mode. Shapes are the same throughout, so the expected movement is exactly 0;
    ``factor`` u are allowed.
    """
    if probe.subject.task.task_type == "seq2seq" and not probe.subject.decodes:
        if probe.subject.signature.takes("labels"):
            raise NotApplicable("forward makes its decoder input from labels")
        raise CheckFailed(
            "the task seq2seq is declared, and forward takes no decoder input\n"
            f"signature: {probe.subject.signature.text[:200]}\n"
            'declare another task: --tb-task=causal_lm, or "task" in config.json'
        )
    if probe.subject.sizes[1] < 2:
        raise NotApplicable("the longest text is one token")
    plans = probe.swap_plans()
    given = probe.subject.given.causal_mask
    notes = [] if given is None else [f"the causal mask is given by the caller: {given}"]
    results = [_judge_swaps(probe, plan, factor, notes) for plan in plans]
    by_name = {plan.name: result for plan, result in zip(plans, results, strict=True)}
    if by_name["every"].context == 0 and by_name["noised"].context > 0:
        notes.append("as loaded, no token reaches a later one; with moved parameters it does")
    return _judge_gradient(probe, results[0], factor, notes)


def _judge_swaps(probe: Probe, plan: Plan, factor: float, notes: list[str]) -> Causality:
    swaps = probe.position_swaps(plan)
    limit = same_shape_limit(swaps.reference, factor)
    leak = worst_leak(swaps, limit.value)
    tried, moved = effects(swaps)
    measured = Causality(
        value=leak.value,
        limit=limit,
        position=leak.position if leak.value > limit.value else None,
        replaced=leak.replaced if leak.value > limit.value else None,
        ahead=leak.ahead,
        looking=leak.looking,
        length=swaps.reference.shape[1],
        experiments=len(swaps.start),
        context=context_effect(swaps),
        tried=tried,
        effects=moved,
    )
    if leak.value <= limit.value:
        return measured
    alone = max(
        float(probe.single_swap(swaps, row)[: swaps.start[row]].max())
        for row in leaking(swaps, limit.value)[:_CONFIRMED]
    )
    if alone <= limit.value:
        notes.append("earlier outputs move only when other rows change: see batch_independence")
        return measured
    require_repeatable(probe, swaps, limit.value)

    def again(other: Probe) -> float:
        return worst_leak(other.position_swaps(plan), 0).value

    verdict = settle_in_doubt(probe, alone, limit, again)
    notes.extend(verdict.notes)
    if verdict.exceeded:
        where, ahead = probe.locate_position(swaps, _telling(swaps, leak, limit))
        likely = _likely(probe, leak, ahead or leak.ahead, swaps)
        text = _swap_text(probe, measured, limit, leak, swaps, where, likely, notes)
        raise CheckFailed(text, measured, where=where)
    return measured


def require_repeatable(probe: Probe, swaps: Swaps | RowSwaps, limit: float) -> None:
    """Raise Blocked where the very same batch gives other logits the second time."""
    moved = probe.repeats(swaps)
    if moved > limit:
        raise Blocked(
            f"the same batch twice gives logits that differ by {moved:.2g} in eval mode: the "
            "model draws random numbers or keeps something from one call for the next"
        )


def _judge_gradient(
    probe: Probe, measured: Causality, factor: float, notes: list[str]
) -> Causality:
    """The same by gradient, in eval and in training mode."""
    for mode in ("eval", "training"):
        try:
            matrix = probe.position_gradients(mode)
        except Exception as error:  # noqa: BLE001 - a model need not support a backward here
            notes.append(f"no gradient could be read in {mode} mode: {first_line(error)}")
            continue
        if matrix is None:
            continue
        value, position, token = upper_leak(matrix)
        limit = factor * probe.eps * float(matrix.max())
        if mode == "eval" or not value <= limit:
            numbers = {"gradient": value, "gradient_limit": limit}
            measured = Causality(**{**vars(measured), **numbers})
        if not value <= limit and float(probe.single_gradient(position, mode)[token]) > limit:
            raise CheckFailed(
                f"{RULE}\n"
                f"in {mode} mode, the gradient of position {position} at token {token} is "
                f"{value:.2g} (limit {limit:.2g} = {factor:g} u), of at most "
                f"{float(matrix.max()):.2g}; replacing tokens moved nothing in eval mode\n"
                f"likely: {_MODE[mode]}\n{WAY_OUT}",
                measured,
            )
    return Causality(**{**vars(measured), "notes": tuple(notes)})


_MODE = {
    "training": "the causal mask is applied in eval mode only (is_causal=not self.training)",
    "eval": "the path that runs with gradients has another mask, or the dependency is saturated",
}


def _swap_text(
    probe: Probe,
    measured: Causality,
    limit: Limit,
    leak: Leak,
    swaps: Swaps,
    where: str | None,
    likely: str,
    notes: list[str],
) -> str:
    moved = " (all parameters moved at random)" if swaps.condition == "noised" else ""
    what = f"token {leak.replaced} of {measured.length} was"
    if swaps.suffix[leak.experiment] and leak.replaced < measured.length - 1:
        what = f"tokens {leak.replaced} to {measured.length - 1} of {measured.length} were"
    reach = _reach(leak, measured.length)
    return "\n".join(
        [
            RULE,
            f"position {leak.position} moved by {leak.value:.2g} (limit {limit}) when {what} "
            f"replaced{moved}{reach}",
            f"first module to differ: {where or 'none stands out'}",
            f"likely: {likely}",
            *notes,
            *_left_out(probe, measured),
            WAY_OUT,
        ]
    )


def _left_out(probe: Probe, measured: Causality) -> list[str]:
    """What to do where the caller may give a mask and everything looks ahead without it."""
    offered = ", ".join(probe.subject.signature.offered)
    if not offered or measured.looking < measured.length - 1:
        return []
    return [
        f"forward was called without its optional {offered}: make the causal mask where none is "
        "given, or require it (no default) if the caller has to make it"
    ]


def _reach(leak: Leak, length: int) -> str:
    if not leak.ahead:
        return ""
    if leak.ahead == (leak.ahead[0],):
        how = f"look {leak.ahead[0]} ahead"
    elif len(leak.ahead) >= length - 2:
        how = "look ahead over every distance"
    else:
        how = f"look up to {leak.ahead[-1]} ahead"
    return f"; {leak.looking} of {length - 1} positions {how}"


def _telling(swaps: Swaps, leak: Leak, limit: Limit) -> int:
    """The experiment that shows the pattern best: the last single token that anything sees."""
    singles = [
        row
        for row, start in enumerate(swaps.start)
        if not swaps.suffix[row] and float(swaps.effect[row, :start].max()) > limit.value
    ]
    return singles[-1] if singles else leak.experiment


def _likely(probe: Probe, leak: Leak, ahead: tuple[int, ...], swaps: Swaps) -> str:
    """The usual mistake behind a pattern of forbidden dependencies.

    ``ahead`` are the distances over which the first module to differ looks ahead.
    """
    length = swaps.reference.shape[1]
    known = _LIKELY.get(swaps.condition)
    if known is not None:
        return known
    if not ahead or not _in_gradient(probe):
        return "a choice (routing, top-k, argmax) is made over the whole sequence"
    if ahead == (1,) and leak.looking > 1:
        return "the mask is shifted by one (diagonal=2 instead of 1), or inputs are not shifted"
    if ahead[-1] <= length // 2:
        return "a convolution or window that reaches to both sides (padding='same')"
    if leak.value < 1e-2 * context_effect(swaps):
        return (
            "a statistic over the whole sequence (mean, maximum, norm) enters every position, or "
            "the mask adds too small a number"
        )
    if leak.looking < length - 1:
        return "some rows of the mask are open: built for another length, or filled the wrong way"
    return "no causal mask is applied in at least one layer or head, or it is added after softmax"


def _in_gradient(probe: Probe) -> bool:
    """Whether the gradient sees any leak; yes where it cannot be read."""
    try:
        matrix = probe.position_gradients("eval")
    except Exception:  # noqa: BLE001 - a model need not support a backward in eval mode
        return True
    return matrix is None or upper_leak(matrix)[0] > 0
