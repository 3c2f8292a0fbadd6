"""Padding changes nothing: neither what stands under a mask, nor how much of it there is."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.registry import check
from pytest_transformer_validate.checks.tier1.mask_reach import (
    CONVOLVES,
    NOTHING_LEFT,
    REACHED_BY_NONE,
    TEXT_TASKS,
    WAY_OUT,
    excused_by,
    in_words,
    outputs_of,
    require_repeatable,
    usable_way,
)
from pytest_transformer_validate.checks.tier1.padded_texts import judge_left, judge_right
from pytest_transformer_validate.errors import CheckFailed, NotApplicable
from pytest_transformer_validate.measures.padding import (
    PaddingInvariance,
    closer_to_limit,
    content_limit,
    worst_case,
)
from pytest_transformer_validate.measures.tolerance import settle_in_doubt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_transformer_validate.measures.measurement import Limit
    from pytest_transformer_validate.probe.padding import Content
    from pytest_transformer_validate.probe.probe import Probe
    from pytest_transformer_validate.subject.masks import Way

_RULE = "outputs of real tokens must not depend on what stands under the mask"
_WEAK = (
    "the mask adds too small a number (-10 instead of -inf), or a statistic (mean, norm) is taken "
    "over all positions"
)
_OPEN = (
    "the mask is not applied in at least one layer, head or in cross attention; it is applied to "
    "the queries' axis, combined by or, or another row's; or pooling includes padding"
)
_DROPPED = "the mask is dropped where all rows are equally long"


@check(tier=1, tasks=TEXT_TASKS, cases=("content", "right", "left"))
def padding(
    probe: Probe, case: str, *, factor: float = 16.0, two_shapes: float = 64.0
) -> PaddingInvariance:
    """Padding does not change the outputs of real tokens.

    ``content``: the ids under the mask are replaced, the shape is the same: exactly 0 is
    expected, ``factor`` u are allowed. ``right`` and ``left``: texts of several lengths are
    padded and compared with the texts alone: ``two_shapes`` u, or 16 times the model's noise.
    A model is told about padding by a mask argument, or finds it by its id; on the left only
    where it takes positions, or its outputs show that it needs none.
    """
    if case == "content":
        return _judge_contents(probe, factor)
    if case == "right":
        return judge_right(probe, two_shapes)
    return judge_left(probe, two_shapes)


def _judge_contents(probe: Probe, factor: float) -> PaddingInvariance:
    skipped: list[str] = []
    results = []
    for covers in probe.padding.sequences:
        way, reason = usable_way(probe, covers)
        if way is None:
            skipped.append(reason)
            continue
        results.append(_judge_content(probe, way, factor))
    return worst_case(results, skipped)


def _judge_content(probe: Probe, way: Way, factor: float) -> PaddingInvariance:
    notes: list[str] = []
    layout = probe.padding.layout(way.covers)
    plans = [(layout, "plain")]
    if probe.subject.small:
        plans += [(f"full_{layout}", "noised")]
        plans[1:1] = [] if way.counts else [(f"equal_{layout}", "plain")]
    measured = PaddingInvariance()
    effect = probe.padding.effect(probe.padding.content(way, layout, "plain"))
    for name, condition in plans:
        found = probe.padding.content(way, name, condition)
        limit = content_limit(found, factor)
        before = measured
        value, held = closer_to_limit(found.moved, limit, before)
        measured = PaddingInvariance(
            value=value,
            limit=held,
            argument=way.role,
            effect=effect,
            comparisons=measured.comparisons + 1,
            notes=tuple(notes),
        )
        if not found.moved <= limit.value:
            moved = _settle_content(probe, found, name, limit, measured, notes)
            value, held = closer_to_limit(moved, limit, before)
            measured = replace(measured, value=value, limit=held)
    return replace(measured, notes=tuple(dict.fromkeys(notes)))


def _settle_content(
    probe: Probe,
    found: Content,
    layout: str,
    limit: Limit,
    measured: PaddingInvariance,
    notes: list[str],
) -> float:
    """How far outputs move, structure aside; raises where they should not."""
    way, passes = found.way, probe.padding
    require_repeatable(probe, found.before, found.condition, limit)
    verdict = settle_in_doubt(
        probe, found.moved, limit, lambda p: p.padding.content(way, layout, found.condition).moved
    )
    notes.extend(verdict.notes)
    if not verdict.exceeded:
        return found.moved
    place = probe.leaks.locate_content(found)
    for moved, note in _content_aside(probe, found, layout, place.kind):
        if moved is not None and moved <= limit.value:
            notes.append(note)
            return moved
    if (
        place.kind == "ids"
        and not passes.causal
        and probe.masks.vectors(way, layout, found.condition)
    ):
        place = probe.leaks.locate_vectors(way, layout, found.condition)
    where = place.where
    excuse = excused_by(probe, found, layout, limit) or REACHED_BY_NONE.get(place.kind)
    if excuse is not None:
        raise NotApplicable(excuse)
    effect = passes.effect(found)
    likely = _OPEN if found.moved > 1e-2 * effect else _WEAK
    if found.moved != found.moved:
        likely = NOTHING_LEFT
    if layout.startswith("equal"):
        likely = _DROPPED
    elif layout.startswith("full"):
        likely = f"{_OPEN}; or the mask is dropped where the first row has no padding"
    raise CheckFailed(
        "\n".join(
            [
                _RULE,
                f"{outputs_of(probe, way.covers)} moved by {found.moved:.2g} (limit {limit}) when "
                f"other ids stood where {way.role} says padding{in_words(found.condition)}; "
                f"the mask as such moves them by {effect:.2g}",
                f"first module to differ: {where or 'none stands out'}",
                f"likely: {likely}",
                *notes,
                WAY_OUT,
            ]
        ),
        measured,
        where=where,
    )


def _content_aside(
    probe: Probe, found: Content, layout: str, kind: str | None
) -> Iterator[tuple[float | None, str]]:
    """How far outputs move when that is left aside which no mask reaches, and what that is."""
    way, passes = found.way, probe.padding
    zeros = passes.content(way, layout, found.condition, blank=True)
    yield zeros.moved, f"{CONVOLVES}; zeros are put there"
    if kind == "ids":
        yield (
            probe.masks.vectors(way, layout, found.condition),
            f"{REACHED_BY_NONE[kind]}; the ids stay, other vectors are read",
        )
