"""What a model holds beside parameters, buffers and submodules, and giving it back.

Models keep tables, caches and counters in plain attributes: tensors, lists, dicts, objects of
their own and modules that no container registers. References are copied, tensors only where they
are small: a model of a billion parameters costs as much as a small one.
"""

from __future__ import annotations

import operator
import sys
import types
from collections import OrderedDict, defaultdict, deque
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pytest_transformer_validate.identity import Identities

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, ValuesView

_PLAIN = frozenset((bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device))
_LARGEST = 1 << 16  # elements of a tensor whose value is kept
_MOST = 1 << 22  # elements of all such tensors together
_ENTRIES = 4096  # of a list or dict; longer ones are vocabularies and data
_HOLDERS = 20_000
_DEPTH = 4
_INTERNAL = frozenset(vars(nn.Module())) - {"training"}
_HELD = (torch.Tensor, dict, list, set, deque)
_DICTS = (dict, OrderedDict, defaultdict)
_OPAQUE = (
    type,
    types.FunctionType,
    types.MethodType,
    types.BuiltinFunctionType,
    types.ModuleType,
)


class Holders:
    """Dicts, and the very objects that they hold."""

    def __init__(self) -> None:
        self._empty: list[dict[Any, Any]] = []  # most are: no copies of those
        self._filled: list[dict[Any, Any]] = []
        self._now: list[ValuesView[Any]] = []  # views of what the filled ones hold
        self._copies: list[dict[Any, Any]] = []
        self._values: Identities | None = None

    def __len__(self) -> int:
        return len(self._empty) + len(self._filled)

    def take(self, holder: dict[Any, Any]) -> dict[Any, Any]:
        """Keep what a dict holds now, and give it."""
        if not holder:
            self._empty.append(holder)
            return {}
        kept = dict(holder)
        self._filled.append(holder)
        self._now.append(dict.values(holder))
        self._copies.append(kept)
        return kept

    def same(self) -> bool:
        """Whether each dict still holds the same objects; all of them in one comparison."""
        if self._values is None:
            self._values = Identities(self._now, [kept.values() for kept in self._copies])
        return not any(self._empty) and self._values.same()

    def give_back(self) -> None:
        """Put back what each of them held."""
        for holder in filter(None, self._empty):
            holder.clear()
        for holder, kept in zip(self._filled, self._copies, strict=True):
            _restore(holder, kept)


class Attributes:
    """The plain attributes of every module of a model, and everything they hold, as they are.

    Also those of the classes, which all instances share: a mutable default is one.
    """

    def __init__(self, model: nn.Module, modules: list[nn.Module] | None = None) -> None:
        """``modules`` are all modules of the model, where they are known."""
        modules = modules or list(model.modules())
        self._dicts = Holders()
        self._lists: list[tuple[Any, list[Any]]] = []
        self._classes: list[tuple[type, dict[str, Any], list[Any]]] = []
        self._tensors: list[tuple[torch.Tensor, int, torch.Tensor | None]] = []
        self._left = _MOST
        registered = (*modules, *members(modules, "_parameters"), *members(modules, "_buffers"))
        self._seen = set(map(id, registered))
        for module in modules:
            self._take_dict(vars(module), 0)
        kinds = dict.fromkeys(map(type, modules))
        for cls in dict.fromkeys(cls for kind in kinds for cls in _own_classes(kind)):
            self._take_class(cls)

    @property
    def small(self) -> list[torch.Tensor]:
        """Tensors whose value is kept."""
        return [tensor for tensor, _, value in self._tensors if value is not None]

    @property
    def values(self) -> list[tuple[torch.Tensor, int, torch.Tensor]]:
        """Those tensors with their version and value then."""
        return [(t, version, value) for t, version, value in self._tensors if value is not None]

    @property
    def large(self) -> list[torch.Tensor]:
        """Tensors of which only the version is known."""
        return [tensor for tensor, _, value in self._tensors if value is None]

    def same(self) -> bool:
        """Whether nothing has changed since, as far as it would be given back."""
        return (
            self._dicts.same()
            and all(_same(sequence, entries) for sequence, entries in self._lists)
            and all(_same(vars(cls).values(), every) for cls, _, every in self._classes)
            and all(version_of(tensor) == version for tensor, version, _ in self._tensors)
        )

    def give_back(self) -> None:
        """Put everything back that is not as it was."""
        self._dicts.give_back()
        for sequence, entries in self._lists:
            if not _same(sequence, entries):
                sequence.clear()
                (sequence.update if isinstance(sequence, set) else sequence.extend)(entries)
        for cls, kept, _ in self._classes:
            _restore_class(cls, kept)
        with torch.no_grad():
            for tensor, version, value in self._tensors:
                if value is not None and version_of(tensor) != version:
                    give_value_back(tensor, value)

    def _take(self, value: Any, depth: int) -> None:
        if type(value) in _PLAIN or id(value) in self._seen or isinstance(value, _OPAQUE):
            return
        self._seen.add(id(value))
        if isinstance(value, torch.Tensor):
            self._take_tensor(value)
            return
        if depth > _DEPTH or len(self._dicts) + len(self._lists) > _HOLDERS:
            return
        if type(value) in _DICTS:
            self._take_dict(value, depth)
        elif type(value) in (list, set, deque):
            if len(value) <= _ENTRIES:
                self._lists.append((value, list(value)))
                self._take_all(value, depth)
        elif isinstance(value, tuple):
            self._take_all(value, depth)
        elif _has_state(value):
            self._take_dict(vars(value), depth)

    def _take_all(self, values: Iterable[Any], depth: int) -> None:
        for value in list(values):
            self._take(value, depth + 1)

    def _take_dict(self, holder: dict[Any, Any], depth: int) -> None:
        if len(holder) > _ENTRIES:
            return
        for key, value in self._dicts.take(holder).items():
            if type(value) not in _PLAIN and not (depth == 0 and key in _INTERNAL):
                self._take(value, depth + 1)

    def _take_class(self, cls: type) -> None:
        kept = _data(cls)
        self._classes.append((cls, kept, list(vars(cls).values())))
        self._take_all(kept.values(), 0)

    def _take_tensor(self, tensor: torch.Tensor) -> None:
        value = None
        dense = not tensor.is_meta and tensor.layout == torch.strided
        if dense and tensor.numel() <= min(_LARGEST, self._left):
            self._left -= tensor.numel()
            value = tensor.detach().clone()
        self._tensors.append((tensor, version_of(tensor), value))


