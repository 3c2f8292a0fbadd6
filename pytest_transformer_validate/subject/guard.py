"""Give everything back that running a model may have changed."""

from __future__ import annotations

import contextlib
import random
import sys
import zlib
from typing import TYPE_CHECKING, Any

import torch

from pytest_transformer_validate.subject.attributes import Attributes, version_of
from pytest_transformer_validate.subject.keeping import HOOKS, Kept

if TYPE_CHECKING:
    from collections.abc import Iterator


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
    have one, mode and number of hooks of every module. Values of buffers and of small tensors are
    compared elsewhere: ``guard`` gives them back, which their version counter does not show.
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
        (name, module.training, tuple(len(getattr(module, hooks, ())) for hooks in HOOKS))
        for name, module in model.named_modules()
    )
    return tensors, modules


class Keeper:
    """Guards one model, again and again: what it holds is read anew only where it has changed."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._kept: Kept | None = None
        self._around = False

    @contextlib.contextmanager
    def around(self) -> Iterator[None]:
        """Give random states back at the end of many guards, not after each: they seed anew."""
        with _random_kept():
            self._around = True
            try:
                yield
            finally:
                self._around = False

    @contextlib.contextmanager
    def guard(self, seed: int = 0) -> Iterator[Kept]:
        """See ``guard``; gives what is known of the model's modules."""
        kept = self._kept
        if kept is None or not kept.same():
            kept = Kept(self._model)
        self._kept = None  # not known while the model runs
        around, self._around = self._around, False  # a guard in a guard gives back what it drew
        try:
            random_kept = contextlib.nullcontext() if around else _random_kept()
            with random_kept, _settings_kept(), kept.given_back():
                seed_all(seed)
                yield kept
        finally:
            self._around = around
        self._kept = kept if kept.intact else None


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
    with Keeper(model).guard(seed):
        yield


@contextlib.contextmanager
def _random_kept() -> Iterator[None]:
    numpy = sys.modules.get("numpy")
    python_state = random.getstate()
    numpy_state = numpy.random.get_state() if numpy is not None else None
    torch_state = torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        random.setstate(python_state)
        if numpy is not None:
            numpy.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        if cuda_states is not None:
            torch.cuda.set_rng_state_all(cuda_states)


@contextlib.contextmanager
def _settings_kept() -> Iterator[None]:
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
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        if torch.are_deterministic_algorithms_enabled() != deterministic:
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
