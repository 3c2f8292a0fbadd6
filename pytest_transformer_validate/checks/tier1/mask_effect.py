"""A mask does what it says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.registry import check
from pytest_transformer_validate.checks.tier1.mask_reach import (
    TEXT_TASKS,
    WAY_OUT,
    excused_by,
    outputs_of,
    takes_no_mask,
)
from pytest_transformer_validate.errors import CheckFailed, NotApplicable
from pytest_transformer_validate.measures.measurement import Limit
from pytest_transformer_validate.measures.padding import (
    MaskEffect,
    content_limit,
    effect_floor,
    effect_limit,
)
from pytest_transformer_validate.measures.tolerance import (
    settle,
    shapes_limit,
    two_shapes_limit,
    unit,
)

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.padding import Content
    from pytest_transformer_validate.probe.probe import Probe
    from pytest_transformer_validate.subject.masks import Way


@check(tier=1, tasks=TEXT_TASKS)
def mask_effect(probe: Probe, *, floor: float = 256.0, two_shapes: float = 64.0) -> MaskEffect:
    """A mask hides tokens from the others, and a mask of ones hides nothing.

    Masking tokens has to move the outputs of the others by more than ``floor`` u, as loaded or
    with all parameters moved at random; a mask of ones gives what no mask gives (``two_shapes``
    u, because another kernel may run).
    """
    skipped: list[str] = []
    results = []
    for covers in probe.padding.sequences:
        way, refused = probe.padding.accepted(covers)
        if way is None:
            skipped.append(refused or takes_no_mask(probe, covers))
            continue
        results.append(_judge_mask(probe, covers, floor, two_shapes))
    if not results:
        raise NotApplicable("; ".join(skipped))
    return min(results, key=lambda r: r.value or 0.0)


def _judge_mask(probe: Probe, covers: str, floor: float, two_shapes: float) -> MaskEffect:
    passes = probe.padding
    way, inverted = passes.way(covers)
    assert way is not None
    layout = passes.layout(covers)
    notes = []
    if inverted and way.fixed:
        where = probe.leaks.locate_content(passes.content(way.inverted(), layout, "plain")).where
        raise CheckFailed(
            f"a mask must hide what it marks as padding\n{way.role} is read the other way round: "
            "tokens with 0 are seen and tokens with 1 are hidden\n"
            f"first module to differ: {where or 'none stands out'}\n"
            f"likely: masked_fill(mask, -inf) where masked_fill(mask == 0, -inf) is meant\n"
            f"{WAY_OUT}",
            MaskEffect(argument=way.role),
            where=where,
        )
    if not way.fixed:
        notes.append(f"{way.role}: {'True keeps' if way.keeps else 'True hides'} (measured)")
    says = probe.masks.against_its_name(way)
    if says:
        _refuse_reading(probe, way, says, floor)
    ones = _judge_ones(probe, way, two_shapes)
    found = passes.content(way, layout, "plain")
    if not passes.effect(found) > effect_floor(found.reference, floor):
        found = _require_effect(probe, way, layout, floor)
        notes.append("the mask shows its effect with moved parameters only")
    notes += _judge_each(probe, found, floor)
    notes += ones.notes
    notes += _dtype_notes(probe, way, two_shapes)
    least = effect_limit(found.reference, floor)
    limit = Limit(value=least.value, rule=f"at least {least.rule}")
    told = {"value": passes.effect(found), "limit": limit, "notes": tuple(notes)}
    return MaskEffect(**{**vars(ones), **told})


def _refuse_reading(probe: Probe, way: Way, says: str, floor: float) -> None:
    """Raise where it is sure that a mask means the opposite of what its name ``says``."""
    passes = probe.padding
    layout = passes.layout(way.covers)
    seen, hidden = ("True", "False") if way.keeps else ("False", "True")
    found = passes.content(way, layout, "plain")
    if not passes.holds(found) or not passes.effect(found) > effect_floor(found.reference, floor):
        return
    name = probe.subject.signature.names[way.role]
    other = passes.content(way.inverted(), layout, "plain")
    where = probe.leaks.locate_content(other).where
    raise CheckFailed(
        "a mask must hide what it marks as padding\n"
        f"{name} is read the other way round: {says}, and here tokens with {seen} are seen and "
        f"tokens with {hidden} are hidden ({outputs_of(probe, way.covers)} moved by "
        f"{other.moved:.2g} when other ids stood where it is {seen}, and by {found.moved:.2g} "
        f"where it is {hidden})\n"
        f"first module to differ: {where or 'none stands out'}\n"
        "likely: ~mask where mask is meant, or the reverse; or the mask is of the other kind, and "
        "is to be called attention_mask or padding_mask\n"
        f"{WAY_OUT}",
        MaskEffect(value=other.moved, argument=name),
        where=where,
    )


def _require_effect(probe: Probe, way: Way, layout: str, floor: float) -> Content:
    passes = probe.padding
    layout = f"full_{layout}"
    found = passes.content(way, layout, "noised")
    least = effect_limit(found.reference, floor)
    limit, effect = least.value, passes.effect(found)
    if effect > limit:
        return found
    if way.counts and passes.compares(way.covers):
        raise NotApplicable(f"{way.role} has no effect: forward looks for the padding id")
    if not probe.masks.without_mask(way, layout, "noised") > limit:
        raise NotApplicable("no token reaches another: there is nothing to hide")
    if passes.causal and not probe.masks.touched(way, way.role) and probe.masks.takes_anything:
        raise NotApplicable(
            f"nothing reads {way.role}, nor whatever else forward takes by **kwargs: pad on the "
            "right, where no token of a causal model looks"
        )
    if least.value < floor * unit(found.reference) and effect > 0 and not found.moved > limit:
        dtype = str(found.reference.dtype).removeprefix("torch.")
        raise NotApplicable(f"{dtype} is too coarse to tell what the mask hides from nothing")
    # what no mask reaches excuses one that is read; one that nothing reads is ignored
    excuse = excused_by(probe, found, layout, content_limit(found, 16))
    if excuse is not None and probe.masks.touched(way, way.role):
        raise NotApplicable(excuse)
    where = probe.leaks.locate_content(found).where
    likely = f"{way.role} is accepted and not used, or not handed on"
    heard = _heard(probe, way, limit)
    if heard:
        likely = f"{heard} has: the mask's dtype is asked for, or not converted"
        where = where if probe.masks.touched(way, way.role) else probe.root
    raise CheckFailed(
        "a mask must hide tokens from the others\n"
        f"masking tokens by {way.role} moved {outputs_of(probe, way.covers)} by "
        f"{effect:.2g} (at least {limit:.2g} = {least.rule} expected), and replacing the "
        f"masked tokens moves them by {found.moved:.2g}\n"
        f"first module that sees masked tokens: {where or 'none stands out'}\n"
        f"likely: {likely}\n"
        f"{WAY_OUT}",
        MaskEffect(
            value=effect,
            limit=Limit(value=limit, rule=f"at least {least.rule}"),
            argument=way.role,
        ),
        where=where,
    )


def _judge_each(probe: Probe, found: Content, floor: float) -> list[str]:
    """Of masks that have to say the same, each has an effect of its own where tokens that it
    marks have one; what is said by another one already is a note."""
    way, passes = found.way, probe.padding
    silent = probe.masks.silent(found) if way.together else []
    if not silent:
        return []
    if probe.subject.small and found.condition == "plain":
        found = passes.content(way, f"full_{passes.layout(way.covers)}", "noised")
        silent = probe.masks.silent(found)
    names = {role: probe.subject.signature.names[role] for role in silent}
    limit = effect_floor(found.reference, floor)
    for role, name in names.items():
        if not found.moved > limit:
            continue
        where = probe.leaks.locate_content(found).where
        if not probe.masks.touched(way, role):
            where = probe.root
        raise CheckFailed(
            "a mask must hide tokens from the others\n"
            f"{name} alone moves {outputs_of(probe, way.covers)} by 0, and replacing the tokens "
            f"that it marks moves them by {found.moved:.2g} (limit {limit:.2g})\n"
            f"first module that sees masked tokens, or leaves the mask unread: "
            f"{where or 'none stands out'}\n"
            f"likely: {name} is accepted and not handed on\n"
            f"{WAY_OUT}",
            MaskEffect(value=0.0, argument=name),
            where=where,
        )
    return [f"{name} has no effect of its own" for name in names.values()]


def _judge_ones(probe: Probe, way: Way, factor: float) -> MaskEffect:
    if way.role in probe.subject.signature.required:
        return MaskEffect(argument=way.role)
    value, reference = probe.masks.no_mask(way)
    limit = shapes_limit(value, reference, probe.noise, factor)
    measured = MaskEffect(argument=way.role, ones=value, ones_limit=limit.value)

    def again(other: Probe) -> float:
        return other.masks.no_mask(way)[0]

    if value <= limit.value or not settle(value, limit, lambda: probe.repeated(again)).exceeded:
        return measured
    broadcast = bool(way.axes) or way.pairs  # so it may be (B, 1, T, T), too
    if not way.ones or (broadcast and not way.fixed):
        note = f"{way.role} of ones is not the same as none: it may carry a causal mask too"
        if not way.ones:
            note = f"{way.role} of full texts is not the same as none"
        return MaskEffect(**{**vars(measured), "notes": (note,)})
    where = probe.leaks.locate_no_mask(way)
    raise CheckFailed(
        "a mask that keeps everything must give what no mask gives\n"
        f"outputs moved by {value:.2g} (limit {limit}) when {way.role} of ones was given\n"
        f"first module to differ: {where or 'none stands out'}\n"
        "likely: the path with a mask has another scale, bias or causal part than the one "
        "without, or the default mask hides something\n"
        f"{WAY_OUT}",
        MaskEffect(**{**vars(measured), "value": value, "limit": limit}),
        where=where,
    )


def _heard(probe: Probe, way: Way, limit: float) -> str:
    """In words, the masks of other dtypes that have an effect where this one has none."""
    if not way.ones or not probe.subject.small:
        return ""
    found = probe.masks.other_dtypes(way)
    names = [name for name, moved in found.items() if not isinstance(moved, str) and moved > limit]
    own = str(way.dtype).removeprefix("torch.")
    return f"a mask of {own} has no effect, one of {' or '.join(names)}" if names else ""


def _dtype_notes(probe: Probe, way: Way, factor: float) -> list[str]:
    if not way.ones or not probe.subject.small:
        return []
    found = probe.padding.content(way, probe.padding.layout(way.covers), "plain")
    limit = two_shapes_limit(found.reference, 0.0, factor).value
    notes = []
    for name, moved in probe.masks.other_dtypes(way).items():
        if isinstance(moved, str):
            notes.append(f"a mask of {name} raises {moved}")
        elif not moved <= limit:
            notes.append(f"a mask of {name} says something else ({moved:.2g})")
    return notes
