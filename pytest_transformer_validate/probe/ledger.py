"""Counting what a model does instead of timing it: operations, products, bytes.

Axes: B batch, T positions, H heads, S keys, E and V widths of keys and values.
"""

from __future__ import annotations

import contextlib
import functools
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from pytest_transformer_validate.probe.trace import ROOT
from pytest_transformer_validate.subject.dispatch import Operations, operation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_aten = torch.ops.aten
_WEIGHTED = {_aten.mm, _aten.addmm}
_BATCHED = {_aten.bmm, _aten.baddbmm}
_CONVOLUTIONS = {_aten.convolution, _aten._convolution}
_ATTENTION = "_scaled_dot_product_"


@dataclass
class Work:
    """What was counted: ``operations``, multiplications in matrix ``products`` of batches of
    matrices (attention, mostly), and in all products together (``multiplications``)."""

    operations: int = 0
    products: int = 0
    multiplications: int = 0


class Saved(NamedTuple):
    """One storage that autograd keeps for the backward, or that an operation makes: the tensor's
    shape, the bytes of the storage, and the module that was running."""

    shape: tuple[int, ...]
    size: int
    place: str


class Ledger(Operations):
    """Counts the operations of a model: by module in ``work_of``, where ``inside`` is kept up to
    date (see ``places``). ``made`` are all floating point results in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.inside: list[str] = [ROOT]
        self.work_of: defaultdict[str, Work] = defaultdict(Work)
        self.made: list[Saved] = []

    @property
    def work(self) -> Work:
        """All of it."""
        each = self.work_of.values()
        return Work(
            sum(work.operations for work in each),
            sum(work.products for work in each),
            sum(work.multiplications for work in each),
        )

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        work = self.work_of[self.inside[-1]]
        work.operations += 1
        kind = _kind(func)
        if kind:
            multiplied = _multiplications(kind, args, result)
            work.multiplications += multiplied
            work.products += multiplied if kind in ("batched", "attention") else 0
        if isinstance(result, torch.Tensor) and result.is_floating_point():
            storage = _storage(result)
            if storage is not None:
                self.made.append(Saved(tuple(result.shape), storage.nbytes(), self.inside[-1]))
        return result


class Survivors(Operations):
    """Knows which results of a model's operations are still alive: as long as anything refers to
    their storage, an attribute, a list, a graph. Storages that existed before (parameters,
    buffers) are not counted. ``inside`` as for a Ledger."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.inside: list[str] = [ROOT]
        self._refs: dict[int, tuple[StorageWeakRef, int, str]] = {}
        self._known = _storages(model)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else (result,):
            if isinstance(each, torch.Tensor):
                self._note(each)
        return result

    def alive(self) -> dict[int, tuple[int, str]]:
        """Bytes, and the module that was running, of every result that is still alive."""
        for key in [key for key, (ref, _, _) in self._refs.items() if ref.expired()]:
            del self._refs[key]
        return {key: (size, place) for key, (_, size, place) in self._refs.items()}

    def alive_bytes(self) -> int:
        """Bytes of all results that are still alive."""
        return sum(size for size, _ in self.alive().values())

    def _note(self, tensor: torch.Tensor) -> None:
        storage = _storage(tensor)
        if storage is None:
            return
        key = storage._cdata
        if key not in self._known and key not in self._refs:
            self._refs[key] = (StorageWeakRef(storage), storage.nbytes(), self.inside[-1])


@dataclass
class Keeping:
    """Collects what autograd keeps, each storage once and parameters not at all."""

    known: set[int]
    inside: list[str]
    saved: list[Saved] = field(default_factory=list)
    _held: dict[int, Any] = field(default_factory=dict)

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        """Called by autograd with every tensor that it keeps."""
        storage = _storage(tensor)
        if storage is not None:
            key = storage._cdata
            if key not in self.known and key not in self._held:
                self._held[key] = storage
                shape = tuple(tensor.shape)
                self.saved.append(Saved(shape, storage.nbytes(), self.inside[-1]))
        return tensor.detach()


@contextlib.contextmanager
def keeping(model: torch.nn.Module, inside: list[str]) -> Iterator[Keeping]:
    """What autograd keeps for the backward while inside."""
    found = Keeping(_storages(model, plain=False), inside)
    with torch.autograd.graph.saved_tensors_hooks(found.pack, lambda tensor: tensor):
        yield found


@contextlib.contextmanager
def places(model: torch.nn.Module, inside: list[str]) -> Iterator[dict[str, int]]:
    """Keep the name of the innermost running module at the end of ``inside``; gives how often
    each one is called."""
    calls: dict[str, int] = {}

    def enter(name: str) -> Callable[..., None]:
        def note(_module: Any, _args: Any) -> None:
            inside.append(name)
            calls[name] = calls.get(name, 0) + 1

        return note

    def leave(_module: Any, _args: Any, _output: Any) -> None:
        inside.pop()

    handles: list[Any] = []
    for name, module in model.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):
            handles.append(module.register_forward_pre_hook(enter(name or ROOT)))
            handles.append(module.register_forward_hook(leave))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _storages(model: torch.nn.Module, *, plain: bool = True) -> set[int]:
    """Storages of parameters and buffers, and with ``plain`` those in plain attributes."""
    owned = [*model.parameters(), *model.buffers()]
    if plain:
        values = (value for module in model.modules() for value in vars(module).values())
        owned += [value for value in values if isinstance(value, torch.Tensor)]
    return {storage._cdata for storage in map(_storage, owned) if storage is not None}


def _storage(tensor: torch.Tensor) -> torch.UntypedStorage | None:
    """The storage of a tensor; ``None`` where it has none that can be read."""
    try:
        return tensor.untyped_storage()
    except (RuntimeError, NotImplementedError):  # sparse, nested, wrapped
        return None


@functools.cache
def _kind(func: Any) -> str:
    """Which kind of product an operation is; empty for every other one."""
    packet = operation(func)
    if packet in _CONVOLUTIONS:
        return "convolution"
    if packet in _WEIGHTED:
        return "weighted"
    if packet in _BATCHED:
        return "batched"
    return "attention" if packet.__name__.startswith(_ATTENTION) else ""


def _multiplications(kind: str, args: tuple[Any, ...], result: Any) -> int:
    """Multiplications of a product of matrices."""
    if kind == "attention":
        query, key, value = args[:3]
        rows = query.numel() // max(1, query.shape[-1])
        return int(rows * key.shape[-2] * (query.shape[-1] + value.shape[-1]))
    if kind == "convolution":
        weight = args[1]
        return int(result.numel() * weight.numel() // max(1, weight.shape[0]))
    left, _ = [arg for arg in args if isinstance(arg, torch.Tensor)][-2:]
    return int(result.numel() * left.shape[-1])
