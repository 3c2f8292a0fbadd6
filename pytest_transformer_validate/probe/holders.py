"""Which tensors a model holds, and in which storage they lie."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch.nn.parameter import is_lazy

if TYPE_CHECKING:
    from collections.abc import Iterator

Item = TypeVar("Item")


def storage_of(tensor: torch.Tensor) -> int:
    """The address of the storage that a tensor lies in."""
    return tensor.untyped_storage().data_ptr()


def own_storages(model: torch.nn.Module) -> set[int]:
    """The storages of a model's parameters and buffers."""
    owned = (*model.parameters(), *model.buffers())
    return {storage_of(tensor) for tensor in owned if not is_lazy(tensor)}


def named_tensors(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters, buffers and tensors in plain attributes, by every name that they have."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)
    for name, module in model.named_modules():
        yield from held_tensors(module, name)


def own_weight(module: torch.nn.Module) -> torch.nn.Parameter | None:
    """The parameter ``weight`` of the module itself, which may be scripted; a weight that a
    parametrisation computes is none."""
    own = module.named_parameters(recurse=False, remove_duplicate=False)
    return next((parameter for name, parameter in own if name == "weight"), None)


def held_tensors(module: torch.nn.Module, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors in the plain attributes of one module, also in lists, tuples and dicts of them."""
    for name, value in vars(module).items():
        if name in _REGISTRIES or not isinstance(value, _HOLDS) or name.endswith("_hooks"):
            continue
        for path, tensor in _items_of(value, name, torch.Tensor, depth=3):
            yield f"{prefix}.{path}" if prefix else path, tensor


def held_modules(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """Modules with parameters in plain lists, tuples and dicts, where none of them is registered
    anywhere in the model."""
    known = set(model.modules())
    for name, module in model.named_modules():
        for own, value in vars(module).items():
            if own in _REGISTRIES or not isinstance(value, dict | list | tuple):
                continue
            for path, found in _items_of(value, own, torch.nn.Module, depth=3):
                if found not in known and next(found.parameters(), None) is not None:
                    yield f"{name}.{path}" if name else path, found


_HOLDS = (torch.Tensor, dict, list, tuple)
_REGISTRIES = frozenset(vars(torch.nn.Module()))  # what every module has


def _items_of(value: Any, path: str, kind: type[Item], depth: int) -> Iterator[tuple[str, Item]]:
    """What is of a kind in a nest of dicts, lists and tuples."""
    if isinstance(value, kind):
        yield path, value
    elif depth and isinstance(value, dict):
        for key, item in value.items():
            yield from _items_of(item, f"{path}[{key!r}]", kind, depth - 1)
    elif depth and isinstance(value, list | tuple):
        for index, item in enumerate(value[:4096]):
            yield from _items_of(item, f"{path}[{index}]", kind, depth - 1)


def tensors_behind(value: Any, seen: set[int] | None = None) -> Iterator[torch.Tensor]:
    """Every tensor inside a nest of containers and plain objects."""
    seen = set() if seen is None else seen
    if id(value) in seen or isinstance(value, str | bytes | torch.nn.Module | type):
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        with contextlib.suppress(RuntimeError, NotImplementedError):  # sparse, nested
            value.untyped_storage()
            yield value
        return
    if isinstance(value, Mapping):
        items = list(value.values())
    elif isinstance(value, list | tuple | deque | set):
        items = list(value)
    else:
        items = list(vars(value).values()) if hasattr(value, "__dict__") else []
    for item in items:
        yield from tensors_behind(item, seen)
