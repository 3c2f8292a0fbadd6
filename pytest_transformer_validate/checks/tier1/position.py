"""Outputs depend on the order of tokens, and positions are what they are meant to be."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.registry import check
from pytest_transformer_validate.errors import CheckFailed, NotApplicable, first_line
from pytest_transformer_validate.measures import context
from pytest_transformer_validate.measures.invariance import (
    PositionSensitivity,
    constant_over_positions,
    follows_rows_alone,
    not_by_distance,
    same_vectors,
)
from pytest_transformer_validate.measures.measurement import Limit
from pytest_transformer_validate.measures.tolerance import settle, shapes_limit

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.order import Constant
    from pytest_transformer_validate.probe.probe import Probe

RULE = "outputs must depend on the order of tokens"
_SHIFT = 3
_LONGEST = 2048
_ANY = 48  # tokens, where nothing tells a limit
_COARSE = 1e-5  # eps of dtypes in which rounding hides what an order does
# Of the scores' spread; healthy rotations and biases: at most 1e-4, and where their tables are
# rounded to bfloat16 up to 1.3 of its spacing.
_BY_DISTANCE = 1e-3
_ROUNDED = 4.0


@check(tier=1)
def position_sensitivity(probe: Probe, *, factor: float = 256.0) -> PositionSensitivity:
    """The order of tokens, or of the patches of an image, is known.

    A causal mask alone tells an order, so the first module that mixes positions is asked: when
    the tokens before the last change places, its result at the last position has to move by
    ``factor`` u, or else that of a later module whose inputs do. A model that knows positions by
    no other means than its mask passes where nothing shows that it was meant to. Positions that
    are known must differ from each other, follow the distance where they are relative, and
    follow ``position_ids`` where those are taken.
    """
    probe = _precise(probe)
    if probe.subject.vision:
        return _patches(probe, factor)
    if probe.subject.sizes[1] < 5:
        raise NotApplicable("the longest text is too short to have an order")
    if probe.subject.task.task_type == "seq2seq" and not probe.subject.decodes:
        raise NotApplicable("forward takes no decoder input")
    measured = None
    for side in probe.order.sides:
        found = _side(probe, side, factor)
        measured = found if measured is None else _together(measured, found)
    assert measured is not None
    return _shift(probe, measured)


def _precise(probe: Probe) -> Probe:
    """The model in float64 where its own numbers are too coarse to tell an order from rounding;
    what cannot be copied is asked as it is."""
    if probe.eps < _COARSE or not probe.subject.small:
        return probe
    try:
        found = probe.in_float64()
        found.forward(found.batch(1, found.subject.sizes[1], "order"))
    except Exception:  # noqa: BLE001 - a model need not run in float64
        return probe
    return found


def _limit(probe: Probe, factor: float) -> Limit:
    """In a coarse dtype 256 u are more than an order can move: 4 u of it."""
    factor = min(factor, 4.0) if probe.eps > _COARSE else factor
    return Limit(value=factor * probe.eps, rule=f"{factor:g} u")


def _together(first: PositionSensitivity, second: PositionSensitivity) -> PositionSensitivity:
    return replace(second, notes=(*first.notes, *second.notes))


def _side(probe: Probe, side: str, factor: float) -> PositionSensitivity:
    length = probe.order.sides[side][1]
    short = probe.subject.sizes[1]
    prints = context.mixers(probe.mixing.footprints(short, "eval"), length)
    if not prints:
        prints = context.mixers(probe.mixing.footprints(short, "noised"), length)
    modules = tuple(dict.fromkeys(f.module for f in prints))
    limit = _limit(probe, factor)
    if not modules:
        return _by_outputs(probe, side, limit)
    measured = PositionSensitivity(limit=limit)
    for condition in ("eval", "noised"):
        moves = probe.order.by_tokens(side, modules[0], condition)
        measured = replace(measured, value=moves.relative, module=modules[0], known="tokens")
        if moves.relative > limit.value:
            break
        inner = probe.order.by_modules(side, modules, condition)
        best = max(inner, key=lambda m: m.relative, default=moves)
        if best.relative > limit.value:
            measured = replace(measured, value=best.relative, module=best.module, known="module")
            break
    else:
        return _unknown(probe, side, measured, modules)
    return _judge_positions(probe, side, modules, measured)


def _by_outputs(probe: Probe, side: str, limit: Limit) -> PositionSensitivity:
    """Where no module can be asked: the outputs of a model without a causal mask."""
    measured = PositionSensitivity(limit=limit, known="outputs")
    if side == "source":
        return replace(measured, notes=("no module of the encoder could be asked",))
    for condition in ("eval", "noised"):
        value = probe.order.by_outputs(condition)
        measured = replace(measured, value=value)
        if value > limit.value:
            return measured
    if probe.subject.facts.rank > 2 and not probe.order.compares(side):
        raise NotApplicable("nothing in the model mixes positions: outputs are for single tokens")
    return _unknown(probe, side, measured, ())


def _unknown(
    probe: Probe, side: str, measured: PositionSensitivity, modules: tuple[str, ...]
) -> PositionSensitivity:
    promise = probe.position_promise()
    if promise is None:
        note = "no position information: order is known through the causal mask, or not at all"
        return replace(measured, known="mask", notes=(*measured.notes, note))
    later = _by_later(probe, side, measured, modules)
    if later is not None:
        return _judge_positions(probe, side, modules, later)
    where = probe.order.promised_module(promise) or (modules[0] if modules else None)
    raise CheckFailed(
        f"{RULE}\n"
        f"the {'encoder' if side == 'source' else 'model'} has positions ({promise}), and when "
        f"tokens change places no module's result moves by more than {measured.value:.2g} of its "
        f"largest number (limit {measured.limit}), with moved parameters too\n"
        f"first module to differ: {where or 'none stands out'}\n"
        "likely: positions are prepared and never added, rotate the queries only, or are frozen "
        "at zero; a model without positions on purpose should not build them",
        measured,
        where=where,
    )


def _by_later(
    probe: Probe, side: str, measured: PositionSensitivity, modules: tuple[str, ...]
) -> PositionSensitivity | None:
    """Behind a module that weighs all tokens alike (a mean of the past), which no order moves:
    a later one, where positions enter the first with the tokens."""
    try:
        constant = probe.order.constant(side, modules[0], "eval") if modules else None
    except Exception:  # noqa: BLE001 - a text of one token may be refused
        return None
    if constant is None or constant_over_positions(constant.entering):
        return None
    for module in modules[1:]:
        moves = probe.order.by_tokens(side, module, "eval")
        if measured.limit is not None and moves.relative > measured.limit.value:
            return replace(measured, value=moves.relative, module=module)
    return None


def _judge_positions(
    probe: Probe, side: str, modules: tuple[str, ...], measured: PositionSensitivity
) -> PositionSensitivity:
    try:
        constant = probe.order.constant(side, modules[0], "eval")
    except Exception as error:  # noqa: BLE001 - a text of one token may be refused
        note = f"a text that repeats one token could not be run: {first_line(error)}"
        return replace(measured, notes=(*measured.notes, note))
    if constant is None:
        return measured
    if constant_over_positions(constant.entering):
        return _judge_distance(probe, constant, measured)
    _judge_distinct(probe, side, constant, measured)
    return measured


def _judge_distinct(
    probe: Probe, side: str, constant: Constant, measured: PositionSensitivity
) -> None:
    """Positions that enter by a table, or by a formula, all differ."""
    module = constant.module
    length = probe.order.sides[side][1]
    longest = min(probe.subject.max_length or _ANY, _LONGEST)
    lengths = [length, *([longest] if longest > length else [])]
    for size in lengths:
        entering = (
            constant.entering if size == length else probe.order.entering(side, module, size)
        )
        if entering is None or len(entering) != size:
            continue
        same = same_vectors(entering)
        if same is not None:
            raise CheckFailed(
                "every position must be told from every other\n"
                f"in a text of {size} equal tokens, positions {same[0]} and {same[1]} are given "
                f"the same vector, and others differ\n"
                f"first module to differ: {module} (what it is given)\n"
                "likely: positions are clamped, divided, taken modulo something, or start twice",
                measured,
                where=probe.order.first_same(side, module, size, *same),
            )


def _judge_distance(
    probe: Probe, constant: Constant, measured: PositionSensitivity
) -> PositionSensitivity:
    """Relative positions: scores of equal tokens follow the distance."""
    worst, where = 0.0, None
    for scores in constant.scores:
        if scores.given is None or not constant_over_positions(scores.given):
            continue
        value = not_by_distance(scores.scores, probe.eps)
        if value > worst:
            worst, where = value, scores.module
    measured = replace(measured, not_by_distance=worst)
    limit = max(_BY_DISTANCE, _ROUNDED * probe.rounded)
    if worst <= limit:
        _judge_keys(probe, constant, measured)
        return measured
    promise = probe.position_promise(rotary=True)
    if promise is None:
        note = f"scores of equal tokens do not follow the distance ({worst:.2g} of their spread)"
        return replace(measured, notes=(*measured.notes, note))
    raise CheckFailed(
        "scores of equal tokens must follow the distance between them\n"
        f"with {promise}, scores differ by {worst:.2g} of their spread between pairs at the same "
        f"distance (limit {limit:.2g}; a factor for each row is allowed)\n"
        f"first module to differ: {where}\n"
        "likely: only queries or only keys are rotated, their halves are paired differently, or "
        "they are given different positions",
        measured,
        where=where,
    )


def _judge_keys(probe: Probe, constant: Constant, measured: PositionSensitivity) -> None:
    """Where positions turn queries, they turn keys; asked where all that comes in is one vector,
    as it is not where a decoder, which may begin with another token, looks at its encoder."""
    given = ((s, s.given) for s in constant.scores)
    sites = (s for s, g in given if g is not None and constant_over_positions(g))
    alone = next((s for s in sites if follows_rows_alone(s.scores, probe.eps)), None)
    promise = None if alone is None else probe.position_promise(rotary=True)
    if alone is not None and promise is not None:
        raise CheckFailed(
            "scores of equal tokens must follow the distance between them\n"
            f"with {promise}, the scores of equal tokens follow the position that asks and not "
            "the one that is looked at\n"
            f"first module to differ: {alone.module}\n"
            "likely: only queries are rotated, in a layer or in some heads",
            measured,
            where=alone.module,
        )


def _shift(probe: Probe, measured: PositionSensitivity) -> PositionSensitivity:
    """What is given as ``position_ids`` is used: relative positions do not see a shift, others
    do."""
    signature = probe.subject.signature
    longest = probe.subject.max_length
    length = probe.subject.sizes[1]
    if not signature.takes("position_ids") or probe.subject.decodes:
        return measured
    if longest is not None and length + _SHIFT > longest:
        return measured
    try:
        value, reference = probe.order.shifted(_SHIFT)
    except Exception as error:  # noqa: BLE001 - a model need not take positions like these
        note = f"position_ids could not be given: {first_line(error)}"
        return replace(measured, notes=(*measured.notes, note))
    measured = replace(measured, shift=value)
    limit = shapes_limit(value, reference, probe.noise)
    if measured.not_by_distance is None:
        return _judge_ignored(measured, value)
    if value <= limit.value:
        return measured
    verdict = settle(value, limit, lambda: probe.repeated(lambda p: p.order.shifted(_SHIFT)[0]))
    if not verdict.exceeded:
        return replace(measured, notes=(*measured.notes, *verdict.notes))
    note = f"a shift of all position_ids moves the logits by {value:.2g} (limit {limit})"
    return replace(measured, notes=(*measured.notes, note))


def _judge_ignored(measured: PositionSensitivity, value: float) -> PositionSensitivity:
    """Positions that enter with the tokens are those that are given."""
    if value > 0 or measured.known != "tokens":
        return measured
    note = "position_ids are taken, and shifting them changes nothing"
    return replace(measured, notes=(*measured.notes, note))


def _patches(probe: Probe, factor: float) -> PositionSensitivity:
    """The order of an image's patches is known, and patches are squares of it."""
    limit = _limit(probe, factor)
    odd = probe.patches.scattered()
    if odd is not None:
        raise CheckFailed(
            "a patch of an image is a square of it\n"
            f"patches are {odd.patch} x {odd.patch}, and a first token is made of numbers that "
            f"stand in a box of {odd.box[0]} x {odd.box[1]} pixels\n"
            f"module: {odd.module}\n"
            "likely: the image is cut by view or reshape alone: the axes of patches have to be "
            "brought together by permute before they are flattened, and the axis of channels to "
            "be moved behind them",
            PositionSensitivity(limit=limit, known="patches"),
            where=odd.module,
        )
    size = probe.mixing.patch
    measured = PositionSensitivity(limit=limit, known="patches")
    for condition in ("eval", "noised"):
        value = probe.order.by_patches(size, condition)
        measured = replace(measured, value=value)
        if value > limit.value:
            return measured
    promise = probe.position_promise()
    if promise is None:
        note = "no position information: the order of patches is not known"
        return replace(measured, notes=(note,))
    where = probe.order.promised_module(promise)
    raise CheckFailed(
        "the output of an image classifier must depend on where its patches are\n"
        f"the model has positions ({promise}), and when patches of {size} x {size} pixels change "
        f"places the logits move by {measured.value:.2g} of the largest (limit {limit}), with "
        "moved parameters too\n"
        f"first module to differ: {where or 'none stands out'}\n"
        "likely: positions are prepared and never added, or are frozen at zero",
        measured,
        where=where,
    )
