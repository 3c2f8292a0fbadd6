"""Where in the model something first happens: inputs and outputs of every module, in order."""

from __future__ import annotations

import contextlib
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pytest_transformer_validate.subject.outputs import floating

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = "(model)"


@dataclass(frozen=True)
class Call:
    """One call of one module: its name and the floating point tensors in and out."""

    name: str
    inputs: list[torch.Tensor]
    outputs: list[torch.Tensor]


@contextlib.contextmanager
def traced(
    model: torch.nn.Module, tensors: Callable[[Any], list[torch.Tensor]] = floating
) -> Iterator[list[Call]]:
    """The calls of every module while inside, in the order in which they end.

    An inner module ends before the one around it, so the first call with a property is the
    innermost one. The model itself is called ``(model)``.
    """
    calls: list[Call] = []
    open_calls: list[list[torch.Tensor]] = []
    handles: list[Any] = []

    def enter(_module: Any, args: Any, kwargs: Any) -> None:
        open_calls.append([t.detach().clone() for t in tensors((args, kwargs))])

    def leave(name: str) -> Callable[..., None]:
        def record(_module: Any, _args: Any, output: Any) -> None:
            outputs = [t.detach().clone() for t in tensors(output)]
            calls.append(Call(name, open_calls.pop(), outputs))

        return record

    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(module.register_forward_hook(leave(name or ROOT)))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def first_to_differ(
    before: list[Call], after: list[Call], moved: Callable[[torch.Tensor, torch.Tensor], bool]
) -> str | None:
    """The first module whose inputs agree where they must and whose outputs do not.

    ``moved(a, b)`` says whether two tensors of one place differ where they must not. ``None``
    where the two runs did not call the same modules, or no module stands out.
    """
    for old, new in zip(before, after, strict=False):
        if old.name != new.name:
            return None
        if _any_moved(old.outputs, new.outputs, moved) and not _any_moved(
            old.inputs, new.inputs, moved
        ):
            return old.name
    return None


def first_not_finite(calls: list[Call]) -> str | None:
    """The first module that gives NaN, or infinity, from finite inputs."""
    for call in calls:
        if _any_nan(call.outputs) and not _any_nan(call.inputs):
            return call.name
    return None


def where_raised(model: torch.nn.Module, error: BaseException) -> str | None:
    """The innermost module of the model whose code was running when ``error`` was raised;
    ``None`` where the model was not running."""
    names = {id(module): name or ROOT for name, module in model.named_modules()}
    place = None
    trace = error.__traceback__
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        if id(owner) in names and isinstance(owner, torch.nn.Module):
            place = names[id(owner)]
        trace = trace.tb_next
    return place


def running_module(model: torch.nn.Module) -> str | None:
    """The innermost module of the model whose code is running now."""
    names = {id(module): name or ROOT for name, module in model.named_modules()}
    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if id(owner) in names and isinstance(owner, torch.nn.Module):
            return names[id(owner)]
        frame = frame.f_back
    return None


def _any_moved(
    a: list[torch.Tensor],
    b: list[torch.Tensor],
    moved: Callable[[torch.Tensor, torch.Tensor], bool],
) -> bool:
    return any(x.shape == y.shape and moved(x, y) for x, y in zip(a, b, strict=False))


def _any_nan(tensors: list[torch.Tensor]) -> bool:
    return any(bool(t.isnan().any()) or bool((t == float("inf")).any()) for t in tensors)
