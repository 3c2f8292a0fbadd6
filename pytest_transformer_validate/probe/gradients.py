"""Which parameters a gradient reaches, and which modules ran."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from pytest_transformer_validate.subject.outputs import floating

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pytest_transformer_validate.probe.probe import Probe
    from pytest_transformer_validate.subject.outputs import Output

BATCHES = 3


@dataclass
class Gradients:
    """The union over several batches.

    ``norms`` holds, for each parameter that asks for a gradient, the largest gradient norm seen,
    ``None`` where autograd never reached it; ``reached_by_others`` those that only an output
    beside the logits reaches; ``used`` the parameters that some operation read; ``tokens`` for
    each module that ran, how many vectors each of its calls was given; ``selects`` the modules
    that return whole numbers only (indices of a choice); ``not_finite`` parameters whose gradient
    held NaN or infinity.
    """

    norms: dict[str, float | None] = field(default_factory=dict)
    reached_by_others: set[str] = field(default_factory=set)
    used: set[str] = field(default_factory=set)
    tokens: dict[str, list[int]] = field(default_factory=dict)
    selects: set[str] = field(default_factory=set)
    not_finite: list[str] = field(default_factory=list)


def gradients(probe: Probe, noised: bool = False) -> Gradients:
    """Backward passes of a random projection of the logits over batches of several lengths.

    ``noised`` moves every parameter at random first, so that what starts at zero (gates,
    residual projections) passes gradients on.
    """
    found = Gradients()
    with probe.noised() if noised else contextlib.nullcontext():
        for number, (rows, length) in enumerate(_shapes(probe)):
            batch = probe.batch(rows, length, "gradients", number)
            with probe.running("gradients", number, grad=True) as subject:
                with _watched(subject.model, found), _Reads(subject.model, found.used):
                    output = subject(batch)
                _backward(probe, output, found)
    return found


def _shapes(probe: Probe) -> list[tuple[int, int]]:
    """Batches of different lengths: short ones, and one near the maximum where that is cheap."""
    rows, length = probe.subject.sizes
    longest = min(probe.subject.max_length or 64, 64) if probe.subject.small else length
    return [(rows, length), (max(2, rows - 2), max(1, length - 3)), (2, longest)]


def _backward(probe: Probe, output: Output, found: Gradients) -> None:
    model = probe.subject.model
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    _record(probe, named, [output.logits], found, lambda name: None)
    for name in named:
        found.norms.setdefault(name, None)
    left = {name: p for name, p in named.items() if found.norms[name] is None}
    others = [t for t in output.others if t.requires_grad]
    if left and others:
        _record(probe, left, others, found, found.reached_by_others.add)


def _record(
    probe: Probe,
    named: Mapping[str, torch.nn.Parameter],
    outputs: list[torch.Tensor],
    found: Gradients,
    reached: Callable[[str], None],
) -> None:
    if not named or not any(t.requires_grad for t in outputs):
        return
    generator = torch.Generator().manual_seed(probe.seed_for("gradient projection"))
    loss = sum(
        (torch.where(t.isfinite(), t, 0) * torch.randn(t.shape, generator=generator).to(t)).sum()
        for t in outputs
        if t.requires_grad
    )
    values = torch.autograd.grad(
        loss, list(named.values()), allow_unused=True, retain_graph=True
    )
    for name, value in zip(named, values, strict=True):
        if value is None:
            continue
        reached(name)
        value = value.coalesce().values() if value.is_sparse else value
        norm = float(value.detach().double().norm())
        if norm != norm or norm == float("inf"):
            found.not_finite.append(name)
        found.norms[name] = max(found.norms.get(name) or 0.0, norm)


@contextlib.contextmanager
def _watched(model: torch.nn.Module, found: Gradients) -> Iterator[None]:
    """Note which modules run, on how many vectors, and which return whole numbers only."""

    def hook(name: str) -> Callable[..., None]:
        def record(_module: Any, args: Any, kwargs: Any, output: Any) -> None:
            sizes = found.tokens.setdefault(name, [])
            given = floating((args, kwargs))
            if given and given[0].dim():
                sizes.append(given[0].numel() // max(1, given[0].shape[-1]))
            if isinstance(output, torch.Tensor) and not output.is_floating_point():
                found.selects.add(name)

        return record

    handles = [
        module.register_forward_hook(hook(name), with_kwargs=True)
        for name, module in model.named_modules()
        if not isinstance(module, torch.jit.ScriptModule)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Reads(TorchFunctionMode):
    """Collects the names of parameters that any torch function is given."""

    def __init__(self, model: torch.nn.Module, used: set[str]) -> None:
        super().__init__()
        self.names = {id(p): name for name, p in model.named_parameters()}
        self.used = used

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        self._note(args)
        self._note((kwargs or {}).values())
        return func(*args, **(kwargs or {}))

    def _note(self, values: Any) -> None:
        for value in values:
            if isinstance(value, torch.Tensor):
                name = self.names.get(id(value))
                if name is not None:
                    self.used.add(name)
            elif isinstance(value, tuple | list):
                self._note(value)
