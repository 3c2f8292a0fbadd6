"""Caches that a caller makes, hands over with every call and never gets back.

They are objects of a class beside the model's, or plain dicts and lists; one for all layers, or
one a layer.
"""

from __future__ import annotations

import inspect
import re
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pytest_transformer_validate.subject.subject import Subject

_CACHE = re.compile(r"cache", re.IGNORECASE)
_COUNT = re.compile(r"^((n|num)_?)?(hidden_)?(layers?|blocks?)$|^depth$")
_CONFIG = {"config", "cfg", "args"}
_COUNTS = re.compile(r"^(advance|step|increment|increase|next|move)(_|$)")


def made_caches(subject: Subject) -> Iterator[tuple[str, Callable[[], Any], bool]]:
    """What a caller may hand over: words for it, what makes a new one, and whether it is made of
    a class of the model's own."""
    lists = [m for m in subject.model.modules() if isinstance(m, torch.nn.ModuleList)]
    count = max(map(len, lists), default=1)
    for kind in _classes(subject.model):
        make = _maker(kind, subject.model, count)
        if make is not None:
            yield f"a {kind.__name__}", make, True
            yield f"a {kind.__name__} a layer", partial(_several, make, count), True
    yield "a dict a layer", partial(_several, dict, count), False
    yield "a dict", dict, False
    yield "a list with a place for each layer", partial(_several, _nothing, count), False


def counted(cache: Any) -> list[dict[str, int]] | None:
    """The whole numbers that a cache, or each one of a list, holds; ``None`` where it has no
    method that counts tokens."""
    each = cache if isinstance(cache, list) else [cache]
    if not any(_COUNTS.match(name) for one in each for name in dir(one)):
        return None
    return [{n: v for n, v in held_by(one).items() if type(v) is int} for one in each]


def _classes(model: torch.nn.Module) -> list[type]:
    """The classes called cache that the files of the model define, or take from transformers:
    what another library calls a cache may be a store on a disk."""
    files = {id(f): f for m in model.modules() if (f := _globals(type(m))) is not None}
    own = {names.get("__name__") for names in files.values()}
    found = (value for names in files.values() for value in dict(names).values())
    kinds = (v for v in found if isinstance(v, type) and _CACHE.search(v.__name__))
    known = (k for k in kinds if k.__module__ in own or k.__module__.startswith("transformers."))
    return [*dict.fromkeys(k for k in known if not issubclass(k, torch.nn.Module))]


def _globals(kind: type) -> dict[str, Any] | None:
    if kind.__module__.partition(".")[0] in {"torch", "transformers"}:
        return None
    return getattr(getattr(kind, "forward", None), "__globals__", None)


def _maker(kind: type, model: torch.nn.Module, count: int) -> Callable[[], Any] | None:
    """What makes one: without arguments, of the number of layers, or of the configuration."""
    try:
        parameters = inspect.signature(kind).parameters.values()
    except (TypeError, ValueError):
        return None
    needed = [p for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    if not needed:
        return kind
    name = needed[0].name
    held = next((vars(model)[n] for n in ("config", "cfg", "args") if n in vars(model)), None)
    if len(needed) == 1 and _COUNT.match(name):
        return partial(kind, count)
    given = len(needed) == 1 and name in _CONFIG and held is not None
    return partial(kind, held) if given else None


def _several(make: Callable[[], Any], count: int) -> list[Any]:
    return [make() for _ in range(count)]


def _nothing() -> None:
    return None


def held_by(item: Any) -> dict[str, Any]:
    """What an object holds, in ``__slots__``, too."""
    slots = (vars(kind).get("__slots__", ()) for kind in type(item).__mro__)
    names = [n for each in slots for n in ([each] if isinstance(each, str) else each)]
    held = {n: getattr(item, n) for n in names if n != "__dict__" and hasattr(item, n)}
    return {**held, **getattr(item, "__dict__", {})}
