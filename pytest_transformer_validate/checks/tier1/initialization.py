"""Random weights are drawn as training needs them."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.registry import check
from pytest_transformer_validate.errors import Blocked, CheckFailed, NotApplicable
from pytest_transformer_validate.measures.initialization import (
    Initialization,
    beside_a_guess,
    block,
    loss_ratio,
    outliers,
    table,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_transformer_validate.probe.probe import Probe
    from pytest_transformer_validate.probe.weights import Spread

RULE = "weights must start random, different from each other, and at a scale that training can use"
_FEW = 10  # outputs: of fewer, the cost of random labels says little
_WIDE = 3.0  # times 1/sqrt(fan in): a matrix so wide makes logits of that spread


@check(tier=1)
def parameter_initialization(
    probe: Probe, *, loss: float = 2.0, std: float = 3.0, wide: float = 10.0, ratio: float = 5.0
) -> Initialization:
    """Random weights hold drawn numbers, layers differ, no scale stands out, no zero is a trap.

    Judged are weights that were just drawn: cross entropy on labels that have nothing to do with
    the inputs may cost ``loss`` times the logarithm of their number (healthy models: 0.99 to 1.3)
    where the logits spread by more than ``std`` (by more than ``wide`` in a model that
    initialises nothing by itself: small ones train all the same); a matrix may be ``ratio`` times
    wider or narrower than in the layers beside it; the scale of a norm is no noise. The record
    holds statistics of every parameter.
    """
    _require_fresh(probe)
    notes: list[str] = []
    _judge_numbers(probe)
    _judge_constants(probe)
    _judge_twins(probe, notes)
    _judge_outputs(probe, notes)
    _judge_scales(probe, ratio)
    _judge_norms(probe)
    _judge_zeros(probe)
    return _judge_loss(probe, loss, std, wide, notes)


def _require_fresh(probe: Probe) -> None:
    if not probe.weights.startswith(("random", "as given")):
        raise NotApplicable(
            f"the weights were loaded ({probe.weights}), not drawn", _measure(probe)
        )
    if probe.weights.startswith("as given") and not probe.drawn.untouched():
        raise NotApplicable(
            "the weights are as given and may be trained: no vector holds one number throughout",
            _measure(probe),
        )


def _measure(
    probe: Probe,
    wrong: dict[str, str] | None = None,
    cost: float | None = None,
    spread: float | None = None,
    notes: list[str] | None = None,
    losses: Mapping[str, float] | None = None,
) -> Initialization:
    return Initialization(
        value=cost,
        logits_std=spread,
        initial_loss=losses or {},
        parameters=table(probe.drawn.spreads().values(), wrong or {}),
        notes=tuple(notes or ()),
    )


def _fail(probe: Probe, wrong: dict[str, str], what: str, likely: str, where: str) -> CheckFailed:
    text = f"{RULE}\n{what}\nlikely: {likely}"
    return CheckFailed(text, _measure(probe, wrong), where=where or probe.root)


def _owner(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def _judge_numbers(probe: Probe) -> None:
    """Numbers that no initialisation draws."""
    bad = [s for s in probe.drawn.spreads().values() if s.broken and s.trains]
    if bad:
        first = bad[0]
        raise _fail(
            probe,
            {s.parameter: "not initialised" for s in bad},
            f"{first.broken} numbers of {first.parameter} {list(first.shape)} are NaN, infinite, "
            f"beyond 1e10 or below 1e-30 (from {first.low:.2g} to {first.high:.2g})",
            "torch.empty (or an empty Parameter, a meta tensor moved by to_empty) that nothing "
            "initialises",
            _owner(first.parameter),
        )


def _judge_constants(probe: Probe) -> None:
    """Linear layers all of whose weights are one number that is not zero."""
    for name in probe.drawn.linear():
        spread = probe.drawn.spreads()[name]
        if spread.constant and spread.low and min(spread.shape) > 1:
            raise _fail(
                probe,
                {name: "one number"},
                f"every number of {name} {list(spread.shape)} is {spread.low:.3g}",
                "init.ones_ or init.constant_ on a weight: all its outputs are the same one",
                _owner(name),
            )


def _judge_twins(probe: Probe, notes: list[str]) -> None:
    for first, second in probe.drawn.twins():
        if probe.drawn.copied_by_torch(second):
            note = "layers of torch's own container start equal: it copies one"
            if note not in notes:
                notes.append(note)
            continue
        raise _fail(
            probe,
            {},
            f"{first} and {second} hold the same numbers in all their matrices",
            "copy.deepcopy of one layer (initialise the copies anew), or a seed set in __init__",
            second,
        )


def _judge_outputs(probe: Probe, notes: list[str]) -> None:
    """Outputs of one weight that are zero, or copies of others."""
    for rows in probe.drawn.outputs():
        equal, zero = block(rows, rows.equal), block(rows, rows.zero)
        if equal is not None:
            raise _fail(
                probe,
                {rows.parameter: "equal outputs"},
                f"outputs {equal[0]} to {equal[1] - 1} of {rows.total} of {rows.parameter} are "
                "copies of others, bit for bit",
                "one head or expert is drawn and repeated (repeat, expand, copy_): give each its "
                "own numbers",
                _owner(rows.parameter),
            )
        if zero is None:
            continue
        third = 3 * (zero[1] - zero[0]) == rows.total and zero[0] % (rows.total // 3) == 0
        if third and len([r for r in probe.drawn.outputs() if block(r, r.zero) == zero]) > 1:
            notes.append(f"a third of {rows.parameter} starts at zero, as in other layers")
            continue
        raise _fail(
            probe,
            {rows.parameter: "constant outputs"},
            f"outputs {zero[0]} to {zero[1] - 1} of {rows.total} of {rows.parameter} have one "
            "number in all their weights, the others do not",
            "a slice that the initialisation misses, or overwrites",
            _owner(rows.parameter),
        )


def _judge_scales(probe: Probe, ratio: float) -> None:
    found = outliers(probe.drawn.layers(), probe.drawn.spreads(), ratio)
    if found:
        worst = found[0]
        raise _fail(
            probe,
            {o.parameter: "scale" for o in found},
            f"{worst.parameter} has a standard deviation of {worst.std:.3g}, the same weight in "
            f"the layers beside it {worst.usual:.3g} (limit: {ratio:g} times)",
            "this layer is initialised in another way: missed by the init function, or hit twice",
            _owner(worst.parameter) if len(found) == 1 else worst.layer,
        )


def _judge_zeros(probe: Probe) -> None:
    """Zeros that no training leaves."""
    try:
        stuck = probe.drawn.stuck()
    except (Blocked, RuntimeError):  # gradient_flow judges models without a backward
        return
    if stuck:
        raise _fail(
            probe,
            dict.fromkeys(stuck, "zero for ever"),
            f"{', '.join(stuck[:4])} start at zero, get no gradient, and get none after the "
            "parameters that have one were moved: training never changes them",
            "two factors of one product start at zero; let one of them start random",
            _common([n for n in stuck if probe.drawn.spreads()[n].matrix] or stuck),
        )


def _judge_norms(probe: Probe) -> None:
    """Scales of norms that are drawn as weights are."""
    noisy = probe.drawn.noisy_norms()
    if noisy:
        spread = probe.drawn.spreads()[noisy[0]]
        raise _fail(
            probe,
            dict.fromkeys(noisy, "noise"),
            f"the scale of a norm, {noisy[0]}, is noise around zero (mean {spread.mean:.2g}, "
            f"standard deviation {spread.std:.2g}): it shrinks and turns what it should pass on",
            "an initialisation for matrices reaches all parameters; leave the scales of norms at "
            "one",
            _owner(noisy[0]),
        )


def _common(names: list[str]) -> str:
    """The innermost module around the first parameter and those beside it."""
    owners = [_owner(name).split(".") for name in names]
    first = owners[0]
    near = [o for o in owners if o[:2] == first[:2]] or owners
    shared = []
    for parts in zip(*near, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


def _judge_loss(
    probe: Probe, loss: float, std: float, wide: float, notes: list[str]
) -> Initialization:
    cost, spread, outputs = probe.drawn.initial_loss()
    task = probe.subject.task
    hidden = task.per_token and not probe.answers.as_wide()
    value = loss_ratio(cost, outputs)
    measure = functools.partial(
        _measure, probe, cost=value, spread=spread, losses=beside_a_guess(cost, outputs)
    )
    if hidden or outputs < _FEW or not (value > loss and spread > std):
        return measure(notes=notes)
    readers = [s for s in probe.drawn.readers(outputs) if _scale(s) > _WIDE]
    if not readers:
        notes.append(f"the logits start wide (standard deviation {spread:.2g})")
        return measure(notes=notes)
    worst = max(readers, key=_scale)
    if not worst.trains:
        notes.append(f"the logits start wide ({spread:.2g}): {worst.parameter} is frozen as given")
        return measure(notes=notes)
    asked = probe.drawn.asked_for(worst.std)
    if asked:
        notes.append(f"the logits start wide ({spread:.2g}), as {asked} in the configuration asks")
        return measure(notes=notes)
    if spread < wide and probe.drawn.by_default():
        notes.append(f"the logits start wide ({spread:.2g}): {worst.parameter} is not initialised")
        return measure(notes=notes)
    raise CheckFailed(
        f"{RULE}\n"
        f"cross entropy on random labels costs {value:.2g} times ln({outputs}) (limit {loss:g}), "
        f"the logits have a standard deviation of {spread:.2g} (limit {std:g})\n"
        f"the weight that makes them, {worst.parameter} {list(worst.shape)}, has one of "
        f"{worst.std:.2g}; {1 / min(worst.shape) ** 0.5:.2g} would be 1/sqrt(inputs)\n"
        f"likely: {_likely_wide(probe, worst)}, or declare the scale: "
        '"initializer_range" in config.json',
        measure({worst.parameter: "scale"}, notes=notes),
        where=_owner(worst.parameter) or probe.root,
    )


def _likely_wide(probe: Probe, worst: Spread) -> str:
    """In words, why a head starts wide: it is the embedding, or it was drawn so."""
    if worst.parameter in probe.tying.ends().table:
        return (
            "an embedding table at its default scale (standard deviation 1) is tied to the head; "
            "draw it with 0.02"
        )
    return "the init function draws it so, or scales it; draw it with 1/sqrt(inputs) or less"


def _scale(spread: Spread) -> float:
    """Spread over 1/sqrt(inputs), the inputs being the narrower side of a head."""
    return spread.std * math.sqrt(min(spread.shape))
