"""Backward passes written by hand: whether a ``torch.autograd.Function`` gives the derivative of
what it computes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pytest_transformer_validate.probe.passes import Passes, remembered
from pytest_transformer_validate.probe.trace import ROOT

if TYPE_CHECKING:
    from pytest_transformer_validate.probe.probe import Probe
    from pytest_transformer_validate.subject.batch import Batch

_STEP = 1e-5  # of each parameter's size; in float64 slopes are right to about 1e-9
_FAR = 1e-3
_DRAWS = 3
# Words in the name of a function that is not meant to give its derivative.
_MEANT = re.compile(
    r"straight|ste\b|grad|round|quant|binar|sign|spik|surrog|estim|rever|grl|scale|mult\b|clip"
    r"|clamp|bound|aux|loss",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Wrong:
    """Functions of the model's own whose backward is not the derivative of their forward: their
    names, the module whose code calls the first, and along one direction of all parameters the
    slope of the logits as ``measured`` and as the gradient has it."""

    functions: tuple[str, ...]
    module: str
    measured: float
    gradient: float


class ByHand(Passes):
    """Passes of a float64 copy, all parameters moved: what starts at zero hides what is behind."""

    @remembered
    def wrong(self) -> Wrong | None:
        """See Wrong. ``None`` for functions that are named after a gradient of another kind,
        where the forward rounds, and where no float64 copy runs."""
        probe = self.probe
        if not probe.subject.small or probe.precision.traits().rounds:
            return None
        try:
            twin = probe.in_float64()
            with twin.noised():
                return _compared(twin)
        except Exception:  # noqa: BLE001 - a model need not run in float64
            return None


def written() -> bool:
    """Whether any code that is imported derives from ``torch.autograd.Function``: without, no
    graph need be looked through."""
    kinds = torch.autograd.Function.__subclasses__()
    return any(kind.__module__.partition(".")[0] != "torch" for kind in kinds)


def _compared(probe: Probe) -> Wrong | None:
    batch = probe.batch(*probe.subject.sizes, "by hand")
    model = probe.subject.model
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss, functions = _loss(probe, batch, grad=True)
    names = tuple(dict.fromkeys(kind.__name__ for kind in functions))
    if not names or any(_MEANT.search(name) for name in names):
        return None
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    for draw in range(_DRAWS):
        generator = torch.Generator().manual_seed(probe.seed_for("by hand", draw))
        steps = [_step(p, generator) for p in parameters]
        pairs = zip(gradients, steps, strict=True)
        said = float(sum((g * s).sum() for g, s in pairs if g is not None))
        ends = [_moved(probe, batch, parameters, steps, by) for by in (_STEP, -_STEP)]
        measured = (ends[0] - ends[1]) / (2 * _STEP)
        if abs(measured - said) <= _FAR * max(abs(measured), abs(said)):
            return None
    return Wrong(names, _caller(model, names[0]), measured, said)


def _loss(probe: Probe, batch: Batch, *, grad: bool) -> tuple[torch.Tensor, list[type]]:
    """A random projection of the logits, and the functions of the model's own behind it."""
    with probe.running("by hand", grad=grad) as subject:
        logits = subject(batch).logits
    generator = torch.Generator().manual_seed(probe.seed_for("by hand"))
    projection = torch.randn(logits.shape, generator=generator, dtype=torch.float64)
    return (logits * projection).sum(), functions_behind(logits.grad_fn) if grad else []


def functions_behind(node: Any) -> list[type]:
    """The classes of hand-written functions in a graph, torch's own left out."""
    found, seen, left = [], set(), [node]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        kind = getattr(type(node), "_forward_cls", None)
        if kind is not None and kind.__module__.partition(".")[0] != "torch":
            found.append(kind)
        left += [parent for parent, _ in node.next_functions]
    return found


def _step(parameter: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    size = parameter.detach().square().mean().sqrt() or 1.0
    return size * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)


def _moved(
    probe: Probe,
    batch: Batch,
    parameters: list[torch.nn.Parameter],
    steps: list[torch.Tensor],
    by: float,
) -> float:
    """The loss with every parameter moved along its step."""
    before = [parameter.data for parameter in parameters]
    try:
        for parameter, step in zip(parameters, steps, strict=True):
            parameter.data = parameter.data + by * step
        return float(_loss(probe, batch, grad=False)[0])
    finally:
        for parameter, data in zip(parameters, before, strict=True):
            parameter.data = data


def _caller(model: torch.nn.Module, function: str) -> str:
    """The first module in whose class' code the name stands."""
    for name, module in model.named_modules():
        codes = (getattr(each, "__code__", None) for each in vars(type(module)).values())
        if any(code is not None and function in code.co_names for code in codes):
            return name or ROOT
    return ROOT
