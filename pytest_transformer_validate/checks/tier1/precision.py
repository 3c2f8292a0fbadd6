"""The model computes the same in another precision, as far as that precision goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.registry import check
from pytest_transformer_validate.checks.tier1.stability import FAST_PATH
from pytest_transformer_validate.errors import CheckFailed, NotApplicable
from pytest_transformer_validate.measures.measurement import Limit
from pytest_transformer_validate.measures.precision import TINY, Precision, excess, far_share
from pytest_transformer_validate.measures.tolerance import unit

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.precision import Rounding
    from pytest_transformer_validate.probe.probe import Probe

RULE = "a model converted to {name} gives the same logits, as far as {name} goes"
CASES = ("bfloat16", "float16", "float64")
_EPS = {"bfloat16": 2.0**-7, "float16": 2.0**-10}
_LARGEST = 65504 / 4  # where float16 gets close to its end
_SQUARE = 65504**0.5  # where a square does: moved weights may take a model there that is not
_DRAWS = 3
_CANCELS = (
    "numbers that nearly cancel (a variance as E[x^2] - E[x]^2, 1 - cos), a sum of very different "
    "sizes, or a part that is computed in half precision whatever the model is"
)


@check(tier=1, cases=CASES)
def precision(probe: Probe, case: str, *, factor: float = 8.0, units: float = 64.0) -> Precision:
    """The model runs in bfloat16, float16 and float64, and gives what it gives in float32.

    ``bfloat16`` and ``float16`` may err ``factor`` times as much as an error model: rounded
    weights, and the output of every module and both ends of every softmax rounded on the way. Up
    to 512 tokens are read, because bfloat16 cannot tell neighbouring positions beyond 256 apart.
    Against ``float64``, ``units`` u are allowed. A model need not run in another precision: what
    it raises is a skip.
    """
    _require_float32(probe)
    if case == "float64":
        return _double(probe, units)
    rounding = _half(probe, case)
    measured = _measured(rounding, case, factor)
    if not rounding.finite and probe.precision.finite_as_it_is(case):
        raise NotApplicable(f"with moved weights, {case} gives NaN; as it is, it does not")
    problem = _problem(rounding, case)
    if problem is not None:
        what, likely = problem
        where = probe.precision.where_differs(case, 0, factor)
        raise CheckFailed(_text(case, what, where, likely), measured, where=where)
    where = probe.precision.padded(case) if probe.subject.small else None
    if where is not None:
        raise CheckFailed(_text(case, _PADDED, where, _OVERFLOW), measured, where=where)
    if measured.value is None or measured.value <= factor:
        return measured
    for draw in range(1, _DRAWS):
        again = _measured(probe.precision.half(case, draw), case, factor)
        if again.value is not None and again.value <= factor:
            note = f"{measured.value:.2g} times the emulated error, {again.value:.2g} at other ids"
            return Precision(**{**vars(measured), "notes": (note,)})
    own = _as_it_is(probe, case, rounding, factor)
    if own is not None:
        return own
    if probe.precision.traits().rounds:
        raise NotApplicable("the forward rounds to whole numbers: a small error becomes a step")
    where = probe.precision.where_differs(case, 0, factor)
    part = excess(rounding, _EPS[case])[1]
    what = (
        f"the error is {measured.error:.2g} of the logits, {measured.value:.2g} times what "
        f"rounding explains ({measured.emulated:.2g}; limit {factor:g} times), "
        f"{_place(part, rounding)}"
    )
    raise CheckFailed(_text(case, what, where, _likely(rounding)), measured, where=where)


def _as_it_is(probe: Probe, case: str, moved: Rounding, factor: float) -> Precision | None:
    """What holds for the model as it is, where moved weights took it to the end of float16."""
    if case != "float16":
        return None
    largest = moved.largest
    if largest <= _SQUARE:
        largest = probe.precision.largest_square(case) ** 0.5
    if largest <= _SQUARE:
        return None
    own = _measured(probe.precision.half(case, 0, moved=False), case, factor)
    if own.value is None or own.value > factor:
        return None
    note = f"as it is; moved weights make numbers of {largest:.2g}"
    return Precision(**{**vars(own), "notes": (note,)})


def _require_float32(probe: Probe) -> None:
    if str(probe.subject.dtype) != "torch.float32":
        raise NotApplicable(f"the model is in {probe.context()['dtype']}, not in float32")
    parameters = probe.subject.model.parameters()
    dtypes = sorted({str(p.dtype)[6:] for p in parameters if p.is_floating_point()})
    if len(dtypes) > 1:
        raise NotApplicable(f"parameters are in several dtypes: {', '.join(dtypes)}")


_PADDED = "real tokens of a padded text get NaN or infinity where float32 is finite"
_OVERFLOW = (
    "a mask value that overflows (-1e9 or the smallest float32; use torch.finfo(x.dtype).min or "
    "-inf in masked_fill), or an eps that is zero in half precision"
)


def _half(probe: Probe, case: str) -> Rounding:
    """The model in half precision. A model that asks for dtypes in its code has to follow a
    conversion to bfloat16; one that never does may raise."""
    try:
        return probe.precision.half(case, 0)
    except NotApplicable:
        mixed = probe.precision.mixed() if case == "bfloat16" else None
        if mixed is None:
            raise
        where, line = mixed
        what = f"two dtypes meet: {line}"
        likely = (
            "a mask, table or constant is made in float32 whatever the model is in (torch.zeros "
            "and torch.full without dtype=x.dtype), or .float() without the way back"
        )
        raise CheckFailed(_text(case, what, where, likely), where=where) from None


def _measured(rounding: Rounding, case: str, factor: float) -> Precision:
    value, part = excess(rounding, _EPS[case])
    scale = rounding.scale or 1.0
    return Precision(
        value=value,
        limit=Limit(value=factor, rule="times the emulated error"),
        length=rounding.length,
        error=rounding.real[part] / scale,
        emulated=rounding.emulated[part] / scale,
        largest=rounding.largest,
    )


def _problem(rounding: Rounding, case: str) -> tuple[str, str] | None:
    """What is wrong beyond the size of an error, with its likely cause."""
    name = str(rounding.dtype).removeprefix("torch.")
    if name not in {case, "float32"}:
        return f"the logits are {name}", "a conversion to a fixed dtype on the way out"
    if rounding.finite:
        return None
    if case == "float16" and rounding.largest > _LARGEST:
        raise NotApplicable(
            f"numbers on the way reach {rounding.largest:.2g}; float16 ends at 65504"
        )
    return (
        f"NaN or infinity where float32 is finite; the largest number on the way is "
        f"{rounding.largest:.2g}",
        _OVERFLOW,
    )


def _place(part: int, rounding: Rounding) -> str:
    if len(rounding.real) == 1:
        return "over all outputs"
    size = rounding.length // len(rounding.real)
    return f"at positions {part * size} to {(part + 1) * size - 1} of {rounding.length}"


def _likely(rounding: Rounding) -> str:
    if len(rounding.real) > 1 and rounding.real[-1] > 3 * rounding.real[0]:
        return (
            "positions or angles are computed in half precision, or a sum along the text (cumsum, "
            "a state): tables of sin and cos, angles and running sums belong in float32"
        )
    return (
        "a sum, norm, softmax or exponential is accumulated in half precision by hand, or a "
        "small constant vanishes in it; compute it in float32"
    )


def _text(case: str, what: str, where: str | None, likely: str) -> str:
    return "\n".join(
        [
            RULE.format(name=case),
            what,
            f"first module to differ: {where or 'none stands out'}",
            f"likely: {likely}",
        ]
    )


def _double(probe: Probe, units: float) -> Precision:
    """The model's own numbers against float64."""
    values = []
    for draw in range(_DRAWS):
        double, own = probe.precision.double(draw)
        if bool((double.isnan() & ~own.isnan()).any()):
            raise NotApplicable("float64 gives NaN where float32 does not")
        limit = Limit(value=max(units * unit(own), TINY), rule=f"{units:g} u")
        value, share = far_share(double, own, limit.value)
        measured = Precision(
            value=value,
            limit=limit,
            length=own.shape[1] if own.dim() > 2 else 0,
            units=value / (limit.value / units) if limit.value else 0.0,
        )
        if value <= limit.value:
            return measured
        values.append(share)
    if min(values) < 0.25:
        note = f"over {units:g} u at {min(values):.0%} of the positions: a choice falls otherwise"
        return Precision(**{**vars(measured), "notes": (note,)})
    if probe.precision.traits().narrows:
        raise NotApplicable("the forward computes in half precision, whatever the model is in")
    likely = FAST_PATH if probe.backends.fast_path_moves(limit.value) else _CANCELS
    raise CheckFailed(
        f"{RULE.format(name='float64')}\n"
        f"logits in float32 are {measured.units:.3g} u from those in float64 (limit {limit})\n"
        f"likely: {likely}",
        measured,
    )
