"""What a model is called with, as a function of tensors alone: what torch makes programs of."""

from __future__ import annotations

import contextlib
import io
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten_with_path, tree_unflatten

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_MODULES = ("torch._dynamo", "torch._export", "torch.export", "torch._inductor", "torch.fx")


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a model is called with: ``tensors`` by name, at ``places`` among ``constants``, in a
    nest that ``spec`` describes."""

    names: list[str]
    tensors: list[torch.Tensor]
    constants: list[Any]
    places: list[int]
    spec: Any


def inputs_of(given: tuple[Any, Any]) -> Inputs:
    """The Inputs in the positional and keyword arguments of one call."""
    leaves, spec = tree_flatten_with_path(given)
    places = [i for i, (_, leaf) in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    paths = [leaves[place][0][-1] for place in places]
    return Inputs(
        names=[str(getattr(path, "key", f"input {path}")) for path in paths],
        tensors=[leaves[place][1] for place in places],
        constants=[None if i in places else leaf for i, (_, leaf) in enumerate(leaves)],
        places=places,
        spec=spec,
    )


class Logits(nn.Module):
    """The model as a function of tensors alone, giving nothing but logits."""

    def __init__(
        self, model: nn.Module, inputs: Inputs, read: Callable[[Any], torch.Tensor]
    ) -> None:
        super().__init__()
        self.model = model
        self.inputs = inputs
        self.read = read

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        leaves = list(self.inputs.constants)
        for index, tensor in zip(self.inputs.places, tensors, strict=True):
            leaves[index] = tensor
        args, kwargs = tree_unflatten(leaves, self.inputs.spec)
        return self.read(self.model(*args, **kwargs))


def open_axes(value: torch.Tensor, others: list[torch.Tensor]) -> dict[int, Any]:
    """Which axes of an input are left open: those that are of another size elsewhere."""
    return {
        axis: torch.export.Dim.AUTO
        for axis, size in enumerate(value.shape)
        if any(other.shape[axis] != size for other in others)
    }


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """torch's makers of programs log and print what they raise anyway."""
    loggers = [logging.getLogger(name) for name in _MODULES]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        sink = io.StringIO()
        with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
