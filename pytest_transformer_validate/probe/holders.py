"""Which tensors a model holds, and in which storage they lie."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parameter import is_lazy

if TYPE_CHECKING:
    from collections.abc import Iterator


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
        for path, tensor in _tensors_in(value, name, depth=3):
            yield f"{prefix}.{path}" if prefix else path, tensor


_HOLDS = (torch.Tensor, dict, list, tuple)
_REGISTRIES = frozenset(vars(torch.nn.Module()))  # what every module has


def _tensors_in(value: Any, path: str, depth: int) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield path, value
    elif depth and isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors_in(item, f"{path}[{key!r}]", depth - 1)
    elif depth and isinstance(value, list | tuple):
        for index, item in enumerate(value[:4096]):
            yield from _tensors_in(item, f"{path}[{index}]", depth - 1)
