"""Copies of a model, and the subject and probe to go with them."""

from __future__ import annotations

import contextlib
import copy
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch

from pytest_transformer_validate.probe.holders import held_modules, held_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_transformer_validate.probe.probe import Probe
    from pytest_transformer_validate.subject.subject import Subject

_EMPTY = {dict, OrderedDict}


def duplicate(model: torch.nn.Module) -> torch.nn.Module:
    """A copy; tensors in plain attributes that belong to a graph are copied without it."""
    memo: dict[int, Any] = {}
    for name, module in model.named_modules():
        for _, tensor in held_tensors(module, name):
            if not tensor.is_leaf:
                memo[id(tensor)] = tensor.detach().clone()
        for value in vars(module).values():
            if type(value) in _EMPTY and not value:  # most of what there is to copy
                memo[id(value)] = type(value)()
    return copy.deepcopy(model, memo)


def twin_of(subject: Subject, model: torch.nn.Module) -> Subject:
    """The same subject with another model object: what is known of its inputs stays known."""
    twin = copy.copy(subject)
    twin.model = model
    return twin


@contextlib.contextmanager
def convertible(probe: Probe, *words: object) -> Iterator[Subject]:
    """A twin of the subject whose model may be moved to another dtype or device inside: the model
    itself, which the guard gives back, or a copy where parts are scripted or kept in plain lists,
    which it cannot."""
    model = probe.subject.model
    scripted = any(isinstance(module, torch.jit.ScriptModule) for module in model.modules())
    if scripted or next(held_modules(model), None) is not None:
        model = duplicate(model)
    with probe.running(*words) as subject:
        yield twin_of(subject, model)


def probe_beside(probe: Probe, twin: Subject) -> Probe:
    """A probe over another subject, with the same seed."""
    return type(probe)(twin, seed=probe.seed)
