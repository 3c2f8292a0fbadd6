"""Gradients that are rounding, and routers that learn nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_transformer_validate.measures.gradients import without_gradient
from pytest_transformer_validate.measures.tolerance import same_shape_limit

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.gradients import Gradients
    from pytest_transformer_validate.probe.probe import Probe

_SAME = 0.01  # of the norm: float32 keeps a gradient of its own to better than 1e-3
_SMALL = 1e-5  # of the median: with weights that are 1 but for rounding, a router gets 1e-7
_FAR = 4.0  # a step that sends tokens to other experts
_OTHER_EXPERT = 64  # times the limit of a movement: another expert answers, no rounding


def rounding(probe: Probe, alive: Gradients, suspects: set[str]) -> set[str]:
    """Suspects whose small gradient is rounding: float64 gives another one.

    Where float64 does not run, those whose value does not move the logits.
    """
    small = {name for name in suspects if alive.norms[name]}
    exact = probe.gradients_in_float64() if small else None
    if exact is None:
        return {name for name in small if not moves_logits(probe, name)}
    return {name for name in small if not _same_gradient(alive, exact, name)}


def _same_gradient(one: Gradients, other: Gradients, name: str) -> bool:
    if name not in one.sketches:
        return True
    a, b = one.sketches[name], other.sketches.get(name, [])
    allowed = _SAME * (one.norms[name] or 0.0)
    return len(a) == len(b) and all(abs(x - y) <= allowed for x, y in zip(a, b, strict=True))


def moves_logits(probe: Probe, name: str, step: float = 0.1, times: float = 1.0) -> bool:
    """Whether the logits move by more than ``times`` the limit when a parameter takes a ``step``
    (normally distributed)."""
    moved, logits = probe.movement(name, step)
    return moved > times * same_shape_limit(logits).value


def stuck_routers(probe: Probe) -> set[str]:
    """Routers that get no gradient, in training mode neither, although another expert answers
    where they are far off: a small step says nothing of a choice."""
    left = probe.experts.routers() & without_gradient(probe.gradients(), _SMALL)
    if not left:
        return left
    alive = probe.gradients(noised=True)
    left &= without_gradient(alive, _SMALL)
    left -= probe.gradients().elsewhere | alive.elsewhere
    left = {name for name in left if not alive.norms[name]} | rounding(probe, alive, left)
    left = {name for name in left if moves_logits(probe, name, _FAR, _OTHER_EXPERT)}
    return left & without_gradient(probe.experts.gradients_in_training(), _SMALL) if left else left


def cut_in_training(probe: Probe, found: Gradients) -> set[str]:
    """Parameters that take part in training and get no gradient there, from no result at all,
    although they do in evaluation, as ``found`` says."""
    left = {name for name in probe.states.cut_in_training() if found.norms.get(name)}
    if not left:
        return left
    training = probe.experts.gradients_in_training()
    left &= training.used - training.beside - training.elsewhere
    return {name for name in left if training.norms.get(name) is None}
