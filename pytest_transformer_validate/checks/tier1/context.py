"""Every output of a language model sees what it should see: earlier tokens, or all tokens."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.registry import check
from pytest_transformer_validate.checks.tier1.mixing import (
    both_kind,
    built_alike,
    dependencies,
    first_short,
    judge_heads,
    judge_places,
    judge_siblings,
    measured_from,
    require_length,
    require_mixing,
)
from pytest_transformer_validate.checks.tier1.whole_input import every_patch, every_token
from pytest_transformer_validate.errors import CheckFailed, NotApplicable
from pytest_transformer_validate.measures import context
from pytest_transformer_validate.measures.tolerance import same_shape_limit

if TYPE_CHECKING:
    from pytest_transformer_validate.measures.context import Context, Pattern
    from pytest_transformer_validate.probe.probe import Probe

_WIDEST = 64  # windows up to here are tried out on a text that is longer
_TEXTS = 4  # in one of which every token is seen, where a router chooses those that are


@check(tier=1, tasks=("causal_lm", "seq2seq", "classification", "vision_classification"))
def context_use(probe: Probe, *, floor: float = 1e-7) -> Context:
    """Every output depends on what it is given: the token itself and those before it, or, for a
    classifier, every token of the text or every patch and channel of the image.

    The gradient of every output is read at every token vector, and through every module from
    position to position. A dependency counts above ``floor`` of the largest at its output, as
    loaded or with all parameters moved at random. A reach that is limited on purpose (a window,
    a convolution) is reported, and held against a declared window; one of which no name tells
    fails, also where only a long text shows it.
    """
    task = probe.subject.task.task_type
    if probe.subject.vision:
        return every_patch(probe, floor)
    if task.endswith("classification"):
        return every_token(probe, floor)
    require_length(probe)
    measured, pattern = _look_back(probe, floor)
    if pattern.name not in {"all", "shifted"}:
        measured = _judge_past(probe, measured, pattern)
    judge_siblings(probe, measured, RULE, _past_kind)
    judge_heads(probe, measured, RULE, {"past", "all"})
    return _judge_window(probe, _judge_reach(probe, measured))


RULE = "every output of a causal LM must depend on its own token and on those before it"


def _look_back(probe: Probe, floor: float) -> tuple[Context, Pattern]:
    matrix = dependencies(probe, floor, "past")
    pattern = context.causal_pattern(matrix >= floor)
    notes: tuple[str, ...] = ()
    for other in range(1, _TEXTS):
        if pattern.name != "holes":
            break
        matrix = matrix.maximum(dependencies(probe.reseeded(other), floor, "past"))
        pattern = context.causal_pattern(matrix >= floor)
        notes = ("which tokens are seen depends on the text",)
    length = len(matrix)
    rows, columns = zip(*[(k, s) for k in range(length) for s in range(k + 1)], strict=True)
    measured = measured_from(matrix[list(rows), list(columns)], floor, len(pattern.unseen))
    plan = next((p for p in probe.swap_plans() if p.name == "long"), None)
    reach = None
    if plan is not None:
        with contextlib.suppress(Exception):  # causality says what a long text raises
            swaps = probe.position_swaps(plan)
            reach = context.longest_reach(swaps, same_shape_limit(swaps.reference).value)
    prints = context.mixers(probe.mixing.footprints(length, "eval"), length)
    reaches = tuple((f.module, context.look_back(f, length - 1)) for f in prints)
    return (
        replace(
            measured,
            reach=pattern.reach,
            length=length,
            long_reach=reach,
            long_length=plan.length if plan else None,
            window=probe.window,
            module_reach=reaches,
            notes=(*measured.notes, *(notes if pattern.name == "all" else ())),
        ),
        pattern,
    )


def _judge_past(probe: Probe, measured: Context, pattern: Pattern) -> Context:
    told = probe.tells_of_limits()
    if pattern.name == "band":
        why = f"a window of {probe.window} is declared" if probe.window else told
        if not why and probe.order.compares("text"):
            where = first_short(probe, {"band"})
            raise _cut_off(measured, where, "each output", pattern.reach, measured.length)
        note = f"each output sees {pattern.reach} tokens back ({why or 'nothing compares all'})"
        return replace(measured, notes=(*measured.notes, note))
    if pattern.name == "holes" and told:
        note = f"some tokens are not seen: a pattern on purpose ({told})"
        return replace(measured, notes=(*measured.notes, note))
    position, token = pattern.unseen[-1]
    require_mixing(probe, pattern)
    where = first_short(probe, {"alone", "holes"})
    what = {
        "alone": "no output depends on any token but its own",
        "holes": f"the output at position {position} does not depend on token {token}",
    }[pattern.name]
    likely = {
        "alone": "the mask leaves only the diagonal, attention is never added, its output is "
        "detached from other positions, or a state is not handed on from step to step",
        "holes": "a mask with holes, a slice with a step, or tokens that are dropped",
    }[pattern.name]
    raise CheckFailed(
        f"{RULE}\n"
        f"{what}; {measured.unseen} of {measured.pairs} pairs are below "
        f"{measured.limit}, with moved parameters too\n"
        f"first module to differ: {where or 'none stands out'}\n"
        f"likely: {likely}",
        measured,
        where=where,
    )


def _judge_reach(probe: Probe, measured: Context) -> Context:
    """Where nothing tells of a limit, no attention to a text of some length, and not its last
    output, ends a fixed number of tokens back."""
    length = probe.order.long_length
    found = _short_attention(probe, length) or _short_output(probe, measured)
    if found is None or probe.window or not probe.order.compares("text"):
        return measured
    told = probe.tells_of_limits()
    if told:
        note = f"{found[1]} looks {found[2]} tokens back: a limited reach ({told})"
        return replace(measured, notes=(*measured.notes, note))
    raise _cut_off(measured, *found)


def _cut_off(
    measured: Context, where: str | None, what: str, reach: int, length: int
) -> CheckFailed:
    return CheckFailed(
        f"{RULE}\n"
        f"{what} looks {reach} tokens back in a text of {length}, and no further; nothing tells "
        "of a window\n"
        f"first module to differ: {where or 'none stands out'}\n"
        "likely: a mask, or a slice, with a lower bound that was left in\n"
        'a window on purpose? declare it: "sliding_window" in config.json',
        measured,
        where=where,
    )


def _short_attention(probe: Probe, length: int) -> tuple[str | None, str, int, int] | None:
    """The first attention all of whose heads end a fixed number of tokens back, with moved
    parameters too."""
    found: list[dict[str, int]] = []
    for condition in ("eval", "noised"):
        scores = probe.order.long_scores(length, condition)
        reaches = ((s.module, context.band(s.visible())) for s in scores)
        found.append({module: far for module, far in reaches if far is not None})
        if not found[-1]:
            return None
    first, second = found
    module = next((name for name, far in first.items() if second.get(name) == far), None)
    return None if module is None else (module, module, first[module], length)


def _short_output(probe: Probe, measured: Context) -> tuple[str | None, str, int, int] | None:
    """The same for the last output, by gradient; asked where replacing an early token of a long
    text did not move it."""
    length, reach = measured.long_length, measured.long_reach
    if not length or reach is None or reach >= length - 2 or not probe.subject.small:
        return None
    reaches = []
    for condition in ("eval", "noised"):
        try:
            seen = probe.mixing.last(length, condition)
        except Exception:  # noqa: BLE001 - a model need not support a backward in eval mode
            return None
        reaches.append(context.cliff(seen))
    far = reaches[0]
    if far is None or reaches[1] != far:
        return None
    prints = context.mixers(probe.mixing.footprints(length, "eval"), length)
    where = next((f.module for f in prints if context.look_back(f, length - 1) <= far), None)
    return where, "the last output", far, length


def _past_kind(pattern: Pattern | None) -> str:
    """``mixes`` where anything comes from an earlier position."""
    if pattern is None:
        return "nothing"
    return "alone" if pattern.name in {"alone", "future"} else "mixes"


def _judge_window(probe: Probe, measured: Context) -> Context:
    """Hold what modules look back against a declared window."""
    window = probe.window
    if window is None or window > _WIDEST or window < 3:
        return measured
    length = min(3 * window + 5, probe.subject.max_length or 10**9)
    attends = {scores.module for scores in probe.order.scores("text")}
    prints = [
        f
        for f in context.mixers(probe.mixing.footprints(length, "eval"), length)
        if any(m == f.module or context.inside(m, f.module) for m in attends)
    ]
    if length < window + 3 or not prints:
        return measured
    last, middle = length - 1, length // 2
    reach = {f.module: (context.look_back(f, last), context.look_back(f, middle)) for f in prints}
    odd = None
    windowed = [name for name, (far, _) in reach.items() if far in (window - 1, window)]
    for name, (far, near) in reach.items():
        clean = far == near or (far > middle and near == middle)
        too_far = window < far < last and far == near
        shorter = (
            windowed and clean and 0 < far < window - 1 and built_alike(probe, name, windowed[0])
        )
        one_less = clean and far == window - 2 > window // 2 + 1
        if too_far or shorter or one_less:
            odd = odd or (name, f"looks {far} back")
    longest = max(far for far, _ in reach.values())
    if longest < window // 2 - 1:
        odd = odd or (next(iter(reach)), f"looks {longest} back, as far as any module")
    if min(far for far, _ in reach.values()) == last:
        note = f"a window of {window} tokens is declared, and every module looks further back"
        measured = replace(measured, notes=(*measured.notes, note))
    if odd is None:
        return measured
    raise CheckFailed(
        "a declared window is how far each attention looks back\n"
        f"the configuration declares {window} tokens; {odd[0]} {odd[1]} in a text of {length}\n"
        f"first module to differ: {odd[0]}\n"
        "likely: the mask of the window is not applied, or its bounds are wrong",
        measured,
        where=odd[0],
    )


BOTH = "every output of an encoder must depend on tokens before and after it"


@check(tier=1, tasks=("masked_lm",))
def bidirectionality(probe: Probe, *, floor: float = 1e-7) -> Context:
    """Every output of an encoder depends on every token, before and after it, and most on its
    own.

    Read as in ``context_use``, with its ``floor``; modules that are built alike, and heads of one
    attention, are compared with each other, because a mask that is left on in one layer does not
    show in the outputs. A decoder with a head for each token looks back on purpose.
    """
    require_length(probe)
    matrix = dependencies(probe, floor, "both")
    pattern = context.full_pattern(matrix >= floor)
    decoder = probe.subject.decoder_type
    if pattern.name == "past" and decoder:
        raise NotApplicable(f"{decoder} is a decoder with a head for each token: it looks back")
    measured = replace(
        measured_from(matrix, floor, len(pattern.unseen)),
        reach=pattern.reach,
        length=len(matrix),
        window=probe.window,
    )
    if pattern.name != "all":
        measured = _judge_both(probe, measured, pattern)
    judge_siblings(probe, measured, BOTH, both_kind)
    judge_heads(probe, measured, BOTH, {"all", "band"})
    judge_places(probe, measured)
    return measured


def _judge_both(probe: Probe, measured: Context, pattern: Pattern) -> Context:
    told = probe.tells_of_limits()
    if pattern.name == "band" or (pattern.name == "holes" and (told or probe.window)):
        note = f"outputs see {pattern.reach} tokens to a side ({told or 'declared nowhere'})"
        return replace(measured, notes=(*measured.notes, note))
    require_mixing(probe, pattern)
    where = first_short(probe, {pattern.name})
    position, token = pattern.unseen[0]
    what = {
        "past": "no output depends on a later token",
        "future": "no output depends on an earlier token",
        "alone": "no output depends on any token but its own",
        "holes": f"the output at position {position} does not depend on token {token}",
    }[pattern.name]
    likely = {
        "past": "a causal mask is left on (is_causal=True, tril)",
        "future": "a mask with the wrong triangle (tril for triu)",
        "alone": "the mask leaves only the diagonal, or attention is never added",
    }.get(pattern.name, "a mask with holes, or tokens that are dropped")
    raise CheckFailed(
        f"{BOTH}\n"
        f"{what}; {measured.unseen} of {measured.pairs} pairs are below {measured.limit}, with "
        "moved parameters too\n"
        f"first module to differ: {where or 'none stands out'}\n"
        f"likely: {likely}\n"
        'a decoder? declare it: --tb-task=causal_lm, or "task" in config.json',
        measured,
        where=where,
    )
