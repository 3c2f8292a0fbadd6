"""Where in the model something first happens: inputs and outputs of every module, in order."""

from __future__ import annotations

import contextlib
import inspect
import re
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pytest_transformer_validate.errors import NotApplicable, first_line
from pytest_transformer_validate.subject.outputs import floating

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = "(model)"
_BACKWARD_ON = re.compile(r"backward on (CPU|MPS|XPU)\b")


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

    ``moved(a, b)`` says whether two tensors of one place differ where they must not. Where the two
    runs part, and call different modules, it is the innermost one around these; ``None`` where no
    module stands out.
    """
    for place, (old, new) in enumerate(zip(before, after, strict=False)):
        if old.name != new.name:
            return _around({old.name, new.name}, before[place:], after[place:], moved)
        if _alters(old, new, moved):
            return old.name
    return None


def _around(
    parted: set[str],
    before: list[Call],
    after: list[Call],
    moved: Callable[[torch.Tensor, torch.Tensor], bool],
) -> str | None:
    """The innermost module that ``parted`` ones are in and whose outputs alone differ."""
    first = {call.name: call for call in reversed(after)}
    for old in before:
        inside = any(old.name == ROOT or name.startswith(f"{old.name}.") for name in parted)
        if inside and old.name in first and _alters(old, first[old.name], moved):
            return old.name
    return None


def _alters(old: Call, new: Call, moved: Callable[[torch.Tensor, torch.Tensor], bool]) -> bool:
    """Whether the inputs of two calls agree, and the outputs do not."""
    return _any_moved(old.outputs, new.outputs, moved) and not _any_moved(
        old.inputs, new.inputs, moved
    )


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


@contextlib.contextmanager
def differentiated() -> Iterator[None]:
    """Raises NotApplicable where torch itself says that it has no backward for an operation on
    this kind of device: that is no mistake of the model's."""
    try:
        yield
    except NotImplementedError as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        by_torch = str(frame.f_globals.get("__name__")).startswith("torch.")
        if not by_torch or not _BACKWARD_ON.search(str(error)):
            raise
        raise NotApplicable(f"no gradients on this device: {first_line(error)}") from error
