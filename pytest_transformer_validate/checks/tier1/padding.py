"""Padding changes nothing, and a mask does what it says."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.registry import check
from pytest_transformer_validate.errors import Blocked, CheckFailed, NotApplicable
from pytest_transformer_validate.measures.padding import (
    MaskEffect,
    PaddingInvariance,
    content_limit,
    effect_floor,
    lengths_limit,
    worst_length,
)
from pytest_transformer_validate.measures.tolerance import settle, two_shapes_limit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_transformer_validate.measures.measurement import Limit
    from pytest_transformer_validate.probe.padded_texts import Lengths
    from pytest_transformer_validate.probe.padding import Content
    from pytest_transformer_validate.probe.probe import Probe
    from pytest_transformer_validate.subject.batch import Batch
    from pytest_transformer_validate.subject.masks import Way

TEXT_TASKS = ("causal_lm", "masked_lm", "seq2seq", "classification")
WAY_OUT = 'intended? declare it: "expect_fail" in config.json, or tb_expect_fail'
_RULES = {
    "content": "outputs of real tokens must not depend on what stands under the mask",
    "right": "a text padded on the right must give the outputs of the text alone",
    "left": "a text padded on the left must give the outputs of the text alone",
}
_WEAK = (
    "the mask adds too small a number (-10 instead of -inf), or a statistic (mean, norm) is taken "
    "over all positions"
)
_OPEN = (
    "the mask is not applied in at least one layer, head or in cross attention; it is applied to "
    "the queries' axis, combined by or, or another row's; or pooling includes padding"
)
_NOTHING_LEFT = (
    "a query that may see nothing: softmax over -inf only is NaN; use torch.finfo(dtype).min"
)
_DROPPED = "the mask is dropped where all rows are equally long"
_LENGTHS = {
    "right": "pooling takes the last column, or one off; a mean or norm divides by the padded "
    "length; positions are counted from the padded end; or the mask leaves padding in",
    "left": "positions count the padding although position_ids are given, or the mask leaves "
    "padding in where it stands in front",
}


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
        return _judge_right(probe, two_shapes)
    return _judge_left(probe, two_shapes)


# Ids under the mask...


def _judge_contents(probe: Probe, factor: float) -> PaddingInvariance:
    skipped: list[str] = []
    results = []
    for covers in probe.padding.sequences:
        way, reason = _usable(probe, covers)
        if way is None:
            skipped.append(reason)
            continue
        results.append(_judge_content(probe, way, factor))
    return _worst(results, skipped)


def _judge_content(probe: Probe, way: Way, factor: float) -> PaddingInvariance:
    notes: list[str] = []
    layout = probe.padding.layout(way.covers)
    plans = [(layout, "plain")]
    if probe.subject.small:
        plans += [(f"equal_{layout}", "plain"), (f"full_{layout}", "noised")]
    measured = PaddingInvariance()
    for name, condition in plans:
        found = probe.padding.content(way, name, condition)
        limit = content_limit(found, factor)
        before = measured
        value, held = _larger(found.moved, limit, before)
        measured = PaddingInvariance(
            value=value,
            limit=held,
            argument=way.role,
            effect=max(found.effect, measured.effect or 0.0),
            comparisons=measured.comparisons + len(found.after),
            notes=tuple(notes),
        )
        if not found.moved <= limit.value:
            moved = _settle_content(probe, found, name, limit, measured, notes)
            value, held = _larger(moved, limit, before)
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
    _require_repeatable(probe, found.before, found.condition, limit)
    verdict = settle(
        found.moved,
        limit,
        lambda: probe.repeated(lambda p: p.padding.content(way, layout, found.condition).moved),
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
    excuse = _excuse_content(probe, found, layout, limit) or _KINDS.get(place.kind)
    if excuse is not None:
        raise NotApplicable(excuse)
    likely = _OPEN if found.moved > 1e-2 * found.effect else _WEAK
    if found.moved != found.moved:
        likely = _NOTHING_LEFT
    if layout.startswith("equal"):
        likely = _DROPPED
    elif layout.startswith("full"):
        likely = f"{_OPEN}; or the mask is dropped where the first row has no padding"
    what = "the padding id" if found.filling else "other ids"
    raise CheckFailed(
        "\n".join(
            [
                _RULES["content"],
                f"{_outputs(probe, way.covers)} moved by {found.moved:.2g} (limit {limit}) when "
                f"{what} stood where {way.role} says padding{_moved_parameters(found.condition)}; "
                f"the mask as such moves them by {found.effect:.2g}",
                f"first module to differ: {where or 'none stands out'}",
                f"likely: {likely}",
                *notes,
                WAY_OUT,
            ]
        ),
        measured,
        where=where,
    )


_CONVOLVES = "a convolution reads over the edge of the padding, where no mask reaches"
_POOLS = "neighbouring tokens are pooled to one, and padding with them"
_LEFT = "pad on the left: there the outputs are those of the text alone"
_KINDS: dict[str | None, str] = {
    "ids": "ids are read with others (n-grams, ids shifted inside), where no mask reaches",
    "pools": _POOLS,
}


def _content_aside(
    probe: Probe, found: Content, layout: str, kind: str | None
) -> Iterator[tuple[float | None, str]]:
    """How far outputs move when that is left aside which no mask reaches, and what that is."""
    way, passes = found.way, probe.padding
    zeros = passes.content(way, layout, found.condition, blank=True)
    yield zeros.moved, f"{_CONVOLVES}; zeros are put there"
    if kind == "ids":
        yield (
            probe.masks.vectors(way, layout, found.condition),
            f"{_KINDS[kind]}; the ids stay, other vectors are read",
        )


def _excuse_content(probe: Probe, found: Content, layout: str, limit: Limit) -> str | None:
    """The structure by which ids under a mask may matter: measured, each by the probe in which
    they do not. ``None`` where there is none."""
    way, passes = found.way, probe.padding
    if layout.endswith("hole") and probe.masks.reads_lengths(way):
        return f"{way.role} is read as the number of real tokens, not as a mask"
    if layout.endswith("hole") and passes.causal:
        for blank in (False, True):
            if passes.content(way, "left", found.condition, blank=blank).moved <= limit.value:
                return "hidden in the middle of a text, tokens matter; in front of it they do not"
    zeros = passes.content(way, layout, found.condition, blank=True)
    if zeros.moved <= limit.value:
        return _CONVOLVES
    if _pads_left(probe):
        return _LEFT
    return _POOLS if probe.shortens() else None


def _pads_left(probe: Probe) -> bool:
    return not probe.subject.decodes and probe.padded_texts.pads_left()


# ... texts of several lengths...


def _judge_right(probe: Probe, factor: float) -> PaddingInvariance:
    skipped: list[str] = []
    results = []
    for covers in probe.padding.sequences:
        _require_declared(probe, covers, factor)
        way, reason = _usable(probe, covers)
        by_id = probe.padding.compares(covers)
        trivial = probe.padding.causal and not by_id and way is None
        if way is None and not by_id and not trivial:
            skipped.append(reason)
            continue
        result = _judge_lengths(probe, covers, "right", factor)
        results.append(result)
    return _worst(results, skipped)


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
        limit = lengths_limit(hidden, probe.noise(), factor)
        if not value <= limit.value:
            continue
        where = probe.leaks.locate_comparison(covers, other)
        raise CheckFailed(
            f"the padding id that is declared is the one that has to be hidden\n"
            f"{_outputs(probe, covers)} moved by {moved:.2g} (limit {limit}) when a text of "
            f"{seen.lengths[row]} tokens was padded to {seen.size} with the declared padding id "
            f"{pad}; with {other}, which forward compares {covers} with, they moved by "
            f"{value:.2g}\n"
            f"module that compares: {where or 'none stands out'}\n"
            f"likely: the padding id is hard-coded as {other}\n"
            f"{WAY_OUT}",
            PaddingInvariance(value=moved, limit=limit, comparisons=2, lengths=(*seen.lengths,)),
            where=where,
        )


def _judge_left(probe: Probe, factor: float) -> PaddingInvariance:
    passes = probe.padding
    if not passes.causal:
        raise NotApplicable("pad on the right: only decoders are padded on the left")
    covers = passes.sequences[0]
    way, reason = _usable(probe, covers)
    if way is None:
        raise NotApplicable(f"pad on the right: {reason}")
    found = probe.padded_texts.lengths(covers, "mixed", "left", "plain")
    if worst_length(found)[0] != worst_length(found)[0]:
        raise NotApplicable(f"pad on the right: padding in front gives NaN, by {_NOTHING_LEFT}")
    if passes.takes_positions:
        return _judge_lengths(probe, covers, "left", factor)
    limit = lengths_limit(found, probe.noise(), factor)
    value, _ = worst_length(found)

    def again(other: Probe) -> float:
        return worst_length(other.padded_texts.lengths(covers, "mixed", "left", "plain"))[0]

    if not value <= limit.value and settle(value, limit, lambda: probe.repeated(again)).exceeded:
        raise NotApplicable(
            "pad on the right: forward takes no position_ids, and its positions count the padding"
        )
    return PaddingInvariance(value=value, limit=limit, argument=way.role, comparisons=1)


def _judge_lengths(probe: Probe, covers: str, side: str, factor: float) -> PaddingInvariance:
    passes, small = probe.padding, probe.subject.small
    plans = [("mixed", "plain")]
    if small:
        plans += [("equal", "plain"), ("mixed", "noised")]
    if probe.padded_texts.longest is not None and not passes.causal:
        plans.append(("long", "plain"))
    notes: list[str] = []
    way, _ = passes.way(covers)
    measured = PaddingInvariance()
    for plan, condition in plans:
        found = probe.padded_texts.lengths(covers, plan, side, condition)
        noise = probe.noise() if condition == "plain" else 0.0
        limit = lengths_limit(found, noise, factor)
        moved, row = worst_length(found)
        before = measured
        value, held = _larger(moved, limit, before)
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
            value, held = _larger(moved, limit, before)
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
    _require_repeatable(probe, found.padded, found.condition, limit)

    def again(other: Probe) -> float:
        lengths = other.padded_texts.lengths(found.covers, plan, found.side, found.condition)
        return worst_length(lengths)[0]

    value = found.moved[row]
    verdict = settle(value, limit, lambda: probe.repeated(again))
    notes.extend(verdict.notes)
    if not verdict.exceeded:
        return value
    blank = probe.padded_texts.lengths(found.covers, plan, found.side, found.condition, blank=True)
    moved, _ = worst_length(blank)
    if moved <= limit.value:
        notes.append(f"{_CONVOLVES}; zeros are put there")
        return moved
    place = probe.leaks.locate_lengths(found)
    where = place.where
    excuse = _excuse_lengths(probe, found) or _KINDS.get(place.kind)
    if excuse is not None:
        raise NotApplicable(excuse)
    told = f"with {measured.argument}" if measured.argument else "with its padding id"
    raise CheckFailed(
        "\n".join(
            [
                _RULES[found.side],
                f"{_outputs(probe, found.covers)} moved by {value:.2g} (limit {limit}) when a "
                f"text of {found.lengths[row]} tokens was padded to {found.size} "
                f"{told}{_moved_parameters(found.condition)}",
                f"first module to differ: {where or 'none stands out'}",
                f"likely: {_LENGTHS[found.side]}",
                *notes,
                WAY_OUT,
            ]
        ),
        measured,
        where=where,
    )


def _excuse_lengths(probe: Probe, found: Lengths) -> str | None:
    """Like ``_excuse_content``, for texts of several lengths."""
    if found.side == "right" and _pads_left(probe):
        return _LEFT
    return _POOLS if probe.shortens() else None


# ... and the mask itself.


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
            skipped.append(refused or _no_mask(covers))
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
    ones = _judge_ones(probe, way, two_shapes)
    found = passes.content(way, layout, "plain")
    if not found.effect > effect_floor(found.reference, floor):
        found = _require_effect(probe, way, layout, floor)
        notes.append("the mask shows its effect with moved parameters only")
    notes += _judge_each(probe, found, floor)
    notes += ones.notes
    notes += _dtype_notes(probe, way, two_shapes)
    return MaskEffect(**{**vars(ones), "value": found.effect, "notes": tuple(notes)})


def _require_effect(probe: Probe, way: Way, layout: str, floor: float) -> Content:
    passes = probe.padding
    layout = f"full_{layout}"
    found = passes.content(way, layout, "noised")
    limit = effect_floor(found.reference, floor)
    if found.effect > limit:
        return found
    if not probe.masks.without_mask(way, layout, "noised") > limit:
        raise NotApplicable("no token reaches another: there is nothing to hide")
    if passes.causal and not probe.masks.touched(way, way.role) and probe.masks.takes_anything:
        raise NotApplicable(
            f"nothing reads {way.role}, nor whatever else forward takes by **kwargs: pad on the "
            "right, where no token of a causal model looks"
        )
    excuse = _excuse_content(probe, found, layout, content_limit(found, 16))
    if excuse is not None:
        raise NotApplicable(excuse)
    where = probe.leaks.locate_content(found).where
    likely = f"{way.role} is accepted and not used, or not handed on"
    heard = _heard(probe, way, limit)
    if heard:
        likely = f"{heard} has: the mask's dtype is asked for, or not converted"
        where = where if probe.masks.touched(way, way.role) else probe.root
    raise CheckFailed(
        "a mask must hide tokens from the others\n"
        f"masking tokens by {way.role} moved {_outputs(probe, way.covers)} by {found.effect:.2g} "
        f"(at least {limit:.2g} = {floor:g} u expected), and replacing the masked tokens moves "
        f"them by {found.moved:.2g}\n"
        f"first module that sees masked tokens: {where or 'none stands out'}\n"
        f"likely: {likely}\n"
        f"{WAY_OUT}",
        MaskEffect(value=found.effect, argument=way.role),
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
            f"{name} alone moves {_outputs(probe, way.covers)} by 0, and replacing the tokens "
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
    limit = two_shapes_limit(reference, probe.noise(), factor)
    measured = MaskEffect(argument=way.role, ones=value, ones_limit=limit.value)

    def again(other: Probe) -> float:
        return other.masks.no_mask(way)[0]

    if value <= limit.value or not settle(value, limit, lambda: probe.repeated(again)).exceeded:
        return measured
    if not way.fixed:
        note = f"{way.role} of ones is not the same as none: it may carry a causal mask too"
        return MaskEffect(**{**vars(measured), "notes": (note,)})
    where = probe.leaks.locate_no_mask(way)
    raise CheckFailed(
        "a mask that keeps everything must give what no mask gives\n"
        f"outputs moved by {value:.2g} (limit {limit}) when {way.role} of ones was given\n"
        f"first module to differ: {where or 'none stands out'}\n"
        "likely: the path with a mask has another scale, bias or causal part than the one "
        "without, or the default mask hides something\n"
        f"{WAY_OUT}",
        measured,
        where=where,
    )


def _heard(probe: Probe, way: Way, limit: float) -> str:
    """In words, the masks of other dtypes that have an effect where this one has none."""
    found = probe.masks.other_dtypes(way) if probe.subject.small else {}
    names = [name for name, moved in found.items() if not isinstance(moved, str) and moved > limit]
    own = str(way.dtype).removeprefix("torch.")
    return f"a mask of {own} has no effect, one of {' or '.join(names)}" if names else ""


def _dtype_notes(probe: Probe, way: Way, factor: float) -> list[str]:
    if not probe.subject.small:
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


# Words and small decisions.


def _usable(probe: Probe, covers: str) -> tuple[Way | None, str]:
    """The mask argument that padding can be told by, or why there is none."""
    passes = probe.padding
    way, refused = passes.accepted(covers)
    if way is None:
        return None, refused or _no_mask(covers)
    way, inverted = passes.way(covers)
    assert way is not None
    if inverted and way.fixed:
        return None, f"{way.role} is read the other way round: see mask_effect"
    layout = passes.layout(covers)
    shown = passes.content(way, layout, "plain").effect
    if not shown and not passes.content(way, f"full_{layout}", "noised").effect:
        return None, f"{way.role} hides nothing: see mask_effect"
    return way, ""


def _no_mask(covers: str) -> str:
    return f"forward takes no mask over {covers} and does not look for a padding id"


def _larger(value: float, limit: Limit, before: PaddingInvariance) -> tuple[float, Limit]:
    """The value that is closer to its limit, of a new one and the one measured before."""
    if before.value is None or before.limit is None:
        return value, limit
    if value * before.limit.value < before.value * limit.value:
        return before.value, before.limit
    return value, limit


def _worst(results: list[PaddingInvariance], skipped: list[str]) -> PaddingInvariance:
    if not results:
        raise NotApplicable("; ".join(skipped))
    return max(results, key=lambda r: (r.value or 0.0) / (r.limit.value if r.limit else 1.0))


def _require_repeatable(probe: Probe, batch: Batch, condition: str, limit: Limit) -> None:
    moved = probe.padding.repeats(batch, condition)
    if moved > limit.value:
        raise Blocked(
            f"the same batch twice gives logits that differ by {moved:.2g} in eval mode: the "
            "model draws random numbers or keeps something from one call for the next"
        )


def _outputs(probe: Probe, covers: str) -> str:
    if probe.subject.task.task_type == "classification":
        return "the output of a text"
    if probe.subject.decodes and covers != "decoder_input_ids":
        return "outputs of the decoder"
    return "outputs of real tokens"


def _moved_parameters(condition: str) -> str:
    return " (all parameters moved at random)" if condition == "noised" else ""
