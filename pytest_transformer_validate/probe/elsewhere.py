"""A second device that is not there: tensors that say they live elsewhere, and compute here.

``model.to("meta")`` inside ``Pretence`` gives tensors that claim to be on another device and keep
their numbers. Operations run as they would on the CPU, but two tensors of different devices may
meet only where an accelerator allows it. So a tensor that stays behind is found without a second
device, in models that look at their numbers too.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Self

import torch
from torch.overrides import TorchFunctionMode

from pytest_transformer_validate.probe.holders import storage_of
from pytest_transformer_validate.subject.dispatch import Operations

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

_aten = torch.ops.aten
PRETENDED = torch.device("meta")

# Operations that take tensors of two devices: copies, and indices or lengths that lie on the CPU.
_CROSSING = {
    _aten.copy_.default,
    _aten._to_copy.default,
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
    _aten._pack_padded_sequence.default,
    _aten._local_scalar_dense.default,
}
_MAKERS = {torch.tensor, torch.as_tensor}
_SUBSCRIPTS = {torch.Tensor.__getitem__, torch.Tensor.__setitem__}
MADE, BROUGHT = "made", "brought"


class Mixed(Exception):
    """Two tensors on different devices met.

    ``origin`` says what the one on the CPU is: ``made`` there by the forward, ``brought`` back
    from the other device, or the name of the attribute that holds it.
    """

    def __init__(self, operation: str, shape: tuple[int, ...], origin: str) -> None:
        super().__init__(f"{operation} met a tensor {shape} on the CPU ({origin})")
        self.operation = operation
        self.shape = shape
        self.origin = origin


class NoData(Exception):
    """A tensor of the pretended device was made in a way that is not followed."""


class Elsewhere(torch.Tensor):
    """Says that it lives on the pretended device; ``numbers`` is what it holds, on the CPU."""

    numbers: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, numbers: torch.Tensor) -> Self:
        made: Self = torch.Tensor._make_wrapper_subclass(
            cls,
            numbers.shape,
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            device=PRETENDED,
        )
        made.numbers = numbers
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Outside of a Pretence nothing can be computed: it ended while this was in use."""
        raise NoData(f"{func} outside of the pretence")

    def tolist(self) -> Any:
        return self.numbers.tolist()

    def __format__(self, spec: str) -> str:
        return str(self.numbers.__format__(spec))

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return repr(self.numbers)


class Pretence(Operations):
    """While inside, ``.to("meta")`` keeps the numbers, and devices may not mix (``Mixed``).

    ``held`` are tensors on the CPU by the name of what holds them; what is computed from one on
    the CPU keeps its name.
    """

    def __init__(self, held: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self._makers = contextlib.ExitStack()
        self._origins = {storage_of(tensor): name for name, tensor in held.items()}
        # Storages are told apart by address, so none of those that have a name may be freed.
        self._kept: list[torch.Tensor] = list(held.values())

    def __enter__(self) -> Self:
        super().__enter__()
        self._makers.enter_context(_Makers())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._makers.close()
        super().__exit__(kind, error, trace)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        there: list[Elsewhere] = []
        here: list[torch.Tensor] = []

        def unwrap(tensor: torch.Tensor) -> torch.Tensor:
            if isinstance(tensor, Elsewhere):
                there.append(tensor)
                return tensor.numbers
            if tensor.is_meta:
                raise NoData(str(func))
            here.append(tensor)
            return tensor

        inside, named = _mapped(args, unwrap), _mapped(kwargs or {}, unwrap)
        wanted = named.get("device")
        if wanted is not None and torch.device(wanted).type == PRETENDED.type:
            named["device"] = torch.device("cpu")
        if there and func not in _CROSSING:
            self._refuse(func, here)
        result = _compute(func, inside, named)
        if torch.Tag.inplace_view in func.tags and there and args[0] is there[0]:
            return _reshaped(there[0])
        if not _goes(func, args, wanted, there):
            self._note(result, there, here)
            return result
        known = {id(tensor.numbers): tensor for tensor in there}

        def wrap(tensor: torch.Tensor) -> torch.Tensor:
            return known[id(tensor)] if id(tensor) in known else Elsewhere(tensor)

        return _mapped(result, wrap)

    def _refuse(self, func: Any, here: list[torch.Tensor]) -> None:
        """Raise Mixed for a tensor on the CPU, unless it is a plain number."""
        for tensor in here:
            if tensor.dim():
                origin = self._origins.get(storage_of(tensor), MADE)
                raise Mixed(str(func), tuple(tensor.shape), origin)

    def _note(self, result: Any, there: list[Elsewhere], here: list[torch.Tensor]) -> None:
        """Remember where a tensor on the CPU comes from."""
        names = (self._origins.get(storage_of(tensor)) for tensor in here)
        origin = BROUGHT if there else next((name for name in names if name), None)
        if origin is None:
            return
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if isinstance(tensor, torch.Tensor):
                self._origins.setdefault(storage_of(tensor), origin)
                self._kept.append(tensor)


class _Makers(TorchFunctionMode):
    """Functions that make tensors of the pretended device below any dispatch: made on the CPU,
    and moved."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named = dict(kwargs or {})
        if func in _MAKERS:
            device = named.pop("device", None)
            made = func(*args, **named)
            return made if device is None else made.to(device)
        if func is torch.Tensor.new_tensor:
            device = named.pop("device", None) or args[0].device
            made = torch.tensor(args[1], **{"dtype": args[0].dtype, **named})
            return made.to(device)
        if func in _SUBSCRIPTS:
            args = (args[0], _indices(args[1]), *args[2:])
        return func(*args, **named)


def _indices(index: Any) -> Any:
    """Lists among the indices as tensors: as lists they become tensors out of sight."""
    if isinstance(index, tuple):
        return tuple(_indices(part) for part in index)
    if isinstance(index, list) and index and all(isinstance(i, int) for i in index):
        return torch.tensor(index, dtype=torch.bool if isinstance(index[0], bool) else None)
    return index


def _goes(func: Any, args: tuple[Any, ...], wanted: Any, there: list[Elsewhere]) -> bool:
    """Whether the result of an operation is on the pretended device."""
    if wanted is not None:
        return torch.device(wanted).type == PRETENDED.type
    if func is _aten.copy_.default:
        return isinstance(args[0], Elsewhere)
    return bool(there)


def _mapped(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The same with every tensor changed: operations take and give tensors and lists of them."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, list | tuple):
        return type(value)([_mapped(each, change) for each in value])
    if isinstance(value, dict):
        return {name: _mapped(each, change) for name, each in value.items()}
    return value


def _compute(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if func is _aten.histc.default and not args[0].is_floating_point():
        # Other devices count whole numbers, the CPU does not.
        return func(args[0].float(), *args[1:], **kwargs).to(args[0].dtype)
    return func(*args, **kwargs)


def _reshaped(tensor: Elsewhere) -> Elsewhere:
    """A tensor whose numbers were transposed or squeezed in place."""
    numbers = tensor.numbers
    with torch._C._DisableTorchDispatch():
        tensor.as_strided_(numbers.shape, numbers.stride(), numbers.storage_offset())
    return tensor
