"""Why a parameter has no gradient: rounding, a choice, a part that these inputs do not reach."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_transformer_validate.checks.tier1.lost_gradient import is_inside, owner_of, was_run
from pytest_transformer_validate.measures.gradients import without_gradient
from pytest_transformer_validate.measures.tolerance import same_shape_limit

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.gradients import Gradients
    from pytest_transformer_validate.probe.probe import Probe

_SAME = 0.01  # of the norm: float32 keeps a gradient of its own to better than 1e-3
_SMALL = 1e-5  # of the median: with weights that are 1 but for rounding, a router gets 1e-7
_FAR = 4.0  # a step that sends tokens to other experts
_OTHER_EXPERT = 64  # times the limit of a movement: another expert answers, no rounding
BESIDE = "only a result that nothing reads here depends on it"
ROUNDING = "a normalisation or a softmax takes it out again: the logits do not move with it"
DOUBT = {BESIDE, ROUNDING}  # no excuse for what chooses among experts


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


def reason(probe: Probe, found: Gradients, alive: Gradients, name: str) -> str | None:
    """Why a healthy model may give this parameter no gradient, else ``None``.

    ``alive`` holds the gradients after every parameter was moved. A parameter whose value moves
    the logits has no excuse but a choice of indices.
    """
    owner = owner_of(name)
    if name in found.beside | alive.beside:
        return BESIDE
    if found.only_padding.get(owner):
        return "it was given nothing but its padding row"
    if alive.norms[name]:
        return None
    if not was_run(found, owner) and name not in found.used:
        return _why_idle(probe, found, owner)
    if probe.structure.holds_waves(name):
        return "a table of sines and cosines is not learned"
    if any(is_inside(owner, chosen) for chosen in found.selects):
        return "it feeds a choice of indices, which has no gradient"
    if _routed(found, owner):
        return "its expert was given no token"
    if name not in found.used:
        unread = "the forward of these inputs does not read it"
        return unread if probe.structure.reads_parameter(name) else None
    if probe.structure.dimensions(name) == 1 and not moves_logits(probe, name):
        siblings = [n for n in alive.norms if owner_of(n) == owner and n != name]
        return ROUNDING if any(alive.norms[n] for n in siblings) else None
    return None


def _why_idle(probe: Probe, found: Gradients, owner: str) -> str | None:
    """The module did not run: fine, unless others of its kind in the same list did (experts are
    given some of the tokens that come in, others all of them), or no code reads it."""
    module = owner
    while module:
        siblings = probe.structure.list_siblings(module)
        ran = [s for s in siblings if was_run(found, s)]
        if ran and not was_run(found, module):
            sizes = {tuple(found.tokens.get(s, ())) for s in ran}
            whole = set(found.tokens.get(owner_of(owner_of(module)), ()))
            some = any(size not in whole for each in sizes for size in each)
            return "its expert was given no token" if len(sizes) > 1 and some else None
        if not was_run(found, module) and not probe.structure.reads_module(module):
            return None
        module = module.rpartition(".")[0]
    return "its module did not run for these inputs"


def _routed(found: Gradients, owner: str) -> bool:
    return any(0 in sizes for module, sizes in found.tokens.items() if is_inside(owner, module))
