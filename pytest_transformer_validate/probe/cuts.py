"""Where a forward cuts the gradient: ``detach()`` and ``.data`` on the way to the logits.

A parameter that still gets a gradient by another way gets a wrong one, which no norm shows. So
the forward runs again with its cuts passing gradients on, and the gradients are compared.
"""

from __future__ import annotations

import itertools
import linecache
import math
import re
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from pytest_transformer_validate.probe.backward import differentiate
from pytest_transformer_validate.probe.gradients import CUTS
from pytest_transformer_validate.probe.passes import Passes, remembered
from pytest_transformer_validate.probe.trace import ROOT
from pytest_transformer_validate.probe.watch import counting

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import FrameType

    from pytest_transformer_validate.subject.batch import Batch

    Gradient = dict[str, torch.Tensor | None]

_MINUS = {torch.Tensor.sub, torch.Tensor.__sub__, torch.Tensor.__rsub__, torch.sub}
_OVER = {torch.Tensor.div, torch.Tensor.__truediv__, torch.Tensor.true_divide, torch.div}
_STEPS = re.compile(r"^(Round|Sign|Floor|Ceil|Trunc|Heaviside)")
_STRAIGHT = re.compile(r"^R?Sub")  # what stands inside of (hard - soft).detach()
# Words next to a cut that is meant: truncated back-propagation, quantisation, a teacher.
_MEANT = re.compile(
    r"(?<![a-z])(trunc\w*|bptt|mem|mems|memory|memories|segments?|stop_?grad\w*|straight\w*"
    r"|quant\w*|codebooks?|ema|teacher)(?![a-z])",
    re.IGNORECASE,
)
_NODES = 2000  # of the graph behind a cut are looked at
_MOVED = 0.01  # of a gradient: float32 keeps one to better than 1e-3
_TRIED = 6  # places that are opened one by one


@dataclass(frozen=True)
class Cut:
    """A place that keeps gradients back: the module, its line of code, the parameters that get
    another gradient where it does not, and by how much the first of them differs, as a part."""

    module: str
    line: str
    parameters: tuple[str, ...]
    moved: float


@dataclass
class _Site:
    """One call of a cut, and whether what is done with it shows that it is meant."""

    module: str
    line: str
    meant: bool


class Cuts(Passes):
    """Passes in which ``detach()`` and ``.data`` pass gradients on."""

    @remembered
    def harmful(self) -> Cut | None:
        """The first cut that changes the gradient of a parameter, if that is not what it is for.

        Meant is a cut of a difference (straight-through estimators, a maximum in front of a
        softmax), of what is divided by, behind a rounding, in a module that runs several times
        (truncated back-propagation), and one that scales all gradients alike.
        """
        probe = self.probe
        batch = probe.batch(*probe.subject.sizes, "cuts")
        condition = "noised" if probe.subject.small else ""
        with probe.under(condition):
            sites = self._sites(batch)
            left = [number for number, site in enumerate(sites) if not site.meant]
            closed = self._gradients(batch, ()) if left else {}
            if not closed or not _changed(closed, self._gradients(batch, left)):
                return None
            places: dict[tuple[str, str], list[int]] = {}
            for number in left:
                places.setdefault((sites[number].module, sites[number].line), []).append(number)
            for (module, line), numbers in itertools.islice(places.items(), _TRIED):
                changed = _changed(closed, self._gradients(batch, numbers))
                if changed:
                    return Cut(module, line, tuple(changed), next(iter(changed.values())))
        return None

    def _sites(self, batch: Batch) -> list[_Site]:
        """All cuts of a forward; none where one of them has to be one."""
        with self.probe.running("cuts", grad=True) as subject, counting(subject.model) as calls:
            found = _Open(subject.model, None)
            try:
                with found:
                    subject(batch)
            except Exception:  # noqa: BLE001 - whatever the model says of a tensor with a gradient
                return []
        for site in found.sites:
            site.meant |= _again(calls, site.module)
        return found.sites

    def _gradients(self, batch: Batch, opened: Any) -> Gradient:
        """The gradient of a random projection of the logits; ``opened`` are the numbers of the
        calls that pass gradients on. Empty where one of these has to be a cut."""
        with self.probe.running("cuts", grad=True) as subject:
            try:
                with _Open(subject.model, frozenset(opened)):
                    logits = subject(batch).logits
                differentiate(self.probe, subject.model, [logits])
            except Exception:  # noqa: BLE001 - whatever the model says of a tensor with a gradient
                return {}
            named = subject.model.named_parameters()
            return {n: None if p.grad is None else p.grad.to_dense() for n, p in named}


