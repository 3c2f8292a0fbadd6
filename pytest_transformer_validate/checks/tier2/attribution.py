"""Attribution: what each token, or patch, adds to a logit."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.registry import check
from pytest_transformer_validate.errors import Blocked, CheckFailed, NotApplicable
from pytest_transformer_validate.measures import attribution as numbers
from pytest_transformer_validate.measures.attribution import Attribution
from pytest_transformer_validate.measures.measurement import Limit

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.attribution import Integrated
    from pytest_transformer_validate.probe.probe import Probe

_STEPS = (32, 64, 128)
_MANY = 512  # for a small model with kinks (ReLU, a maximum), where a rule converges slowly
_FEW = 8  # where nothing is added up
RULE = "integrated gradients must add up to the change of the logit"


@check(tier=2)
def attribution(
    probe: Probe, *, part: float = 1e-3, factor: float = 16.0, alike: float = 1e-4
) -> Attribution:
    """Integrated gradients add up to the change of the logit that they explain, give nothing to
    tokens that the task forbids, and depend on the weights.

    From a text of one plain id to a random text (from a constant to a random image), for the
    logit that moves most. The sum may lack ``part`` of the change after 32, 64 or 128 steps (512,
    in a small model with kinks). Where it lacks more, the gradient is compared with differences
    of the logit along the path: it fails where the gradient is not the slope, and does not apply
    where the logit jumps (routing, rounding). Tokens after the explained one in a causal model,
    and tokens under a mask, get ``factor`` u of the largest attribution at most. With all
    parameters moved at random, attributions move by more than ``alike`` of them.
    """
    probe = _precise(probe)
    found = probe.attributions.integrated(_STEPS[0])
    if not numbers.moves(found.path):
        raise NotApplicable("no logit depends on the input: see output_stability")
    measured = _measured(probe, found, part)
    measured = _judge_future(probe, found, measured, factor)
    measured = _judge_sum(probe, measured, part)
    measured = _judge_masked(probe, measured, factor)
    return _judge_weights(probe, measured, alike)


def _precise(probe: Probe) -> Probe:
    """The probe, or one in float64 where a sum of a few numbers has no digits."""
    if probe.eps < 1e-5:
        return probe
    if not probe.subject.small:
        raise NotApplicable("sums in half precision have too few digits")
    try:
        return probe.in_float64()
    except Exception as error:
        raise NotApplicable("half precision has too few digits; no float64 copy") from error


def _measured(probe: Probe, found: Integrated, part: float) -> Attribution:
    path = found.path
    images = probe.subject.vision
    roles = [] if images else list(dict.fromkeys(path.reader.roles))
    return Attribution(
        value=numbers.lacking(found),
        limit=Limit(value=part, rule=f"{part:g} of the change"),
        steps=found.steps,
        position=path.reader.position,
        target=path.target,
        change=path.change,
        baseline=path.baseline,
        tokens={role: found.tokens(role)[:64] for role in roles},
        ids={role: path.reader.batch[role][0, :64].tolist() for role in roles},
        patches=found.patches(probe.attributions.patch) if images else [],
    )


def _judge_future(
    probe: Probe, found: Integrated, measured: Attribution, factor: float
) -> Attribution:
    """Tokens behind the explained position, in a model that may not read them."""
    position, role = found.path.reader.position, probe.attributions.sequence
    task = probe.subject.task.task_type
    causal = task == "causal_lm" or (task == "seq2seq" and probe.subject.decodes)
    if position is None or not causal:
        return measured
    sizes = found.sizes(role)
    if position + 1 >= len(sizes):
        return measured
    later, largest = float(sizes[position + 1 :].max()), float(sizes.max())
    measured = replace(measured, forbidden={**measured.forbidden, "later tokens": later})
    limit = Limit(value=factor * probe.eps * largest, rule=f"{factor:g} u")
    if later <= limit.value:
        return measured
    token = position + 1 + int(sizes[position + 1 :].argmax())
    where = probe.attributions.reading(token)
    raise CheckFailed(
        "a token that the task forbids must get no attribution\n"
        f"the logit at position {position} gives token {token} {later:.2g} (limit {limit}); the "
        f"largest attribution is {largest:.2g}\n"
        f"first module to carry it back: {where or 'none stands out'}\n"
        "likely: the output reads later tokens: see causality",
        replace(measured, value=later, limit=limit),
        where=where,
    )


def _judge_sum(probe: Probe, measured: Attribution, part: float) -> Attribution:
    for steps in _STEPS:
        found = probe.attributions.integrated(steps)
        measured = replace(measured, value=numbers.lacking(found), steps=steps)
        if numbers.lacking(found) <= part:
            return measured
        if probe.experts.groups():
            break  # more steps do not help where a choice jumps
    return _judge_slopes(probe, measured, found)


def _judge_slopes(probe: Probe, measured: Attribution, found: Integrated) -> Attribution:
    slopes = probe.attributions.slopes()
    points = len(slopes.gradient)
    wrong, stepped = numbers.wrong(slopes), numbers.stepped(slopes)
    measured = replace(measured, slopes={"points": points, "wrong": wrong, "stepped": stepped})
    lacks = f"they lack {measured.value:.1%} of it after {measured.steps} steps"
    if 2 * stepped > points:
        raise NotApplicable(
            f"{lacks}: the logit has steps along the path (rounding, hard choices), at {stepped} "
            f"of {points} points",
            measured,
        )
    if 2 * wrong <= points:
        return _converged(probe, measured, lacks)
    if numbers.jumps(slopes):
        raise NotApplicable(
            f"{lacks}: nor do its slopes add up to it, so the logit has steps along the path "
            "(rounding, hard choices)",
            measured,
        )
    times = numbers.factor(slopes)
    if times is not None and not round(times, 6):
        raise NotApplicable("no gradient reaches the input: see gradient_flow", measured)
    if times is not None:
        raise NotApplicable(
            f"the gradient is {times:.2g} times the slope everywhere: scaled on purpose", measured
        )
    looped = probe.attributions.truncated()
    if looped is not None:
        raise NotApplicable(
            f"{lacks}: {looped} is called several times, and not always with a gradient: a loop "
            "whose backward is cut short on purpose",
            measured,
        )
    where = probe.attributions.first_wrong()
    raise CheckFailed(
        f"{RULE}\n"
        f"the logit {measured.target} moves by {found.path.change:.3g} from {measured.baseline} "
        f"to the text; {lacks} (limit {measured.limit})\n"
        f"at {wrong} of {points} points of the path the gradient is not the slope of the logit\n"
        f"first module whose gradient is not its slope: {where or 'none stands out'}\n"
        "likely: the gradient belongs to another function: a part of the path is detached "
        "(.detach(), .data, no_grad), or a backward is written by hand\n"
        'on purpose? declare it: tb_expect_fail, or "expect_fail" in config.json',
        measured,
        where=where,
    )


def _converged(probe: Probe, measured: Attribution, lacks: str) -> Attribution:
    """With many steps, where the gradient is right and the sum still lacks something."""
    routed = probe.experts.groups()
    if routed:
        why = f"tokens are routed among {len(routed[0].experts)} experts, and the choice jumps"
        raise NotApplicable(f"{lacks}: {why}", measured)
    if probe.subject.small:
        lacking = numbers.lacking(probe.attributions.integrated(_MANY))
        if measured.limit is not None and lacking <= measured.limit.value:
            return replace(measured, value=lacking, steps=_MANY)
    raise NotApplicable(
        f"{lacks}: the gradient is the slope wherever the two were compared, so the logit has "
        "kinks or jumps in between",
        measured,
    )


def _judge_masked(probe: Probe, measured: Attribution, factor: float) -> Attribution:
    """Tokens under a mask, where the logit does not read them: what it reads, padding judges."""
    if probe.subject.vision:
        return measured
    try:
        found = probe.attributions.integrated(_FEW, padded=True)
        moved = probe.attributions.moved_under_mask()
    except (NotApplicable, Blocked):
        return measured
    sizes = found.sizes("input_ids")
    masked = float(sizes[~probe.attributions.kept(found.path)[0].cpu()].max())
    limit = Limit(value=factor * probe.eps * float(sizes.max()), rule=f"{factor:g} u")
    measured = replace(measured, forbidden={**measured.forbidden, "tokens under a mask": masked})
    if masked <= limit.value:
        return measured
    if moved:
        note = "the logit reads tokens under the mask: see padding and mask_effect"
        return replace(measured, notes=(*measured.notes, note))
    raise CheckFailed(
        "a token that the task forbids must get no attribution\n"
        f"a token under the mask gets {masked:.2g} (limit {limit}), and other tokens in its place "
        "do not move the logit at all\n"
        "likely: a gradient runs past the mask that the values do not",
        replace(measured, value=masked, limit=limit),
    )


def _judge_weights(probe: Probe, measured: Attribution, alike: float) -> Attribution:
    """The same attribution with all parameters moved at random."""
    before, after = (
        probe.attributions.integrated(_FEW, condition) for condition in ("eval", "noised")
    )
    moved = numbers.apart(before, after)
    measured = replace(measured, moved=moved)
    if moved > alike:
        return measured
    raise CheckFailed(
        "attributions must depend on the weights\n"
        f"with all parameters moved at random they move by {moved:.2g} of them (limit {alike:g})\n"
        "likely: the forward computes with copies of its weights, made before",
        replace(measured, value=moved, limit=Limit(value=alike, rule="of the attributions")),
    )
