"""Training can change every parameter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.registry import check
from pytest_transformer_validate.checks.tier1.no_gradient import (
    cut_in_training,
    moves_logits,
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
_BESIDE = "only a result that nothing reads here depends on it"
_ROUNDING = "a normalisation or a softmax takes it out again: the logits do not move with it"
_ALWAYS_ONE = (
    "the weights of the chosen experts are normalised to 1 (a softmax over one, a division by its "
    "own sum), and the router learns nothing from its choice"
)
_DOUBT = {_BESIDE, _ROUNDING}  # no excuse for what chooses among experts


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
            where=_where(probe, found, set(found.not_finite), last=True),
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
            where=_where(probe, found, set(names)),
        )
    rounds = rounding(probe, alive, suspects)
    reasons = {
        name: _ROUNDING if name in rounds else _reason(probe, found, alive, name)
        for name in sorted(suspects)
    }
    stuck = stuck_routers(probe) - {n for n, why in reasons.items() if why and why not in _DOUBT}
    explained = {name: why for name, why in reasons.items() if why and name not in stuck}
    failing = (suspects | stuck) - set(explained)
    late = _late(probe, failing - stuck, floor)
    explained |= dict.fromkeys(late, "only a longer text reaches it")
    failing -= late
    measured = _measure(probe, found, explained, failing)
    if failing:
        where = _where(probe, found, failing)
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
            where=_owner(name),
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
        where = _where(probe, found, cut)
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
    """Fail where a router never chooses an expert, however its weights and the inputs fall.

    A classifier reads few positions, too few to choose all experts.
    """
    if not (probe.subject.small and probe.subject.task.per_token):
        return
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
                where=_around(probe, _owner(name)) or probe.root,
            )


def _at_output(found: Gradients) -> float:
    """The largest gradient norm in the last module that has parameters of its own."""
    for module in reversed(found.tokens):
        norms = [norm for n, norm in found.norms.items() if norm and _owner(n) == module]
        if norms and module:
            return max(norms)
    return 0.0


def _reason(probe: Probe, found: Gradients, alive: Gradients, name: str) -> str | None:
    """Why a healthy model may give this parameter no gradient, else ``None``.

    ``alive`` holds the gradients after every parameter was moved. A parameter whose value moves
    the logits has no excuse but a choice of indices.
    """
    owner = _owner(name)
    if name in found.beside | alive.beside:
        return _BESIDE
    if found.only_padding.get(owner):
        return "it was given nothing but its padding row"
    if alive.norms[name]:
        return None
    if not _ran(found, owner) and name not in found.used:
        return _why_idle(probe, found, owner)
    if probe.structure.holds_waves(name):
        return "a table of sines and cosines is not learned"
    if any(_inside(owner, chosen) for chosen in found.selects):
        return "it feeds a choice of indices, which has no gradient"
    if _routed(found, owner):
        return "its expert was given no token"
    if name not in found.used:
        unread = "the forward of these inputs does not read it"
        return unread if probe.structure.reads_parameter(name) else None
    if probe.structure.dimensions(name) == 1 and not moves_logits(probe, name):
        siblings = [n for n in alive.norms if _owner(n) == owner and n != name]
        return _ROUNDING if any(alive.norms[n] for n in siblings) else None
    return None


def _why_idle(probe: Probe, found: Gradients, owner: str) -> str | None:
    """The module did not run: fine, unless others of its kind in the same list did (experts are
    given some of the tokens that come in, others all of them), or no code reads it."""
    module = owner
    while module:
        siblings = probe.structure.list_siblings(module)
        ran = [s for s in siblings if _ran(found, s)]
        if ran and not _ran(found, module):
            sizes = {tuple(found.tokens.get(s, ())) for s in ran}
            whole = set(found.tokens.get(_owner(_owner(module)), ()))
            some = any(size not in whole for each in sizes for size in each)
            return "its expert was given no token" if len(sizes) > 1 and some else None
        if not _ran(found, module) and not probe.structure.reads_module(module):
            return None
        module = module.rpartition(".")[0]
    return "its module did not run for these inputs"


def _routed(found: Gradients, owner: str) -> bool:
    return any(0 in sizes for module, sizes in found.tokens.items() if _inside(owner, module))


def _ran(found: Gradients, module: str) -> bool:
    """Whether the module, or anything in it, was called."""
    if module == "":
        return True
    return module in found.tokens or any(_inside(name, module) for name in found.tokens)


def _inside(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def _owner(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def _where(probe: Probe, found: Gradients, failing: set[str], *, last: bool = False) -> str:
    """The first module, in execution order, that loses the gradient on the way.

    A part of the model in which everything fails stands next to the break, and the break is in
    the module around it: named is that module, unless it is the whole model or has one such part
    only. ``last`` takes the last such module: trouble that starts late spoils everything before.
    """
    order = {name: index for index, name in enumerate(found.tokens)}
    owners = sorted({_owner(n) for n in failing}, key=lambda o: (order.get(o, -1), o))
    idle = [n for n in failing if n not in found.used and not _ran(found, _owner(n))]
    if idle:
        return _dead_part(probe, found, failing, _owner(min(idle)))
    parts: dict[str, list[str]] = {}
    for owner in owners:
        part = _dead_part(probe, found, failing, owner)
        around = parts.setdefault(_around(probe, part), [])
        if part not in around:
            around.append(part)
    inner = [module for module in parts if module] or [""]
    module = inner[-1] if last else inner[0]
    only = parts[module][0]
    whole = len(parts[module]) == 1 and (not module or probe.structure.holds_modules(only))
    return (only if whole else module) or probe.root


def _dead_part(probe: Probe, found: Gradients, failing: set[str], owner: str) -> str:
    """The outermost module around ``owner`` all of whose parameters fail."""
    module, best = owner, owner
    while module:
        inside = [n for n in found.norms if _inside(_owner(n), module)]
        if all(n in failing for n in inside) and not probe.structure.is_list(module):
            best = module
        module = module.rpartition(".")[0]
    return best


def _around(probe: Probe, module: str) -> str:
    """The nearest module around it that has a forward."""
    above = module.rpartition(".")[0]
    while above and probe.structure.is_list(above):
        above = above.rpartition(".")[0]
    return above


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
    if any(not _ran(found, _owner(name)) and name not in found.used for name in failing):
        return "a layer that the forward skips (range(n - 1), a wrong index) or forgets to call"
    if all(found.norms[name] is None for name in failing):
        return "detach(), .data, no_grad, a rounding or argmax in the path, or a result not used"
    return "a dead activation, a mask or factor that is always zero, or a far too small scale"
