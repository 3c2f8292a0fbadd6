"""What a row of calls in evaluation leaves changed: weights, buffers, the caller's inputs, modes,
rates of dropouts, settings of torch, results that were already returned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from pytest_transformer_validate.probe.dropout_watch import rates_of
from pytest_transformer_validate.probe.trace import ROOT
from pytest_transformer_validate.probe.watch import same, settings_of_torch

if TYPE_CHECKING:
    from pytest_transformer_validate.subject.batch import Batch

_PIECE = 1 << 20  # elements that are added at a time


@dataclass(frozen=True)
class Left:
    """What a row of calls in evaluation left changed.

    ``parameters`` and ``buffers`` are names (buffers of the state dict that go on changing when
    the same input is given again), ``counters`` are such buffers that hold whole numbers, or one
    number; ``inputs`` are roles, ``modes`` modules whose mode a forward
    flipped, ``rates`` attributes with the probability of a dropout that it changed, ``settings``
    what it changed in torch; ``overwritten`` says that a later call wrote
    into logits that were already returned, ``exchanged`` that a parameter is another object, or
    has another shape, than before.
    """

    parameters: tuple[str, ...]
    buffers: tuple[str, ...]
    counters: tuple[str, ...]
    inputs: tuple[str, ...]
    modes: tuple[str, ...]
    rates: tuple[str, ...]
    settings: tuple[str, ...]
    overwritten: bool
    exchanged: bool


class Before:
    """How a model, its inputs and torch were, to be compared with how they are."""

    def __init__(self, model: nn.Module, *, exact: bool) -> None:
        self._model = model
        self._look = torch.clone if exact else _checksum
        self._parameters = {
            n: (p, p.shape, self._look(p.detach())) for n, p in model.named_parameters()
        }
        self._lawful = _renormalised(model)
        self._modes = [(n or ROOT, m, m.training) for n, m in model.named_modules()]
        self._rates = rates_in(model)
        self._settings = settings_of_torch()
        self._buffers: list[dict[str, torch.Tensor]] = []
        self._returned: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.inputs: dict[str, None] = {}
        self.modes: dict[str, None] = {}
        self.rates: dict[str, None] = {}
        self.settings: dict[str, None] = {}

    def note(self, batch: Batch, given: Batch, logits: torch.Tensor) -> None:
        """Look after a call; what goes on changing is seen after the first two."""
        self.inputs |= dict.fromkeys(written(batch, given))
        self.modes |= {n: None for n, module, mode in self._modes if module.training != mode}
        self.rates |= {n: None for n, (m, a, v) in self._rates.items() if getattr(m, a, v) != v}
        now = settings_of_torch()
        self.settings |= dict.fromkeys(n for n, v in self._settings.items() if now[n] != v)
        if len(self._buffers) < 2:
            self._buffers.append({n: b.clone() for n, b in _persistent(self._model).items()})
        self._returned = [*self._returned[:2], (logits, logits.clone())]

    def left(self) -> Left:
        """What is not as it was."""
        once, again = (*self._buffers, {}, {})[:2]
        going_on = {n: b for n, b in again.items() if n in once and not same(b, once[n])}
        now = dict(self._model.named_parameters())
        kept = {
            name: (parameter, value)
            for name, (parameter, shape, value) in self._parameters.items()
            if now.get(name) is parameter and parameter.shape == shape
        }
        written = [
            name
            for name, (parameter, value) in kept.items()
            if name not in self._lawful and not same(self._look(parameter.detach()), value)
        ]
        return Left(
            parameters=tuple(written),
            buffers=tuple(n for n, b in going_on.items() if not _counts(b)),
            counters=tuple(n for n, b in going_on.items() if _counts(b)),
            inputs=tuple(self.inputs),
            modes=tuple(self.modes),
            rates=tuple(self.rates),
            settings=tuple(self.settings),
            exchanged=len(kept) < len(self._parameters) or len(now) > len(self._parameters),
            overwritten=any(not same(t, value) for t, value in self._returned),
        )


def written(batch: Batch, given: Batch) -> tuple[str, ...]:
    return tuple(
        role
        for role, t in given.inputs.items()
        if t.requires_grad or not same(t.detach(), batch[role])
    )


def rates_in(model: nn.Module) -> dict[str, tuple[nn.Module, str, float]]:
    """The probabilities of dropouts by name: who keeps each, as which attribute, and its value."""
    return {
        f"{name}.{attribute}".removeprefix("."): (module, attribute, value)
        for name, module in model.named_modules()
        for attribute, value in rates_of(module).items()
    }


def _renormalised(model: nn.Module) -> set[str]:
    """Weights that torch itself writes to: tables with a largest norm."""
    tables = (nn.Embedding, nn.EmbeddingBag)
    return {
        f"{name}.weight".removeprefix(".")
        for name, module in model.named_modules()
        if isinstance(module, tables) and module.max_norm is not None
    }


def _persistent(model: nn.Module) -> dict[str, torch.Tensor]:
    """The buffers of the state dict."""
    return {
        f"{name}.{own}".removeprefix("."): buffer
        for name, module in model.named_modules()
        for own, buffer in module.named_buffers(recurse=False)
        if own not in module._non_persistent_buffers_set
    }


def _counts(buffer: torch.Tensor) -> bool:
    """Whether a buffer is a counter, which may count every call: no statistic of what it saw."""
    return buffer.numel() <= 1 or not buffer.is_floating_point()


def _checksum(tensor: torch.Tensor) -> torch.Tensor:
    """A whole number that any change of the bits changes, but for a coincidence; in pieces,
    because a sum over wider numbers copies what it adds."""
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    if tensor.is_meta or tensor.element_size() not in whole:
        return torch.zeros(())
    bits = tensor.contiguous().view(whole[tensor.element_size()]).flatten()
    sums = [piece.sum(dtype=torch.int64) for piece in bits.split(_PIECE)]
    return torch.stack(sums).sum() if sums else torch.zeros(())
