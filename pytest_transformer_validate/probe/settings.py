"""What a model was told about its device or dtype, and remembers beside its tensors.

Code such as ``torch.arange(n, device=config.device)`` or ``x.to(cfg["dtype"])`` follows a setting
and no tensor. Whoever moves or converts such a model sets it, so the passes do that, too.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

Place = tuple[dict[str, Any], str, Any]  # where a setting is kept, its name, and what it says

_NAMES = {torch.device: ("device", "DEVICE"), torch.dtype: ("dtype", "torch_dtype")}


@contextlib.contextmanager
def settings_kept(model: torch.nn.Module, kind: type) -> Iterator[list[Place]]:
    """``settings_of``, given back at the end."""
    found = settings_of(model, kind)
    try:
        yield found
    finally:
        for place, name, value in found:
            place[name] = value


def settings_of(model: torch.nn.Module, kind: type) -> list[Place]:
    """The settings of a kind (``torch.device`` or ``torch.dtype``).

    They stand in the model's configuration, and for a device among the globals of its code; where
    the configuration has one or the constructor asks for it, what its parts remember counts, too,
    and so does what they took from the machine.
    """
    places = list(_configurations(model))
    asks = any(name in inspect.signature(type(model).__init__).parameters for name in _NAMES[kind])
    if asks or any(_names(place, kind) for place in places):
        places += [vars(module) for module in model.modules()]
    elif kind is torch.device:
        places += [vars(module) for module in model.modules() if _asks_the_machine(module)]
    if kind is torch.device:
        places += _globals(model)
    return [(place, name, place[name]) for place in places for name in _names(place, kind)]


def tell(settings: list[Place], value: torch.device | torch.dtype) -> None:
    """Set them all; a device that is kept as a string stays one."""
    for place, name, before in settings:
        place[name] = str(value) if isinstance(before, str) else value


def _names(place: dict[str, Any], kind: type) -> list[str]:
    kinds = (kind, str) if kind is torch.device else (kind,)
    return [name for name in _NAMES[kind] if isinstance(place.get(name), kinds)]


def _asks_the_machine(module: torch.nn.Module) -> bool:
    """Whether a constructor chooses by what there is: torch.cuda.is_available()."""
    made = (vars(kind).get("__init__") for kind in type(module).__mro__)
    codes = (getattr(each, "__code__", None) for each in made)
    return any(code is not None and "is_available" in code.co_names for code in codes)


def _configurations(model: torch.nn.Module) -> Iterator[dict[str, Any]]:
    """What plain objects and dicts in attributes of the model hold, each once."""
    seen = set()
    for module in model.modules():
        for value in vars(module).values():
            held = value if isinstance(value, dict) else getattr(value, "__dict__", None)
            if type(held) is dict and "_parameters" not in held and id(held) not in seen:
                seen.add(id(held))
                yield held


def _globals(model: torch.nn.Module) -> list[dict[str, Any]]:
    """The globals of the code of the model's own classes."""
    names = {type(module).__module__ for module in model.modules()}
    own = [name for name in names if name.partition(".")[0] not in {"torch", "builtins"}]
    return [vars(sys.modules[name]) for name in own if name in sys.modules]
