"""Caches that a model asks to be set up before it is called."""

from __future__ import annotations

import contextlib
import inspect
from typing import TYPE_CHECKING, Any

from pytest_transformer_validate.sources.config import LENGTH
from pytest_transformer_validate.subject.declared import declared_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import nn

    from pytest_transformer_validate.subject.subject import Subject

_METHODS = (
    "setup_caches", "setup_cache", "init_caches", "init_cache", "build_caches", "set_kv_cache",
    "set_kv_caches", "setup_kv_cache", "setup_kv_caches", "init_kv_cache", "init_kv_caches",
)  # fmt: skip
_ROOM = 64
_MISSING = object()


def method_of(subject: Subject) -> str | None:
    """The method that sets caches up for a number of rows and a length, where there is one and
    forward takes the positions that fill them."""
    if not subject.signature.takes("input_pos"):
        return None
    names = (name for name in _METHODS if callable(getattr(subject.model, name, None)))
    return next((name for name in names if _arguments(subject, name, 1, 1) is not None), None)


def room_for(subject: Subject, length: int) -> int:
    """The number of tokens that caches for a text of ``length`` are made for."""
    return max(length, declared_size(subject.config, LENGTH) or _ROOM)


class Setup:
    """Sets a model's caches up, each time as if it were the first."""

    def __init__(self, method: str) -> None:
        self.method = method
        self._changed: list[tuple[dict[str, Any], str, Any]] = []

    @contextlib.contextmanager
    def around(
        self, subject: Subject, rows: int, length: int, start: torch.Tensor | None
    ) -> Iterator[None]:
        """Caches for one call; where it says at which position it starts, others go on from it."""
        if start is None or not int(start[0]):
            self.run(subject, rows, length)
        try:
            yield
        finally:
            if start is None:
                self.undo()

    def run(self, subject: Subject, rows: int, length: int) -> None:
        """Call the method for the rows of a batch and the longest text that there is room for."""
        self.undo()
        room = room_for(subject, length)
        holders = list(_holders(subject.model))
        before = [dict(holder) for holder in holders]
        getattr(subject.model, self.method)(**(_arguments(subject, self.method, rows, room) or {}))
        self._changed = [
            (holder, key, old.get(key, _MISSING))
            for holder, old in zip(holders, before, strict=True)
            for key in holder.keys() | old.keys()
            if holder.get(key, _MISSING) is not old.get(key, _MISSING)
        ]

    def undo(self) -> None:
        """Take the caches away again."""
        for holder, key, value in self._changed:
            if value is _MISSING:
                holder.pop(key, None)
            else:
                holder[key] = value
        self._changed = []


def _holders(model: nn.Module) -> Iterator[dict[str, Any]]:
    """What modules hold by name: submodules, buffers, plain attributes."""
    for module in model.modules():
        yield vars(module)
        yield module._modules
        yield module._buffers


def _arguments(subject: Subject, name: str, rows: int, length: int) -> dict[str, Any] | None:
    """Arguments by name; ``None`` where a required one is not known.

    The first length is that of texts: another with a default (of a table of angles) keeps it.
    """
    found: dict[str, Any] = {}
    told = False
    for parameter in inspect.signature(getattr(subject.model, name)).parameters.values():
        if "batch" in parameter.name or parameter.name in {"bsz", "b"}:
            found[parameter.name] = rows
        elif "len" in parameter.name or "seq" in parameter.name:
            if not told or parameter.default is parameter.empty:
                found[parameter.name] = length
            told = True
        elif parameter.name in {"dtype", "device"}:
            found[parameter.name] = getattr(subject, parameter.name)
        elif parameter.default is parameter.empty:
            return None
    return found
