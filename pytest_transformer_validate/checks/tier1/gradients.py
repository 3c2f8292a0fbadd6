"""Training can change every parameter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.registry import check
from pytest_transformer_validate.checks.tier1.lost_gradient import (
    module_around,
    owner_of,
    was_run,
    where_lost,
)
from pytest_transformer_validate.checks.tier1.no_gradient import (
    DOUBT,
    ROUNDING,
    cut_in_training,
    reason,
    rounding,
    stuck_routers,
)
from pytest_transformer_validate.errors import Blocked, CheckFailed, NotApplicable
from pytest_transformer_validate.measures.gradients import (
    GradientFlow,
    dead_block,
    over_depth,
    typical,
    without_gradient,
)

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.gradients import Gradients
    from pytest_transformer_validate.probe.probe import Probe

RULE = "every parameter that takes part must get a gradient that training can use"
_MODIFIED = "modified by an inplace operation"  # what torch says of it
_SHOWN = 6
_ALWAYS_ONE = (
    "the weights of the chosen experts are normalised to 1 (a softmax over one, a division by its "
    "own sum), and the router learns nothing from its choice"
)


@check(tier=1)
def gradient_flow(probe: Probe, *, floor: float = 1e-7, ceiling: float = 1e6) -> GradientFlow:
    """Every parameter of a module that runs gets a gradient, of a size that training can use.

    The loss is a random projection of the logits, over batches of several lengths (a plain sum
    has no gradient behind a LayerNorm). A gradient below ``floor`` times the median norm counts
    as none if it stays there after every parameter was moved at random (the smallest of a healthy
    model is 1.4e-7, over 431 architectures of transformers 5.23); one above ``ceiling``
    times the gradient of the last module explodes on its way back. Parameters that have no
    gradient for a structural reason are named in the record. The backward of a
    ``torch.autograd.Function`` of the model's own has to give the derivative, in float64.
    """
    if probe.subject.sizes[1] < 2:
        raise NotApplicable("the longest text is one token: attention has nothing to choose from")
    found = _run(probe)
    if found.inference:
        raise NotApplicable("forward runs under torch.inference_mode(): it is not for training")
    if not found.norms:
        raise CheckFailed(
            f"{RULE}\nno parameter asks for a gradient (requires_grad=False everywhere)"
        )
    if found.not_finite:
        name = found.not_finite[0]
        raise CheckFailed(
            f"{RULE}\n"
            f"NaN or infinity in the gradient of {len(found.not_finite)} parameters, "
            f"first: {name}\n"
            "likely: sqrt, log, division or norm at zero, whose derivative is infinite",
            _measure(probe, found, {}, set()),
            where=where_lost(probe, found, set(found.not_finite), last=True),
        )
    if found.unregistered:
        raise _unregistered(probe, found)
    suspects, alive = without_gradient(found, floor), found
    if suspects:
        alive = probe.gradients(noised=True)
        suspects &= without_gradient(alive, floor)
    if not any(found.norms.values()) and not any(alive.norms.values()):
        names = sorted(found.norms)
        raise CheckFailed(
            f"{RULE}\n"
            f"the logits follow none of the {len(names)} parameters that ask for a gradient: "
            f"{', '.join(names[:_SHOWN])}\n"
            "likely: what they make is cut off or detached, or the wrong parameters are frozen",
            _measure(probe, found, {}, set(names)),
            where=where_lost(probe, found, set(names)),
        )
    rounds = rounding(probe, alive, suspects)
    reasons = {
        name: ROUNDING if name in rounds else reason(probe, found, alive, name)
        for name in sorted(suspects)
    }
    stuck = stuck_routers(probe) - {n for n, why in reasons.items() if why and why not in DOUBT}
    explained = {name: why for name, why in reasons.items() if why and name not in stuck}
    failing = (suspects | stuck) - set(explained)
    late = _late(probe, failing - stuck, floor)
    explained |= dict.fromkeys(late, "only a longer text reaches it")
    failing -= late
    measured = _measure(probe, found, explained, failing)
    if failing:
        where = where_lost(probe, found, failing)
        likely = _ALWAYS_ONE if stuck else _likely(found, failing)
        raise CheckFailed(_text(found, measured, failing, where, likely), measured, where=where)
    _judge_training(probe, found, measured)
    _judge_experts(probe, measured)
    _judge_blocks(probe, found, measured)
    _judge_cuts(probe, found, measured)
    _judge_by_hand(probe, found, measured)
    if measured.at_output and measured.largest > ceiling * measured.at_output:
        name = max(found.norms, key=lambda n: found.norms[n] or 0.0)
        raise CheckFailed(
            f"{RULE}\n"
            f"the gradient of {name} is {measured.largest:.2g}, "
            f"{measured.largest / measured.at_output:.2g} times that of the last module "
            f"(limit {ceiling:g})\n"
            "likely: a missing normalisation or scale, or a far too large initial weight",
            measured,
            where=owner_of(name),
        )
    return measured


def _late(probe: Probe, failing: set[str], floor: float) -> set[str]:
    """The parameters that a longer text gives a gradient."""
    long = probe.long_gradients() if failing else None
    return set() if long is None else failing - without_gradient(long, floor)


def _unregistered(probe: Probe, found: Gradients) -> CheckFailed:
    """Parameters that are trained and not the model's, by the modules that hold them."""
    names = probe.left_behind.unregistered()
    held = f"modules that hold them: {', '.join(names[:3])}\n" if names else ""
    return CheckFailed(
        f"{RULE}\n"
        f"{found.unregistered} parameters get a gradient and are not in model.parameters(): "
        f"no optimizer, checkpoint or .to() will reach them\n{held}"
        "likely: layers in a plain list or dict (use nn.ModuleList, nn.ModuleDict), or a method "
        "of another module that was kept before this one was copied from it",
        _measure(probe, found, {}, set()),
        where=names[0].partition("[")[0] if names else None,
    )


