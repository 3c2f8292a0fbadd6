"""Give modules other inputs, and what they return another place."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch

from pytest_transformer_validate.probe.trace import ROOT
from pytest_transformer_validate.subject.dispatch import uncompiled
from pytest_transformer_validate.subject.outputs import floating

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    Exchange = Callable[[str, list[torch.Tensor]], list[torch.Tensor] | None]


@contextlib.contextmanager
def hooked(
    model: torch.nn.Module,
    enter: Exchange,
    leave: Exchange,
    only: Collection[str] | None = None,
) -> Iterator[None]:
    """Call ``enter`` and ``leave`` around every call of a module, with the floating point tensors
    in and out; lists that they give take their place. ``only`` names the modules meant."""

    def before(name: str) -> Callable[..., Any]:
        def hook(_module: Any, args: Any, kwargs: Any) -> Any:
            given = floating((args, kwargs))
            return None if (new := enter(name, given)) is None else put((args, kwargs), given, new)

        return hook

    def after(name: str) -> Callable[..., Any]:
        def hook(_module: Any, _args: Any, _kwargs: Any, output: Any) -> Any:
            given = floating(output)
            return None if (new := leave(name, given)) is None else put(output, given, new)

        return hook

    handles: list[Any] = []
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule) or not (
            only is None or (name or ROOT) in only
        ):
            continue
        handles.append(module.register_forward_pre_hook(before(name or ROOT), with_kwargs=True))
        handles.append(module.register_forward_hook(after(name or ROOT), with_kwargs=True))
    try:
        with uncompiled():  # else exchanged tensors have parts compiled again and again
            yield
    finally:
        for handle in handles:
            handle.remove()


def put(value: Any, old: list[torch.Tensor], new: list[torch.Tensor]) -> Any:
    """The nest ``value`` with the tensors ``old`` replaced by ``new``, as far as it is made of
    tuples, lists, dicts and model outputs. One that is there twice is replaced twice."""
    by_id = {id(a): a for a in old}
    by_id |= {id(a): b for a, b in zip(old, new, strict=True) if b is not a}

    def walk(item: Any) -> Any:
        if isinstance(item, torch.Tensor):
            return by_id.get(id(item), item)
        if type(item) in (tuple, list):
            return type(item)(walk(part) for part in item)
        if type(item) is dict:
            return {key: walk(part) for key, part in item.items()}
        return item

    return walk(value)
