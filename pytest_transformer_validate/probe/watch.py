"""During which module something happens: hooks around every call of one forward."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pytest_transformer_validate.probe.trace import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pytest_transformer_validate.probe.trace import Call


@contextlib.contextmanager
def watched(
    model: nn.Module,
    event: Callable[[str], None],
    *,
    called: Callable[[str, nn.Module, Any, Any], None] | None = None,
) -> Iterator[None]:
    """Call ``event(name)`` whenever a call of a module begins or ends while inside.

    ``name`` is the innermost module whose code ran since the last event, ``(model)`` for the
    model itself. ``called(name, module, arguments, output)`` is called when a call ends.
    """
    running: list[str] = []
    handles: list[Any] = []

    def enter(name: str) -> Callable[..., None]:
        def begin(*_: Any) -> None:
            event(running[-1] if running else ROOT)
            running.append(name)

        return begin

    def leave(name: str) -> Callable[..., None]:
        def end(module: Any, args: Any, output: Any) -> None:
            event(running.pop())
            if called is not None:
                called(name, module, args, output)

        return end

    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        handles.append(module.register_forward_pre_hook(enter(name or ROOT)))
        handles.append(module.register_forward_hook(leave(name or ROOT)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def counting(model: nn.Module) -> Iterator[dict[str, int]]:
    """How often each module runs while inside, by name; those that did not run have none."""
    ran: dict[str, int] = {}

    def count(name: str) -> Any:
        def hook(*_: Any) -> None:
            ran[name] = ran.get(name, 0) + 1

        return hook

    handles = [
        module.register_forward_pre_hook(count(name))
        for name, module in model.named_modules()
        if name and not isinstance(module, torch.jit.ScriptModule)
    ]
    try:
        yield ran
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def first_change(model: nn.Module, happened: Callable[[], bool]) -> Iterator[list[str]]:
    """The module during which ``happened()`` first became true while inside; empty if it did
    not."""
    found: list[str] = []

    def event(name: str) -> None:
        if not found and happened():
            found.append(name)

    with watched(model, event):
        yield found


@contextlib.contextmanager
def drawing(
    model: nn.Module, device: torch.device, called: set[str] | None = None
) -> Iterator[list[str]]:
    """The modules that draw from torch's generator by their own code, in order, while inside;
    those that are called are added to ``called``."""
    names: list[str] = []
    seen = set() if called is None else called
    last = generator_state(device)

    def event(name: str) -> None:
        nonlocal last
        state = generator_state(device)
        if not state.equal(last):
            names.append(name)
        last = state

    with watched(model, event, called=lambda name, *_: seen.add(name)):
        yield names


def generator_state(device: torch.device) -> torch.Tensor:
    """The state of the generator that a model on ``device`` draws from."""
    if device.type == "cuda":
        return torch.cat([torch.get_rng_state(), torch.cuda.get_rng_state(device)])
    return torch.get_rng_state()


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are equal bit by bit, NaN being equal to NaN."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.equal(b):
        return True
    if not (a.is_floating_point() or a.is_complex()):
        return False
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def settings_of_torch() -> dict[str, Any]:
    """What a forward has no business to change in torch, by name."""
    return {
        "the grad mode": torch.is_grad_enabled(),
        "the default dtype": torch.get_default_dtype(),
        "the default device": torch.get_default_device(),
        "anomaly detection": torch.is_anomaly_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "the number of threads": torch.get_num_threads(),
    }


def first_difference(model: nn.Module, before: list[Call], after: list[Call]) -> str | None:
    """The first module that gives something else, bit by bit, for the same inputs, or that calls
    other modules; ``None`` where no module stands out."""
    for old, new in zip(before, after, strict=False):
        if old.name != new.name:
            return _around(model, old.name, new.name)
        if all_same(old.inputs, new.inputs) and not all_same(old.outputs, new.outputs):
            return old.name
    return None


def _around(model: nn.Module, a: str, b: str) -> str:
    """The innermost module with a forward of its own around two modules."""
    modules = dict(model.named_modules())
    parts: list[str] = []
    for one, other in zip(a.split("."), b.split("."), strict=False):
        if one != other:
            break
        parts.append(one)
    while parts and isinstance(
        modules.get(".".join(parts)), nn.ModuleList | nn.ModuleDict | nn.Sequential | None
    ):
        parts.pop()
    return ".".join(parts) or ROOT


def all_same(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> bool:
    """Whether two lists of tensors are equal bit by bit."""
    return len(a) == len(b) and all(map(same, a, b))