def _run(probe: Probe) -> Gradients:
    """The gradients; raises CheckFailed where the forward spoils what the backward needs."""
    try:
        return probe.gradients()
    except (Blocked, RuntimeError) as error:
        if _MODIFIED not in str(error):
            raise
    where = probe.overwritten()
    raise CheckFailed(
        f"{RULE}\n"
        "the backward pass raises: a value that it needs is written over in place during the "
        "forward\n"
        f"module that computed with the value: {where or 'none stands out'}\n"
        "likely: x += y, x.mul_() or masked_fill_() on a tensor that another operation, or a "
        "residual, still needs: x = x + y",
        where=where,
    )


def _judge_training(probe: Probe, found: Gradients, measured: GradientFlow) -> None:
    """Fail where a gradient is cut off in training mode alone."""
    cut = cut_in_training(probe, found)
    if cut:
        names = sorted(cut)
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        where = where_lost(probe, found, cut)
        raise CheckFailed(
            f"{RULE}\n"
            f"{len(names)} parameters take part in training mode and get no gradient there, "
            f"although they get one in evaluation: {', '.join(names[:_SHOWN])}{more}\n"
            f"first module in which the gradient is lost: {where}\n"
            "likely: detach(), .data or torch.no_grad() under `if self.training`",
            measured,
            where=where,
        )


def _judge_cuts(probe: Probe, found: Gradients, measured: GradientFlow) -> None:
    """Fail where ``detach()`` or ``.data`` keeps a part of a gradient back."""
    cut = probe.cuts.harmful() if found.cut else None
    if cut is None:
        return
    more = f" and {len(cut.parameters) - 1} more" if len(cut.parameters) > 1 else ""
    raise CheckFailed(
        f"{RULE}\n"
        f"a cut keeps a part of the gradient back: with it passed on, that of "
        f"{cut.parameters[0]}{more} changes by {cut.moved:.0%}\n"
        f"module: {cut.module}\n"
        f"at: {cut.line}\n"
        "likely: detach() or .data on the way to the logits; a weight is read by .data where it "
        "is used again\n"
        'on purpose? declare it: "expect_fail" in config.json, or tb_expect_fail',
        measured,
        where=cut.module,
    )


def _judge_by_hand(probe: Probe, found: Gradients, measured: GradientFlow) -> None:
    """Fail where a ``torch.autograd.Function`` gives another gradient than the derivative; behind
    a cut nobody can tell."""
    wrong = probe.by_hand.wrong() if found.by_hand and not found.cut else None
    if wrong is not None:
        raise CheckFailed(
            f"{RULE}\n"
            f"the backward of {' or '.join(wrong.functions[:_SHOWN])}, written by hand, is not "
            "the derivative: along a random direction of all parameters the logits have a slope "
            f"of {wrong.measured:.4g}, by the gradient {wrong.gradient:.4g} (in float64)\n"
            f"module: {wrong.module}\n"
            "likely: a term is missing in backward(), or forward() saves something else than it "
            "used; torch.autograd.gradcheck shows which\n"
            'on purpose? declare it: "expect_fail" in config.json, or tb_expect_fail',
            measured,
            where=wrong.module,
        )