def members(modules: list[nn.Module], registry: str) -> list[Any]:
    """Every parameter (``_parameters``) or buffer (``_buffers``) once; ``Module.parameters()``
    walks the whole tree for each of them."""
    found = (t for module in modules for t in getattr(module, registry).values())
    return list({id(t): t for t in found if t is not None}.values())


def version_of(tensor: torch.Tensor) -> int:
    """How often a tensor was written to; 0 where that is not counted (inference tensors)."""
    return 0 if tensor.is_inference() else tensor._version


def give_value_back(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """Write ``value`` into ``tensor``, whatever shape it has by now."""
    with torch.no_grad():
        if tensor.shape == value.shape and not tensor.is_inference():
            tensor.copy_(value)
        else:
            tensor.data = value.clone()


def _restore(holder: dict[Any, Any], kept: dict[Any, Any]) -> None:
    """Make ``holder`` hold what ``kept`` does, the very same objects."""
    if len(holder) == len(kept) and all(map(operator.is_, holder.values(), kept.values())):
        return
    for key in [key for key in holder if key not in kept]:
        del holder[key]
    holder.update(kept)


def _restore_class(cls: type, kept: dict[str, Any]) -> None:
    now = _data(cls)
    for name in now.keys() - kept.keys():
        delattr(cls, name)
    for name, value in kept.items():
        if now.get(name, kept) is not value:
            setattr(cls, name, value)


def _data(cls: type) -> dict[str, Any]:
    return {name: value for name, value in vars(cls).items() if _is_data(name, value)}


def _same(sequence: Any, entries: list[Any]) -> bool:
    return len(sequence) == len(entries) and all(map(operator.is_, sequence, entries))


def _is_data(name: str, value: Any) -> bool:
    """Whether a class attribute may hold state: no method, no property, nothing of Python's."""
    if name.startswith(("__", "_abc")):
        return False
    return type(value) in _PLAIN or isinstance(value, _HELD)


def _own_classes(kind: type) -> Iterator[type]:
    """The classes of a module that are not torch's."""
    for cls in kind.__mro__:
        if cls is nn.Module:
            return
        if not cls.__module__.startswith("torch."):
            yield cls


def _has_state(value: Any) -> bool:
    """Whether an object's attributes belong to the model: one of a class that the model brought,
    or a module that no container registers."""
    if isinstance(value, nn.Module | types.SimpleNamespace):
        return True
    root = type(value).__module__.partition(".")[0]
    return hasattr(value, "__dict__") and root != "torch" and root not in sys.stdlib_module_names
