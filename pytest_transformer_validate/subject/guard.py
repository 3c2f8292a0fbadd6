"""Give everything back that running a model may have changed."""

from __future__ import annotations

import contextlib
import random
import sys
import zlib
from typing import TYPE_CHECKING, Any

import torch

from pytest_transformer_validate.subject.attributes import (
    Attributes,
    give_value_back,
    members,
    restore,
    version_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
)
_REGISTRIES = ("_modules", "_parameters", "_buffers", *_HOOKS)
_NOTHING: dict[Any, Any] = {}


def derive_seed(seed: int, *words: object) -> int:
    """A seed that depends on ``seed`` and the words only, the same in every process."""
    return zlib.crc32(":".join(map(str, (seed, *words))).encode())


def seed_all(seed: int) -> None:
    """Seed every generator that models draw from: Python's, torch's, and NumPy's where loaded."""
    random.seed(seed)
    # not torch.manual_seed, which notes a traceback for every device that is not in use yet
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed)


def fingerprint(model: torch.nn.Module) -> tuple[Any, ...]:
    """What tells that a model is no longer as loaded, without reading its weights.

    Identity of every parameter, buffer and tensor in a plain attribute, version counter of the
    parameters and of large tensors in plain attributes, whether parameters ask for a gradient and
    have one, mode and number of hooks of every module. Values of ``state_tensors`` are compared
    elsewhere: ``guard`` gives them back, which their version counter does not show.
    """
    attributes = Attributes(model)
    tensors = (
        *(
            (n, id(p), p._version, p.requires_grad, p.grad is None)
            for n, p in model.named_parameters()
        ),
        *((name, id(buffer)) for name, buffer in model.named_buffers()),
        *(id(tensor) for tensor in attributes.small),
        *((id(tensor), version_of(tensor)) for tensor in attributes.large),
    )
    modules = tuple(
        (name, module.training, tuple(len(getattr(module, hooks, ())) for hooks in _HOOKS))
        for name, module in model.named_modules()
    )
    return tensors, modules


def state_tensors(model: torch.nn.Module) -> list[torch.Tensor]:
    """Tensors that ``guard`` gives back by value: buffers, and small ones in plain attributes."""
    buffers = [buffer for buffer in model.buffers() if not buffer.is_meta]
    return buffers + Attributes(model).small


@contextlib.contextmanager
def guard(model: torch.nn.Module, seed: int = 0) -> Iterator[None]:
    """Run the model's code inside: global state and the model's own come back as they were.

    Inside, every generator is seeded with ``seed``. Given back: random state of ``random``, torch
    and NumPy (where it is loaded), default dtype, grad mode, thread count, deterministic flag;
    mode, hooks, ``requires_grad`` and ``.grad`` of the model, its buffers, its submodules and
    their plain attributes with what these hold (see ``Attributes``): caches, tables, counters. A
    parameter that is exchanged comes back; one that is written to does not, unless its module
    overrides ``train()``, which may fold an adapter into it.
    """
    with _globals_kept(), _model_kept(model):
        seed_all(seed)
        yield


@contextlib.contextmanager
def _globals_kept() -> Iterator[None]:
    numpy = sys.modules.get("numpy")
    python_state = random.getstate()
    numpy_state = numpy.random.get_state() if numpy is not None else None
    torch_state = torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    dtype, grad, threads = (
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.get_num_threads(),
    )
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        yield
    finally:
        random.setstate(python_state)
        if numpy is not None:
            numpy.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        if cuda_states is not None:
            torch.cuda.set_rng_state_all(cuda_states)
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        if torch.are_deterministic_algorithms_enabled() != deterministic:
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


@contextlib.contextmanager
def _model_kept(model: torch.nn.Module) -> Iterator[None]:
    modules = list(model.modules())
    registries = _registries(modules)
    attributes = Attributes(model, modules)
    parameters = [
        (p, None if torch.nn.parameter.is_lazy(p) else p.data, p.requires_grad, p.grad)
        for p in members(modules, "_parameters")
    ]
    folded = [(p.data, p.detach().clone()) for p in _folding(modules) if not p.is_meta]
    buffers = [
        (b, b.data_ptr(), version_of(b), b.detach().clone())
        for b in members(modules, "_buffers")
        if not b.is_meta
    ]
    for parameter, *_ in parameters:
        parameter.grad = None  # a backward would add to the one that is there
    try:
        yield
    finally:
        for held, entries in registries:
            if held or entries:  # most are empty
                restore(held, entries)
        attributes.give_back()
        for parameter, data, requires_grad, grad in parameters:
            if data is not None and parameter.data_ptr() != data.data_ptr():
                parameter.data = data
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
        for data, value in folded:
            if not data.equal(value):
                data.copy_(value)
        for buffer, place, version, value in buffers:
            if version_of(buffer) != version or buffer.data_ptr() != place:
                give_value_back(buffer, value)


def _registries(
    modules: list[torch.nn.Module],
) -> list[tuple[dict[Any, Any], dict[Any, Any]]]:
    """Submodules, parameters, buffers and hooks of modules, where they are plain dicts, and what
    they hold. Most are empty, and every pass comes here: no copies of those."""
    found = []
    for module in modules:
        named = vars(module)
        for name in _REGISTRIES:
            held = named.get(name)
            if isinstance(held, dict):
                found.append((held, dict(held) if held else _NOTHING))
    return found


def _folding(modules: list[torch.nn.Module]) -> list[torch.Tensor]:
    """Parameters of modules that do something of their own when the mode changes."""
    own = torch.nn.Module
    return members([m for m in modules if type(m).train is not own.train], "_parameters")
