"""Layers: what each one changes, what it could hold, and what it would already say."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.registry import check
from pytest_transformer_validate.errors import CheckFailed, NotApplicable
from pytest_transformer_validate.measures.layers import (
    LayerEffects,
    LogitLens,
    effect,
    of_layers,
    settled,
)
from pytest_transformer_validate.measures.measurement import Limit

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.layers import Layer, Layers
    from pytest_transformer_validate.probe.probe import Probe


@check(tier=2)
def layer_effect(probe: Probe, *, floor: float = 1e-4) -> LayerEffects:
    """Every layer of a stack changes what it is given, by means of its weights.

    What it gives is apart from what it is given by ``floor`` of it at least, and moves by as much
    when the numbers in its weights change places: a norm behind a branch changes its input even
    where the branch adds nothing. As loaded, or with all parameters moved at random: what starts
    at zero, or is scaled by a parameter that starts small, moves then. Effective rank, use of the
    width and growth of the residual stream are information.
    """
    layers = probe.layers.effects("eval")
    if not layers:
        raise NotApplicable("no list of layers that take and give vectors of one shape")
    follows = probe.layers.follows("eval")
    measured = replace(
        of_layers(layers, follows), limit=Limit(value=floor, rule=f"{floor:g} of what it is given")
    )
    still = {layer.module for layer in layers if effect(layer, follows) < floor}
    if not still:
        return measured
    dead, follows = _dead(probe.layers, still, floor)
    if dead:  # a single number that scales a branch may be drawn small, but not twice
        dead, follows = _dead(probe.layers.with_other_draws(), {n.module for n in dead}, floor)
    if not dead:
        note = f"{len(still)} layers change nothing as loaded: they start at zero, or were pruned"
        return replace(measured, notes=(note,))
    worst = dead[0]
    by = effect(worst, follows)
    what = "moves it" if worst.change < floor else "follows its own weights (norms apart)"
    raise CheckFailed(
        "every layer of a stack must change what it is given\n"
        f"{worst.module} {what} by {by:.2g} (limit {measured.limit}) with all parameters moved "
        f"at random; {len(dead)} of {len(layers)} layers do not reach the limit\n"
        f"module: {worst.module}\n"
        "likely: the branches are scaled by a constant that is far too small, or added and "
        "subtracted again; the layer can be left out",
        replace(measured, value=by),
        where=worst.module,
    )


def _dead(layers: Layers, still: set[str], floor: float) -> tuple[list[Layer], dict[str, float]]:
    """Those of the layers ``still`` that do next to nothing with all parameters moved, and what
    follows the weights then."""
    follows = layers.follows("noised")
    moved = layers.effects("noised")
    return [n for n in moved if n.module in still and effect(n, follows) < floor], follows


@check(tier=2)
def logit_lens(probe: Probe) -> LogitLens:
    """What the model would say after each layer: information.

    The last layer of the last stack is made to give what an earlier one gave.
    """
    found = probe.layers.lens()
    part = settled(found.agreement)
    return LogitLens(
        value=part,
        modules=found.modules[:64],
        agreement=found.agreement[:64],
        divergence=found.divergence[:64],
        notes=(f"information: predictions stay what they are after {part:.0%} of the layers",),
    )
