"""One shape for whatever a model returns."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pytest_transformer_validate.errors import SubjectError

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAIN = ("logits", "prediction_logits", "prediction_scores", "scores", "start_logits")
_HIDDEN = ("last_hidden_state", "hidden_states", "hidden")
_CACHE = (
    "past_key_values", "cache_params", "past", "cache", "kv_cache", "mems", "presents", "present",
    "present_key_values", "present_key_value", "new_cache", "next_cache", "new_kv_cache",
    "next_kv_cache", "kv_caches", "caches", "past_kv", "new_past", "kv", "state", "states",
    "new_state",
)  # fmt: skip


@dataclass(frozen=True)
class Output:
    """A model's output: the main tensor, and what else checks ask for.

    ``logits`` is the floating point tensor that is judged: (B, T, V) or (B, K); ``field`` the
    name or index it was found under; ``kind`` the type that the model returned; ``others`` every
    other floating point tensor in it.
    """

    logits: torch.Tensor
    field: str
    kind: str
    loss: torch.Tensor | None = None
    cache: Any = None
    others: tuple[torch.Tensor, ...] = ()


def floating(value: Any) -> list[torch.Tensor]:
    """Every floating point tensor in a nest of tuples, lists, mappings, dataclasses and
    namespaces."""
    return [t for t in tensors_in(value) if t.is_floating_point()]


def tensors_in(value: Any) -> list[torch.Tensor]:
    """Every tensor in such a nest, of whatever type."""
    if isinstance(value, torch.Tensor):
        return [] if value.is_nested else [value]
    if type(value) is tuple:  # what modules are given: asking for abstract classes takes longer
        return [t for item in value for t in tensors_in(item)]
    if isinstance(value, Mapping):
        return [t for item in value.values() for t in tensors_in(item)]
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [t for item in value for t in tensors_in(item)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = (f.name for f in dataclasses.fields(value))
        return [t for name in names for t in tensors_in(getattr(value, name, None))]
    if isinstance(value, types.SimpleNamespace):
        return tensors_in(vars(value))
    return []


def read_output(raw: Any, *, column: bool = False, per_token: bool = False) -> Output:
    """The Output in a tensor, tuple, list, mapping, ModelOutput, dataclass or namespace.

    ``logits`` first, then ``last_hidden_state``, then the first floating point tensor with two
    axes: with ``per_token``, one of three axes goes first; with ``column``, one (B,) will do.
    Raises SubjectError where there is none, with what was returned.
    """
    name, tensors = _main(raw, column=column, per_token=per_token)
    loss = tensors.get("loss")
    if loss is None and not isinstance(raw, Mapping):
        loss = next((v for v in tensors.values() if v.dim() == 0), None)
    cache = next((value for _, value in named_caches(raw)), None)
    main = field_of(raw, name)
    with torch._C.DisableTorchFunctionSubclass():
        others = tuple(_plain(t) for t in floating(raw) if t is not main)
    return Output(tensors[name], name, type(raw).__name__, loss, cache, others)


def read_logits(raw: Any, *, column: bool = False, per_token: bool = False) -> torch.Tensor:
    """The ``logits`` of that Output alone, for a loop that asks for nothing else."""
    name, tensors = _main(raw, column=column, per_token=per_token)
    return tensors[name]


def _main(raw: Any, *, column: bool, per_token: bool) -> tuple[str, dict[str, torch.Tensor]]:
    """The name of the main tensor, and every floating point tensor by name."""
    plain = {n: _plain(value) for n, value in _fields(raw) if isinstance(value, torch.Tensor)}
    tensors = {n: t for n, t in plain.items() if t.is_floating_point() and not t.is_nested}
    wide = {n: t for n, t in tensors.items() if t.dim() >= 2 - column}
    deep = [n for n, t in wide.items() if per_token and t.dim() > 2]
    for name in (*_MAIN, *_HIDDEN, *deep, *wide):
        if name in wide:
            return name, tensors
    loss = any(t.dim() == 0 for t in tensors.values())
    raise SubjectError(
        f"forward must return logits, a floating point tensor (B, T, V) or (B, K); "
        f"it returned {describe(raw)}"
        + (", a loss: wrap the part of the model that gives logits" if loss else "")
    )


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor without a class of the model's that could answer for it what it likes.

    Raises SubjectError for one that is nothing but its class.
    """
    kind = type(tensor)
    if kind is torch.Tensor or kind.__module__.partition(".")[0] == "torch":
        return tensor
    if kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        raise SubjectError(
            f"forward must return a tensor; it returned one of class {kind.__name__}, which does "
            "itself what torch does with tensors"
        )
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.as_subclass(torch.Tensor)


def named_caches(raw: Any) -> list[tuple[str, Any]]:
    """The results under a name that caches have, the most telling name first."""
    fields = dict(_fields(raw))
    return [(name, fields[name]) for name in _CACHE if fields.get(name) is not None]


def possible_caches(raw: Any) -> list[tuple[str, Any]]:
    """Results without such a name that may be a cache: nests of tensors and objects first."""
    fields = list(_fields(raw))
    nests = [
        (name, value)
        for name, value in fields
        if not isinstance(value, torch.Tensor | str | int | float | None)
        and (floating(value) or hasattr(value, "__dict__") or _objects(value))
    ]
    tensors = [
        (name, value)
        for name, value in fields[1:]
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim() > 1
    ]
    return nests + tensors


def _objects(value: Any) -> bool:
    """Whether it is a list of objects that may hold something, as one cache a layer is."""
    return isinstance(value, list | tuple) and all(hasattr(item, "__dict__") for item in value)


def field_of(raw: Any, name: str) -> Any:
    """The result under a name or index, ``None`` where there is none."""
    return dict(_fields(raw)).get(name)


def describe(raw: Any) -> str:
    """Type and shapes of a returned value, in at most a few words."""
    if isinstance(raw, torch.Tensor) and raw.is_nested:
        return f"nested tensor of {raw.size(0)} parts"
    if isinstance(raw, torch.Tensor):
        return f"{str(raw.dtype).removeprefix('torch.')} tensor {tuple(raw.shape)}"
    parts = [
        f"{name}: {describe(value) if isinstance(value, torch.Tensor) else type(value).__name__}"
        for name, value in _fields(raw)
    ]
    inside = f" ({', '.join(parts[:6])})" if parts else ""
    return f"{type(raw).__name__}{inside}"


def _fields(raw: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(raw, torch.Tensor):
        yield "tensor", raw
    elif isinstance(raw, Mapping):
        yield from ((str(key), value) for key, value in raw.items())
    elif dataclasses.is_dataclass(raw):
        yield from ((f.name, getattr(raw, f.name)) for f in dataclasses.fields(raw))
    elif hasattr(raw, "_asdict"):
        yield from raw._asdict().items()
    elif isinstance(raw, Sequence) and not isinstance(raw, str):
        inner = bool(raw) and _holds_names(raw[0]) and not any(map(_is_wide, raw))
        if inner:  # named results, and a cache beside them
            yield from _fields(raw[0])
        yield from ((str(i), value) for i, value in enumerate(raw) if i or not inner)
    elif isinstance(raw, types.SimpleNamespace) or "logits" in getattr(raw, "__dict__", ()):
        yield from vars(raw).items()


def _holds_names(value: Any) -> bool:
    return isinstance(value, Mapping) or dataclasses.is_dataclass(value)


def _is_wide(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim() > 1
