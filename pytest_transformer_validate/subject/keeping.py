"""A model's modules, and all that they hold, as they are at one time."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

from pytest_transformer_validate.subject.attributes import (
    Attributes,
    Holders,
    give_value_back,
    members,
    version_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    Buffer = tuple[torch.Tensor, torch.Tensor, int, torch.Tensor]

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
)
_REGISTRIES = ("_modules", "_parameters", "_buffers", *HOOKS)
_OWN = torch.nn.Module
_UNCOUNTED = -1  # the version of what torch writes to without counting: a batch norm's statistics


class Kept:
    """What a model held when this was made: registries, hooks, attributes, values of buffers.

    Parameters are not among it: neither they nor what stands in their place is kept alive.
    ``intact`` says whether there was nothing to give back the last time.
    """

    intact = True

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self.modules = list(model.modules())
        self.batch_norms = [
            m for m in self.modules if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)
        ]
        self._registries = _registries(self.modules)
        self._attributes = Attributes(model, self.modules)
        self._parameters = members(self.modules, "_parameters")
        self._facts = _facts(self._parameters)
        self._folding = _folding(self.modules)
        uncounted = {id(b) for norm in self.batch_norms for b in norm._buffers.values()}
        # The second one holds the memory, so that its address is given to no other tensor.
        self._buffers: list[Buffer] = [
            (
                b,
                b.detach(),
                _UNCOUNTED if id(b) in uncounted else version_of(b),
                b.detach().clone(),
            )
            for b in members(self.modules, "_buffers")
            if not b.is_meta
        ]
        self._plain = all(map(_changes_mode_plainly, self.modules))
        self._modes = [(vars(m), m.training) for m in self.modules] if self._plain else []

    def same(self) -> bool:
        """Whether the model holds now what it held then."""
        return (
            self._registries.same()
            and self._attributes.same()
            and not any(map(_written, self._buffers))
        )

    def parameters_same(self) -> bool:
        """Whether no parameter was written to, frozen or thawed, or was given a gradient."""
        return self._facts == _facts(self._parameters)

    def values_same(self) -> bool:
        """Whether buffers, and small tensors in attributes, hold the numbers that they held."""
        buffers = ((tensor, version, value) for tensor, _, version, value in self._buffers)
        return all(
            version_of(tensor) == version or tensor.equal(value)
            for tensor, version, value in (*buffers, *self._attributes.values)
        )

    def train(self, mode: bool) -> None:
        """``model.train(mode)``, quicker where it does nothing but to set a flag."""
        if self._plain:
            for named, _ in self._modes:
                named["training"] = mode
        else:
            self._model.train(mode)

    @contextlib.contextmanager
    def given_back(self) -> Iterator[None]:
        """Give everything back after, and the parameters as they were when this was entered."""
        parameters = [
            (p, None if torch.nn.parameter.is_lazy(p) else p.data, p.requires_grad, p.grad)
            for p in self._parameters
        ]
        folded = [(p.data, p.detach().clone()) for p in self._folding if not p.is_meta]
        for parameter, *_, grad in parameters:
            if grad is not None:
                parameter.grad = None  # a backward would add to the one that is there
        try:
            yield
        finally:
            for named, mode in self._modes:
                named["training"] = mode
            self.intact = self.same()
            if not self.intact:
                self._registries.give_back()
                self._attributes.give_back()
            for parameter in parameters:
                _give_parameter_back(*parameter)
            for data, value in folded:
                if not data.equal(value):
                    data.copy_(value)
            for buffer in () if self.intact else filter(_written, self._buffers):
                give_value_back(buffer[0], buffer[-1])


def _facts(parameters: list[torch.Tensor]) -> list[tuple[int, bool, bool]]:
    return [(version_of(p), p.requires_grad, p.grad is None) for p in parameters]


def _give_parameter_back(
    parameter: torch.Tensor,
    data: torch.Tensor | None,
    requires_grad: bool,
    grad: torch.Tensor | None,
) -> None:
    if data is not None and parameter.data_ptr() != data.data_ptr():
        parameter.data = data
    if parameter.requires_grad is not requires_grad:
        parameter.requires_grad_(requires_grad)
    if parameter.grad is not grad:
        parameter.grad = grad


def _written(buffer: Buffer) -> bool:
    tensor, then, version, value = buffer
    if tensor.data_ptr() != then.data_ptr():
        return True
    return not tensor.equal(value) if version == _UNCOUNTED else version_of(tensor) != version


def _registries(modules: list[torch.nn.Module]) -> Holders:
    """Submodules, parameters, buffers and hooks of modules, where they are plain dicts."""
    found = Holders()
    for module in modules:
        named = vars(module)
        for name in _REGISTRIES:
            held = named.get(name)
            if isinstance(held, dict):
                found.take(held)
    return found


def _folding(modules: list[torch.nn.Module]) -> list[torch.Tensor]:
    """Parameters of modules that do something of their own when the mode changes."""
    return members([m for m in modules if type(m).train is not _OWN.train], "_parameters")


def _changes_mode_plainly(module: torch.nn.Module) -> bool:
    """Whether a change of mode only sets a flag."""
    kind = type(module)
    return (
        kind.train is _OWN.train
        and kind.__setattr__ is _OWN.__setattr__
        and not {"train", "children"} & vars(module).keys()
        and not isinstance(module, torch.jit.ScriptModule)
        and "training" in vars(module)
    )
