"""What memory a model would take, found out before it is built."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pytest_transformer_validate.containment.limits import free_memory
from pytest_transformer_validate.errors import SourceError
from pytest_transformer_validate.sources.seeding import seeded
from pytest_transformer_validate.sources.wording import clipped, in_gib, listed

_NUMBER = 4  # bytes of a float32
_USUAL = 1024  # a width, where the configuration names none
_TOLD = 3


def refuse_too_large(build: Callable[[], Any], config: Any, origin: str, place: str) -> None:
    """Raise SourceError where ``build`` would give a model that takes more memory than is free.

    That is asked where the numbers of ``config`` could mean it: two of them multiplied. The model
    is built on torch's meta device then, where tensors have shapes and no memory; where its code
    does not bear that, nothing is known and nothing raised.
    """
    free = free_memory()
    numbers = sorted(_numbers(config), key=lambda pair: -pair[1])
    first, second, *_ = [*(number for _, number in numbers), 0, 0]
    if free is None or first * max(second, _USUAL) * _NUMBER <= free:
        return
    needed = _bytes_of(build)
    if needed is not None and needed > free:
        there = [f"{clipped(name, 60)} {clipped(number, 20)}" for name, number in numbers[:_TOLD]]
        raise SourceError(
            f"{origin}: its parameters and buffers take {in_gib(needed)}, and {in_gib(free)} of "
            f"memory are free\n  the largest numbers in {place}: {listed(there)}"
        )


def _bytes_of(build: Callable[[], Any]) -> int | None:
    """What the model that ``build`` gives would take, without taking it; ``None`` for no model."""
    import torch

    try:
        with torch.device("meta"), seeded(0), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = build()
        tensors = {id(each): each for each in (*model.parameters(), *model.buffers())}
        return sum(int(each.numel() * each.element_size()) for each in tensors.values())
    except Exception:  # noqa: BLE001 - foreign code; what it has to say it says when it is built
        return None


def _numbers(values: Any) -> Iterator[tuple[str, int]]:
    """The whole numbers of a configuration, also of the objects in it, with their keys."""
    for name, value in values.items() if isinstance(values, Mapping) else ():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{key}", number) for key, number in _numbers(value))
        elif isinstance(value, int) and not isinstance(value, bool) and value > 0:
            yield str(name), value
