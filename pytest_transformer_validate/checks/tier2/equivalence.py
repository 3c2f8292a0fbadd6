"""Ways to run a model that are meant to be the same: attention backends."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.registry import check
from pytest_transformer_validate.errors import CheckFailed, NotApplicable
from pytest_transformer_validate.measures.equivalence import Backends
from pytest_transformer_validate.measures.tolerance import settle, two_shapes_limit

if TYPE_CHECKING:
    from pytest_transformer_validate.measures.measurement import Limit
    from pytest_transformer_validate.probe.backends import Switch
    from pytest_transformer_validate.probe.probe import Probe


@check(tier=2)
def backend_equivalence(probe: Probe, *, factor: float = 64.0) -> Backends:
    """Every way in which the model can compute its attention gives the same logits.

    The ways are implementations that a method sets, attributes called after a kernel, kernels of
    scaled_dot_product_attention and the fast path of nn.MultiheadAttention; with padding on either
    side where the model can be told of it, and with all parameters moved at random. ``factor`` u
    are allowed, or 16 times the model's own noise.
    """
    switches = probe.backends.switches()
    if not switches:
        raise NotApplicable(
            "there is one way only: no method or attribute that chooses an implementation, no "
            "scaled_dot_product_attention, no nn.MultiheadAttention"
        )
    measured = Backends(value=0.0)
    for switch in switches:
        measured = _judge_switch(probe, switch, measured, factor)
    if not measured.moved:
        raise NotApplicable("; ".join(measured.notes))
    return measured


def _judge_switch(probe: Probe, switch: Switch, measured: Backends, factor: float) -> Backends:
    conditions = ("plain", "noised") if probe.subject.small else ("plain",)
    for condition in conditions:
        for text in probe.backends.texts():
            found = probe.backends.compared(switch, text, condition)
            if found.raised:
                note = f"{switch} does not run ({text}): {found.raised}"
                return dataclasses.replace(measured, notes=(*measured.notes, note))
            noise = probe.caches.noise("" if condition == "plain" else condition)
            limit = two_shapes_limit(found.reference, noise, factor)
            measured = _with(measured, switch, found.moved, limit)
            if found.moved <= limit.value:
                continue
            verdict = settle(
                found.moved,
                limit,
                lambda t=text, c=condition: probe.repeated(  # type: ignore[misc]
                    lambda p: p.backends.compared(switch, t, c).moved
                ),
            )
            measured = dataclasses.replace(measured, notes=(*measured.notes, *verdict.notes))
            if verdict.exceeded:
                _fail(probe, switch, text, condition, limit, measured, found.moved)
    return measured


def _with(measured: Backends, switch: Switch, moved: float, limit: Limit) -> Backends:
    by_way = {**measured.moved, str(switch): max(moved, measured.moved.get(str(switch), 0.0))}
    if moved >= (measured.value or 0.0):
        measured = dataclasses.replace(measured, value=moved, limit=limit, worst=str(switch))
    return dataclasses.replace(measured, moved=by_way)


def _fail(
    probe: Probe,
    switch: Switch,
    text: str,
    condition: str,
    limit: Limit,
    measured: Backends,
    moved: float,
) -> None:
    where = probe.backends.locate(switch, text, condition, limit.value)
    given = {"plain": "", "left": ", padded on the left", "right": ", padded on the right"}[text]
    given += " (all parameters moved at random)" if condition == "noised" else ""
    raise CheckFailed(
        "\n".join(
            [
                "the logits must not depend on how attention is computed",
                f"they differ by up to {moved:.2g} (limit {limit}) with {switch}{given}",
                f"first module to differ: {where or 'none stands out'}",
                f"likely: {_LIKELY[switch.kind]}",
                *measured.notes,
            ]
        ),
        measured,
        where=where,
    )


_TWO_WAYS = (
    "one of the two ways lacks something: the scale (a scale that is not 1/sqrt(d) has to be "
    "given), a bias, a window, the padding mask beside is_causal=True, or repeats heads otherwise"
)
_LIKELY = {
    "method": _TWO_WAYS,
    "attribute": _TWO_WAYS,
    "kernel": "rows of a mask that hide everything, which every kernel answers differently",
    "fast path": (
        "a layer that was changed after it was built, or a subclass of nn.TransformerEncoderLayer "
        "with its own steps: in eval mode the fast path reads the weights and calls none of them; "
        "or a bias that is handed over as src_mask, which the fast path reads as a mask of bools"
    ),
}