def _again(calls: Mapping[str, int], module: str) -> bool:
    """Whether a module, or one around it, ran more than once."""
    parts = module.split(".") if module != ROOT else []
    around = [".".join(parts[: i + 1]) for i in range(len(parts))]
    return any(calls.get(name, 0) > 1 for name in around)


def _changed(one: Gradient, other: Gradient) -> dict[str, float]:
    """Parameters whose gradients differ, and by how much; none where all are one multiple."""
    moved: dict[str, float] = {}
    ratios: list[float] = []
    for name, b in other.items():
        a = one[name]
        if b is None:
            continue
        a = torch.zeros_like(b) if a is None else a
        size = max(float(a.double().norm()), float(b.double().norm()))
        distance = float((a.double() - b.double()).norm())
        if not math.isfinite(size) or distance <= _MOVED * size:
            continue
        moved[name] = distance / size
        along = float((a.double() * b.double()).sum()) / max(float(a.double().norm()) ** 2, 1e-300)
        rest = float((b.double() - along * a.double()).norm())
        ratios.append(along if rest <= _MOVED * size else math.nan)
    one_multiple = ratios and max(ratios) - min(ratios) <= _MOVED * abs(max(ratios))
    return {} if one_multiple else moved


@dataclass
class _Seen:
    """Results of cuts and of arithmetic with numbers on them, kept alive, by identity."""

    numbers: dict[int, int] = field(default_factory=dict)
    kept: list[torch.Tensor] = field(default_factory=list)


class _Open(TorchFunctionMode):
    """While inside, the cuts with a number in ``opened`` (``None``: all) pass gradients on."""

    def __init__(self, model: torch.nn.Module, opened: frozenset[int] | None) -> None:
        super().__init__()
        self.names = {id(module): name or ROOT for name, module in model.named_modules()}
        self.opened = opened
        self.sites: list[_Site] = []
        self.seen = _Seen()

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in CUTS and args[0].requires_grad and args[0].is_floating_point():
            return self._cut(func, args[0])
        result = func(*args, **(kwargs or {}))
        if self.opened is None and self.seen.numbers:
            self._follow(func, args, result)
        return result

    def _cut(self, func: Any, tensor: torch.Tensor) -> torch.Tensor:
        number = len(self.sites)
        module, line = self._place(sys._getframe(2))
        meant = bool(_MEANT.search(line)) or _stepped(tensor.grad_fn)
        self.sites.append(_Site(module, line, meant))
        if self.opened is not None and number not in self.opened:
            kept: torch.Tensor = func(tensor)
            return kept
        passed = tensor.view(tensor.shape)
        self._keep(passed, number)
        return passed

    def _follow(self, func: Any, args: tuple[Any, ...], result: Any) -> None:
        """Note what is meant by a cut: it is taken away from something, or divided by."""
        numbers = [self.seen.numbers.get(id(a)) for a in args if isinstance(a, torch.Tensor)]
        cuts = [n for n in numbers if n is not None]
        if not cuts:
            return
        divides = func in _OVER and numbers[-1] is not None and len(numbers) > 1
        if (func in _MINUS and len(numbers) > 1) or divides:
            for number in cuts:
                self.sites[number].meant = True
        elif len(numbers) == 1 and isinstance(result, torch.Tensor):
            self._keep(result, cuts[0])

    def _keep(self, tensor: torch.Tensor, number: int) -> None:
        self.seen.numbers[id(tensor)] = number
        self.seen.kept.append(tensor)

    def _place(self, frame: FrameType | None) -> tuple[str, str]:
        """The innermost module whose code is running, and the line that cuts."""
        line = ""
        while frame is not None:
            owner = frame.f_locals.get("self")
            code = frame.f_code
            if not line and "/torch/" not in code.co_filename.replace("\\", "/"):
                line = linecache.getline(code.co_filename, frame.f_lineno).strip()
            if isinstance(owner, torch.nn.Module) and id(owner) in self.names:
                return self.names[id(owner)], line[:120]
            frame = frame.f_back
        return ROOT, line[:120]


def _stepped(node: Any) -> bool:
    """Whether a tensor is a difference, or was rounded on its way."""
    if node is None:
        return False
    if _STRAIGHT.match(node.name()):
        return True
    seen: set[Any] = set()
    stack = [node]
    while stack and len(seen) < _NODES:
        node = stack.pop()
        if _STEPS.match(node.name()):
            return True
        for before, _ in node.next_functions:
            if before is not None and before not in seen:
                seen.add(before)
                stack.append(before)
    return False
