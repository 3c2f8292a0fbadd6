"""Counting what a model does instead of timing it: operations, products, bytes.

Axes: B batch, T positions, H heads, S keys, E and V widths of keys and values.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from pytest_transformer_validate.probe.trace import ROOT
from pytest_transformer_validate.subject.dispatch import Operations

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


class Ledger(Operations):
    """Counts the operations of a model, and knows which of their results are still alive.

    ``made`` are all floating point results in their order, unless it is asked to ``remember``
    which results are alive: as long as anything refers to their storage, an attribute, a list, a
    graph. Storages that existed before (parameters, buffers) are not counted then.
    """

    def __init__(self, model: torch.nn.Module, *, remember: bool = False) -> None:
        super().__init__()
        self.work = Work()
        self.inside: list[str] = [ROOT]
        self.work_of: dict[str, Work] = {}
        self.made: list[Saved] = []
        self._remember = remember
        self._refs: dict[int, tuple[StorageWeakRef, int, str]] = {}
        self._known = _storages(model) if remember else set()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        multiplied = _multiplications(func, args, result)
        weighted = func.overloadpacket in _WEIGHTED or func.overloadpacket in _CONVOLUTIONS
        for work in (self.work, self.work_of.setdefault(self.inside[-1], Work())):
            work.operations += 1
            work.multiplications += multiplied
            work.products += 0 if weighted else multiplied
        if not self._remember:
            self._measure(result)
        else:
            if isinstance(result, torch.Tensor):
                self._note(result)
            elif isinstance(result, tuple | list):
                for each in result:
                    if isinstance(each, torch.Tensor):
                        self._note(each)
        return result

    def _measure(self, result: Any) -> None:
        """Note shape and bytes of a floating point result."""
        if isinstance(result, torch.Tensor) and result.is_floating_point():
            with contextlib.suppress(RuntimeError, NotImplementedError):  # sparse, nested, wrapped
                size = result.untyped_storage().nbytes()
                self.made.append(Saved(tuple(result.shape), size, self.inside[-1]))

    def alive(self) -> dict[int, tuple[int, str]]:
        """Bytes, and the module that was running, of every result that is still alive."""
        for key in [key for key, (ref, _, _) in self._refs.items() if ref.expired()]:
            del self._refs[key]
        return {key: (size, place) for key, (_, size, place) in self._refs.items()}

    def alive_bytes(self) -> int:
        """Bytes of all results that are still alive."""
        return sum(size for size, _ in self.alive().values())

    def _note(self, tensor: torch.Tensor) -> None:
        try:
            storage = tensor.untyped_storage()
        except (RuntimeError, NotImplementedError):  # sparse, nested, wrapped
            return
        key = storage._cdata
        if key not in self._known and key not in self._refs:
            place = self.inside[-1]
            self._refs[key] = (StorageWeakRef(storage), storage.nbytes(), place)


@dataclass(frozen=True)
class Saved:
    """One storage that autograd keeps for the backward, or that an operation makes: the tensor's
    shape, the bytes of the storage, and the module that was running."""

    shape: tuple[int, ...]
    size: int
    place: str


@dataclass
class Keeping:
    """Collects what autograd keeps, each storage once and parameters not at all."""

    known: set[int]
    inside: list[str]
    saved: list[Saved] = field(default_factory=list)
    _held: dict[int, Any] = field(default_factory=dict)

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        """Called by autograd with every tensor that it keeps."""
        detached = tensor.detach()
        with contextlib.suppress(RuntimeError, NotImplementedError):  # sparse, nested, wrapped
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self.known and key not in self._held:
                self._held[key] = storage
                shape = tuple(tensor.shape)
                self.saved.append(Saved(shape, storage.nbytes(), self.inside[-1]))
        return detached


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
    found = set()
    for tensor in owned:
        with contextlib.suppress(RuntimeError, NotImplementedError):
            found.add(tensor.untyped_storage()._cdata)
    return found


def _multiplications(func: Any, args: tuple[Any, ...], result: Any) -> int:
    """Multiplications of a product of matrices, 0 for every other operation."""
    packet = func.overloadpacket
    if packet in _WEIGHTED or packet in _BATCHED:
        left = args[1] if packet in (_aten.addmm, _aten.baddbmm) else args[0]
        return int(result.numel() * left.shape[-1])
    if packet in _CONVOLUTIONS:
        weight = args[1]
        return int(result.numel() * weight.numel() // max(1, weight.shape[0]))
    if packet.__name__.startswith(_ATTENTION):
        query, key, value = args[:3]
        rows = query.numel() // max(1, query.shape[-1])
        return int(rows * key.shape[-2] * (query.shape[-1] + value.shape[-1]))
    return 0
