"""Give everything back that running a model may have changed."""

from __future__ import annotations

import contextlib
import random
import sys
import zlib
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

_PLAIN = (bool, int, float, str, type(None))
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
)


def derive_seed(seed: int, *words: object) -> int:
    """A seed that depends on ``seed`` and the words only, the same in every process."""
    return zlib.crc32(":".join(map(str, (seed, *words))).encode())


def fingerprint(model: torch.nn.Module) -> tuple[Any, ...]:
    """What tells that a model is no longer as loaded, without reading its weights.

    Identity of every parameter and buffer, version counter of the parameters, whether they ask
    for a gradient and have one, mode and number of hooks of every module. Values of buffers are
    compared elsewhere: ``guard`` gives them back, which their version counter does not show.
    """
    tensors = (
        *(
            (n, id(p), p._version, p.requires_grad, p.grad is None)
            for n, p in model.named_parameters()
        ),
        *((name, id(buffer)) for name, buffer in model.named_buffers()),
    )
    modules = tuple(
        (name, module.training, tuple(len(getattr(module, hooks, ())) for hooks in _HOOKS))
        for name, module in model.named_modules()
    )
    return tensors, modules


@contextlib.contextmanager
def guard(model: torch.nn.Module, seed: int = 0) -> Iterator[None]:
    """Run the model's code inside: global state and the model's own come back as they were.

    Inside, every generator is seeded with ``seed``. Given back: random state of ``random``, torch
    and NumPy (where it is loaded), default dtype, grad mode, thread count, deterministic flag;
    mode, hooks, ``requires_grad`` and ``.grad`` of the model, its buffers, its submodules and
    their plain attributes (a model may exchange its attention for inputs of some length).
    """
    with _globals_kept(), _model_kept(model):
        random.seed(seed)
        torch.manual_seed(seed)
        numpy = sys.modules.get("numpy")
        if numpy is not None:
            numpy.random.seed(seed)
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
    modules = [
        (
            module,
            dict(module._modules),
            {name: value for name, value in vars(module).items() if isinstance(value, _PLAIN)},
            {name: dict(getattr(module, name, {})) for name in _HOOKS},
        )
        for module in model.modules()
    ]
    parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    buffers = [(b, b._version, b.detach().clone()) for b in model.buffers() if not b.is_meta]
    try:
        yield
    finally:
        for module, children, plain, hooks in modules:
            if type(module._modules) is dict and module._modules != children:
                module._modules.clear()
                module._modules.update(children)
            vars(module).update(plain)
            for name, kept in hooks.items():
                current = getattr(module, name, None)
                if current is not None and dict(current) != kept:
                    current.clear()
                    current.update(kept)
        for parameter, requires_grad, grad in parameters:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
        for buffer, version, value in buffers:
            if buffer._version != version:
                with torch.no_grad():
                    buffer.copy_(value)
