"""Texts that are padded, on the right or on the left, give what the texts alone give."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.tier1.mask_reach import (
    CONVOLVES,
    NOTHING_LEFT,
    PAD_LEFT,
    POOLS,
    REACHED_BY_NONE,
    WAY_OUT,
    in_words,
    outputs_of,
    pads_left,
    require_repeatable,
    usable_way,
)
from pytest_transformer_validate.errors import CheckFailed, NotApplicable
from pytest_transformer_validate.measures.padding import (
    PaddingInvariance,
    closer_to_limit,
    effect_floor,
    lengths_limit,
    worst_case,
    worst_length,
)
from pytest_transformer_validate.measures.tolerance import settle_in_doubt

if TYPE_CHECKING:
    from pytest_transformer_validate.measures.measurement import Limit
    from pytest_transformer_validate.probe.padded_texts import Lengths
    from pytest_transformer_validate.probe.probe import Probe

_RULES = {
    "right": "a text padded on the right must give the outputs of the text alone",
    "left": "a text padded on the left must give the outputs of the text alone",
}
_LENGTHS = {
    "right": "pooling takes the last column, or one off; a mean or norm divides by the padded "
    "length; positions are counted from the padded end; or the mask leaves padding in",
    "left": "positions count the padding although position_ids are given, or the mask leaves "
    "padding in where it stands in front",
}


def judge_right(probe: Probe, factor: float) -> PaddingInvariance:
    skipped: list[str] = []
    results = []
    for covers in probe.padding.sequences:
        _require_declared(probe, covers, factor)
        way, reason = usable_way(probe, covers)
        by_id = probe.padding.compares(covers)
        trivial = probe.padding.causal and not by_id and way is None
        if way is None and not by_id and not trivial:
            skipped.append(reason)
            continue
        result = _judge_lengths(probe, covers, "right", factor)
        results.append(result)
    return worst_case(results, skipped)


def _require_declared(probe: Probe, covers: str, factor: float) -> None:
    """Raise where forward looks for another padding id than the declared one.

    Certain only where both show: a text filled up with the number that ids are compared with
    gives the outputs of the text alone, and one filled up with the declared id does not.
    """
    passes = probe.padding
    pad, others = passes.mistaken(covers)
    if pad is None or not others:
        return
    seen = probe.padded_texts.lengths(covers, "mixed", "right", "plain", filler=pad)
    moved, row = worst_length(seen)
    if not moved > effect_floor(seen.reference, 256):
        return
    for other in others:
        hidden = probe.padded_texts.lengths(covers, "mixed", "right", "plain", filler=other)
        value, _ = worst_length(hidden)
        limit = lengths_limit(hidden, probe.noise, factor)
        if not value <= limit.value:
            continue
        where = probe.leaks.locate_comparison(covers, other)
        raise CheckFailed(
            f"the padding id that is declared is the one that has to be hidden\n"
            f"{outputs_of(probe, covers)} moved by {moved:.2g} (limit {limit}) when a text of "
            f"{seen.lengths[row]} tokens was padded to {seen.size} with the declared padding id "
            f"{pad}; with {other}, which forward compares {covers} with, they moved by "
            f"{value:.2g}\n"
            f"module that compares: {where or 'none stands out'}\n"
            f"likely: the padding id is hard-coded as {other}\n"
            f"{WAY_OUT}",
            PaddingInvariance(value=moved, limit=limit, comparisons=2, lengths=(*seen.lengths,)),
            where=where,
        )


def judge_left(probe: Probe, factor: float) -> PaddingInvariance:
    passes = probe.padding
    if not passes.causal:
        raise NotApplicable("pad on the right: only decoders are padded on the left")
    covers = passes.sequences[0]
    way, reason = usable_way(probe, covers)
    if way is None:
        raise NotApplicable(f"pad on the right: {reason}")
    found = probe.padded_texts.lengths(covers, "mixed", "left", "plain")
    if worst_length(found)[0] != worst_length(found)[0]:
        raise NotApplicable(f"pad on the right: padding in front gives NaN, by {NOTHING_LEFT}")
    if passes.takes_positions:
        return _judge_lengths(probe, covers, "left", factor)
    limit = lengths_limit(found, probe.noise, factor)
    value, _ = worst_length(found)

    def again(other: Probe) -> float:
        return worst_length(other.padded_texts.lengths(covers, "mixed", "left", "plain"))[0]

    if not value <= limit.value and settle_in_doubt(probe, value, limit, again).exceeded:
        if probe.position_promise() is None:
            raise NotApplicable("pad on the right: a mask leaves a trace of what stands in front")
        raise NotApplicable(
            "pad on the right: forward takes no position_ids, and its positions count the padding"
        )
    return PaddingInvariance(value=value, limit=limit, argument=way.role, comparisons=1)


def _judge_lengths(probe: Probe, covers: str, side: str, factor: float) -> PaddingInvariance:
    passes, small = probe.padding, probe.subject.small
    plans = [("mixed", "plain")]
    way = passes.tells(covers)
    if small:
        plans += [("few", "noised")] if way else [("equal", "plain"), ("few", "noised")]
    if probe.padded_texts.longest is not None and not passes.causal:
        plans.append(("long", "plain"))
    notes: list[str] = []
    measured = PaddingInvariance()
    for plan, condition in plans:
        found = probe.padded_texts.lengths(covers, plan, side, condition)
        noise = probe.noise if condition == "plain" else lambda: 0.0
        limit = lengths_limit(found, noise, factor)
        moved, row = worst_length(found)
        before = measured
        value, held = closer_to_limit(moved, limit, before)
        measured = PaddingInvariance(
            value=value,
            limit=held,
            argument=None if way is None else way.role,
            comparisons=measured.comparisons + 1,
            lengths=tuple(sorted({*measured.lengths, *found.lengths})),
            notes=tuple(notes),
        )
        if not moved <= limit.value:
            moved = _settle_lengths(probe, found, plan, row, limit, measured, notes)
            value, held = closer_to_limit(moved, limit, before)
            measured = replace(measured, value=value, limit=held)
    return replace(measured, notes=tuple(dict.fromkeys(notes)))


def _settle_lengths(
    probe: Probe,
    found: Lengths,
    plan: str,
    row: int,
    limit: Limit,
    measured: PaddingInvariance,
    notes: list[str],
) -> float:
    """How far outputs move, structure aside; raises where they should not."""
    require_repeatable(probe, found.padded, found.condition, limit)

    def again(other: Probe) -> float:
        lengths = other.padded_texts.lengths(found.covers, plan, found.side, found.condition)
        return worst_length(lengths)[0]

    value = found.moved[row]
    verdict = settle_in_doubt(probe, value, limit, again)
    notes.extend(verdict.notes)
    if not verdict.exceeded:
        return value
    blank = probe.padded_texts.lengths(found.covers, plan, found.side, found.condition, blank=True)
    moved, _ = worst_length(blank)
    if moved <= limit.value:
        notes.append(f"{CONVOLVES}; zeros are put there")
        return moved
    place = probe.leaks.locate_lengths(found)
    where = place.where
    excuse = _excuse_lengths(probe, found, plan) or REACHED_BY_NONE.get(place.kind)
    if excuse is not None:
        raise NotApplicable(excuse)
    known = probe.padded_texts.filler is not None
    filler = "its padding id" if known else "one id (none is known to be for padding)"
    told = f"with {measured.argument or filler}"
    raise CheckFailed(
        "\n".join(
            [
                _RULES[found.side],
                f"{outputs_of(probe, found.covers)} moved by {value:.2g} (limit {limit}) when a "
                f"text of {found.lengths[row]} tokens was padded to {found.size} "
                f"{told}{in_words(found.condition)}",
                f"first module to differ: {where or 'none stands out'}",
                f"likely: {_LENGTHS[found.side]}",
                *notes,
                WAY_OUT,
            ]
        ),
        measured,
        where=where,
    )


def _excuse_lengths(probe: Probe, found: Lengths, plan: str) -> str | None:
    """Like ``excuse``, for texts of several lengths; an encoder has no side of its own."""
    encodes = probe.subject.task.task_type == "masked_lm"
    if found.side == "right" and not encodes and pads_left(probe, plan):
        return PAD_LEFT
    return POOLS if probe.shortens() else None
