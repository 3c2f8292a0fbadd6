"""Heads, positions and layers are put together as attention and residual networks are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.registry import check
from pytest_transformer_validate.checks.tier1.linear_pairs import judge_linear_pairs
from pytest_transformer_validate.checks.tier1.residuals import LAYERS, judge_residuals
from pytest_transformer_validate.errors import CheckFailed, NotApplicable
from pytest_transformer_validate.measures.structure import Structure, without_residual

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.attention import Footprint, Footprints, Merge
    from pytest_transformer_validate.probe.probe import Probe
    from pytest_transformer_validate.probe.siblings import Shared

ATTENTION = "attention must keep heads and positions apart and weigh the keys"


@check(tier=1)
def attention_structure(probe: Probe) -> Structure:
    """In attention, a position reaches its own query, key and value, and gets its own result.

    Judged is what is certain, in every module in which ``scaled_dot_product_attention`` or a
    softmax before a product is seen: weights that sum to one along another axis than the one over
    which values are summed; a vector of one position that lands in some heads only, at other
    positions (a view where a transpose is missing); results of two heads at one position that
    arrive at different ones; two heads that do the same; heads that share keys and not values.
    Convolutions and shifts, which reach neighbours in all heads alike, are none of these.
    """
    found = probe.attention.footprints()
    measured = Structure(value=float(found.sites), sites=found.sites)
    if not found.sites and probe.attention.of_torch():
        note = "all attention is torch's own nn.MultiheadAttention, which is not looked into"
        return Structure(value=0.0, notes=(note,))
    if not found.sites:
        raise NotApplicable(
            "no attention was seen: it is computed by other functions than a softmax and a product"
        )
    _judge(found, measured)
    return measured


def _judge(found: Footprints, measured: Structure) -> None:
    if found.wrong_axis:
        axis = found.wrong_axis[0]
        raise _fail(
            measured,
            axis.module,
            f"weights {axis.shape} sum to 1 along axis {axis.softmax}, the values are summed "
            f"along axis {axis.summed}",
            "softmax over the queries (dim=-2), the heads or the features instead of the keys",
        )
    if found.mixed:
        raise _fail(measured, found.mixed[0].module, _mixed(found.mixed[0]), _VIEW)
    if found.scattered:
        raise _fail(measured, found.scattered[0].module, _merged(found.scattered[0]), _MERGE)
    if found.crossed:
        module, keys, values = found.crossed[0]
        raise _fail(
            measured,
            module,
            f"heads {_listed(keys)} share their keys, and heads {_listed(values)} their values",
            "keys are repeated by repeat_interleave and values by repeat (or expand in another "
            "order): a head of keys goes with the head of values of the same number",
        )
    if found.twins:
        module, first, second = found.twins[0]
        raise _fail(
            measured,
            module,
            f"heads {first} and {second} have the same scores and the same result",
            "all heads are given the same slice of the projection",
        )


def _listed(heads: list[int]) -> str:
    return ", ".join(map(str, heads[:8])) + (", ..." if heads[8:] else "")


_VIEW = (
    "view(batch, heads, length, width) on a tensor (batch, length, heads x width): view(batch, "
    "length, heads, width).transpose(1, 2) is meant"
)
_MERGE = (
    "heads are merged by view or reshape without the transpose back: "
    "transpose(1, 2).reshape(batch, length, -1) is meant"
)


def _mixed(odd: Footprint) -> str:
    heads = [f"head {h}: {list(p) or 'none'}" for h, p in enumerate(odd.reached[:4])]
    return (
        f"the vector at position {odd.position} reaches the {odd.what} at other positions, and "
        f"not in every head ({', '.join(heads)})"
    )


def _merged(odd: Merge) -> str:
    (first, second), (here, there) = odd.heads, odd.arrives
    return (
        f"the result at position {odd.position} arrives at {list(here)} from head {first} and at "
        f"{list(there)} from head {second}"
    )


def _fail(measured: Structure, where: str, what: str, likely: str) -> CheckFailed:
    text = f"{ATTENTION}\n{what}\nmodule: {where}\nlikely: {likely}"
    return CheckFailed(text, measured, where=where)


@check(tier=1)
def layer_structure(probe: Probe) -> Structure:
    """Layers are different modules with a residual path, and norms treat positions one by one.

    The same module several times in one list fails where the configuration promises that many
    layers and nothing declares that they share their weights. A layer whose output does not
    follow its input, feature by feature, fails where every other one of its class does. So do
    one with attention that gives its input twice, and one that passes on its input and not what
    its attention added to it, and lists all of whose layers lack one of their two sums. No
    residual in any layer is a design. Two linear layers with nothing between them but a wider
    vector act as one, and fail.
    """
    notes = tuple(_judge_shared(probe, shared) for shared in probe.siblings.shared())
    _judge_norms(probe)
    groups = probe.siblings.identities()
    layers = sum(map(len, probe.drawn.layers()))
    measured = Structure(value=float(layers), layers=layers, notes=notes)
    for group in groups:
        odd = without_residual(group)
        if odd is not None:
            others = [one.share for one in group if one is not odd]
            raise CheckFailed(
                f"{LAYERS}\n"
                f"an input number of {odd.layer} moves its own output number by "
                f"{odd.share:.2g} of its step, in the other layers by {min(others):.2g} or more\n"
                f"module: {odd.layer}\n"
                "likely: the residual connection is missing in this layer (x = f(x) for "
                "x = x + f(x))",
                measured,
                where=odd.layer,
            )
    judge_residuals(probe, measured)
    judge_linear_pairs(probe, measured)
    if not layers and not notes:
        raise NotApplicable("there is no list with several layers of one kind")
    return measured


def _judge_norms(probe: Probe) -> None:
    found = probe.norms.odd()
    if found.mixing:
        raise CheckFailed(
            "a normalisation in a transformer treats every position by itself\n"
            f"the output of {found.mixing[0]} at one position changes with the input at another "
            f"one ({len(found.mixing)} such modules)\n"
            f"module: {found.mixing[0]}\n"
            "likely: mean and variance over the wrong axis (dim=1 for dim=-1), or over all",
            where=found.mixing[0],
        )
    if found.sized:
        name, factor = next(iter(found.sized.items()))
        raise CheckFailed(
            "a normalisation gives vectors of one size, whatever the size of its input\n"
            f"the output of {name} is {factor:.2g} times as large for 3 times the input "
            f"({len(found.sized)} such modules)\n"
            f"module: {name}\n"
            "likely: x / rsqrt(...) for x * rsqrt(...), or the root is missing",
            where=name,
        )


def _judge_shared(probe: Probe, shared: Shared) -> str:
    """A note where the sharing is declared, or nothing promises separate layers."""
    key = "" if shared.parameter else probe.siblings.promised(shared)
    if shared.declared or not (shared.parameter or key):
        what = shared.parameter or "all weights"
        return (
            f"{shared.first} and {shared.second} share {what} ({shared.declared or 'undeclared'})"
        )
    if shared.parameter:
        raise CheckFailed(
            f"{LAYERS}\n"
            f"{shared.first} and {shared.second} share {shared.parameter}, the other "
            f"{shared.count - 2} layers have their own\n"
            "likely: a weight is assigned to the wrong layer when weights are tied\n"
            'on purpose? declare it: "share_layers": true in config.json',
            where=shared.second,
        )
    raise CheckFailed(
        f"{LAYERS}\n"
        f"{shared.first} and {shared.second} are one module: {key} promises {shared.count} "
        f"layers, there are weights for {shared.distinct}\n"
        "likely: [Block()] * n makes one block and names it n times: "
        "[Block() for _ in range(n)]\n"
        'on purpose? declare it: "share_layers": true in config.json',
        where=shared.holder or probe.root,
    )