def _judge_experts(probe: Probe, measured: GradientFlow) -> None:
    """Fail where a router never chooses an expert, however its weights and the inputs fall, and
    where one that is chosen does without one of its matrices.

    A classifier reads few positions, too few to choose all experts.
    """
    if not (probe.subject.small and probe.subject.task.per_token):
        return
    half = probe.experts.half_used()
    if half:
        raise CheckFailed(
            f"{RULE}\n"
            f"no gradient for {', '.join(half[:_SHOWN])}, and one for other matrices of the same "
            "expert\n"
            "likely: another expert's matrix is read in its place, by a fixed or a wrong index",
            measured,
            where=owner_of(half[0]),
        )
    never = probe.experts.never_chosen()
    if never:
        raise CheckFailed(
            f"{RULE}\n"
            f"no input reaches {', '.join(never[:_SHOWN])}, for any of several draws of inputs "
            "and of all parameters\n"
            "likely: a router that cannot choose this expert: one output too few, a mask or bias "
            "of -inf, an index that is off by one",
            measured,
            where=never[0].partition("[")[0],
        )


def _judge_blocks(probe: Probe, found: Gradients, measured: GradientFlow) -> None:
    """Fail where a whole block of a weight's outputs (a query, a head) gets no gradient."""
    blocks = {name for name in found.dead_rows if dead_block(found, name)}
    if not blocks:
        return
    alive = probe.gradients(noised=True)
    for name in sorted(blocks):
        block = dead_block(alive, name)
        if block is not None and name not in measured.explained:
            long = probe.long_gradients()
            if long and name in long.dead_rows and dead_block(long, name) is None:
                continue
            size = len(found.dead_rows[name])
            raise CheckFailed(
                f"{RULE}\n"
                f"outputs {block[0]} to {block[1] - 1} of {size} of {name} get no gradient\n"
                "likely: one part of a fused projection (query, key, value), or one head, is "
                "detached, overwritten or not used",
                measured,
                where=module_around(probe, owner_of(name)) or probe.root,
            )


def _at_output(found: Gradients) -> float:
    """The largest gradient norm in the last module that has parameters of its own."""
    for module in reversed(found.tokens):
        norms = [norm for n, norm in found.norms.items() if norm and owner_of(n) == module]
        if norms and module:
            return max(norms)
    return 0.0


def _measure(
    probe: Probe, found: Gradients, explained: dict[str, str], failing: set[str]
) -> GradientFlow:
    median, smallest, largest = typical(found)
    return GradientFlow(
        value=float(len(failing)),
        parameters=len(found.norms),
        frozen=probe.structure.frozen,
        median=median,
        smallest=smallest,
        largest=largest,
        at_output=_at_output(found),
        depth=over_depth(found),
        missing=tuple(sorted(failing)),
        explained=explained,
        idle=tuple(probe.structure.idle_modules(set(found.tokens))),
    )


def _text(
    found: Gradients, measured: GradientFlow, failing: set[str], where: str, likely: str
) -> str:
    names = sorted(failing)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    kinds = " or ".join(sorted({_kind(found, name, measured.median) for name in failing}))
    return "\n".join(
        [
            RULE,
            f"{len(failing)} of {measured.parameters} parameters get {kinds}: "
            f"{', '.join(names[:_SHOWN])}{more}",
            f"first module in which the gradient is lost: {where}",
            f"likely: {likely}",
            "frozen on purpose? set requires_grad=False, and the check leaves them alone",
        ]
    )


def _kind(found: Gradients, name: str, median: float) -> str:
    norm = found.norms[name]
    if norm is None:
        return "none at all"
    if norm == 0.0:
        return "exactly zero"
    return f"next to nothing (the median is {median:.2g})"


def _likely(found: Gradients, failing: set[str]) -> str:
    if any(not was_run(found, owner_of(name)) and name not in found.used for name in failing):
        return "a layer that the forward skips (range(n - 1), a wrong index) or forgets to call"
    if all(found.norms[name] is None for name in failing):
        return "detach(), .data, no_grad, a rounding or argmax in the path, or a result not used"
    return "a dead activation, a mask or factor that is always zero, or a far too small scale"
