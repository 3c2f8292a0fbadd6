"""Activation checkpointing saves memory and changes no number."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.registry import check
from pytest_transformer_validate.errors import CheckFailed, NotApplicable
from pytest_transformer_validate.measures.equivalence import Checkpointed, far_gradients
from pytest_transformer_validate.measures.measurement import Limit

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.probe import Probe

OUTSIDE = "blocks"


@check(tier=2)
def checkpointing_equivalence(probe: Probe, *, factor: float = 64.0) -> Checkpointed:
    """With activation checkpointing the loss and every gradient are what they are without.

    In training mode with dropout on, one seed, and padding where the model takes a mask: what is
    computed again has to draw the same numbers and to see the same masks. Checkpoints are turned
    on by the model's own method or attribute; ``factor`` u of each gradient are allowed, and
    nothing is expected. Where a model has none of its own, its repeated blocks are put into
    torch.utils.checkpoint, and what that shows is information.
    """
    checkpointing = probe.checkpointing
    way = checkpointing.way()
    plain, again = checkpointing.plain(), checkpointing.again()
    other, parts = checkpointing.checkpointed(), checkpointing.parts()
    far = far_gradients(plain, again, other, factor)
    loss = Limit(value=factor * probe.eps * _scale(plain.loss), rule=f"{factor:g} u")
    apart = abs(plain.loss - other.loss)
    worst = max(far, key=lambda name: far[name], default=None)
    value = max(far.get(worst or "", 0.0), apart / loss.value)
    measured = Checkpointed(
        value=value,
        limit=Limit(value=1.0, rule=f"{factor:g} u of each gradient"),
        way=way,
        parts=tuple(parts[:64]),
        loss=(plain.loss, other.loss),
        worst=worst if value > 1 else None,
        notes=_notes(way, value),
    )
    if value <= 1 and not parts:
        raise NotApplicable(f"{way} is on and nothing is computed again: no memory is saved")
    if value <= 1 or way == OUTSIDE:
        return measured
    if abs(plain.loss - again.loss) > loss.value:
        raise NotApplicable("two runs in training mode from one seed differ (see statelessness)")
    if apart > loss.value:
        _fail_loss(probe, measured, loss)
    _fail_gradient(probe, measured, far)
    return measured


def _scale(loss: float) -> float:
    return max(abs(loss), 0.1)


def _notes(way: str, value: float) -> tuple[str, ...]:
    if way != OUTSIDE:
        return ()
    said = "changes nothing" if value <= 1 else f"moves gradients by {value:.2g} limits"
    return (
        "information: the model has no checkpointing of its own; torch.utils.checkpoint around "
        f"its blocks {said}",
    )


def _fail_loss(probe: Probe, measured: Checkpointed, limit: Limit) -> None:
    where = probe.checkpointing.locate_forward()
    before, after = measured.loss
    raise CheckFailed(
        "activation checkpointing must not change the loss\n"
        f"{before:.6g} without and {after:.6g} with {measured.way} (limit {limit})\n"
        f"first module to differ: {where or 'none stands out'}\n"
        "likely: an argument of the block (mask, positions) is not handed to checkpoint, or the "
        "checkpointed path does something else",
        measured,
        where=where,
    )


def _block(parameter: str, parts: tuple[str, ...]) -> str | None:
    """The block that a parameter belongs to: one that ran again, or one beside those."""
    for above in dict.fromkeys(part.rpartition(".")[0] for part in parts):
        if above and parameter.startswith(f"{above}."):
            inside = parameter.removeprefix(f"{above}.").partition(".")[0]
            return f"{above}.{inside}"
    return None


def _fail_gradient(probe: Probe, measured: Checkpointed, far: dict[str, float]) -> None:
    """Gradients run backwards: the last parameter that is off, in the order of running, is where
    it begins."""
    order = [name for name in probe.checkpointing.order() if far.get(name, 0.0) > 1]
    last = order[-1] if order else str(measured.worst)
    where = _block(last, measured.parts) or last.rpartition(".")[0] or probe.root
    missing = far.get(last) == float("inf")
    what = "is not there in one of the two" if missing else f"is off by {far[last]:.2g} limits"
    raise CheckFailed(
        "activation checkpointing must not change a gradient\n"
        f"with {measured.way} {len(order)} of {len(far)} gradients differ; that of {last} {what} "
        f"(limit {measured.limit})\n"
        f"where it begins, going backwards: {where}\n"
        "likely: what is computed again is not what was computed: dropout with a generator or a "
        "seed of its own, preserve_rng_state=False, a counter or a cache that moved on; or a "
        "reentrant checkpoint of inputs that need no gradient",
        measured,
        where=where,
    )
