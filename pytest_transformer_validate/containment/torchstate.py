"""What torch keeps for the whole process or thread, and a model may change."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Flag = tuple[Callable[[], Any], Callable[[Any], Any]]

_DENORMAL, _ONE = 1e-310, 1.0


class OwnFlags:
    """Flags of torch as a model's own code left them, in force from ``enter`` to ``leave``."""

    def __init__(self) -> None:
        self._flags = _flags()
        self._outside: dict[str, Any] = {}
        self._own: dict[str, Any] = {}

    def enter(self) -> None:
        """Note what is outside; put the model's own in force."""
        self._outside = self._read()
        self._write(self._own)

    def leave(self) -> None:
        """Note what is the model's own; give back what is outside."""
        now = self._read()
        self._own = {name: now[name] for name in now if now[name] != self._outside[name]}
        self._write({name: self._outside[name] for name in self._own})

    def _read(self) -> dict[str, Any]:
        return {name: get() for name, (get, _) in self._flags.items()}

    def _write(self, values: dict[str, Any]) -> None:
        for name, value in values.items():
            self._flags[name][1](value)


def _flags() -> dict[str, Flag]:
    import torch

    backends, functions = torch.backends, torch._C
    return {
        "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
        "default device": (_default_device, torch.set_default_device),
        "gradients": (torch.is_grad_enabled, torch.set_grad_enabled),
        "threads": (torch.get_num_threads, torch.set_num_threads),
        "determinism": (_determinism, _set_determinism),
        "fill": _attribute(torch.utils.deterministic, "fill_uninitialized_memory"),
        "denormal numbers": (_flushes_denormal, torch.set_flush_denormal),
        "matmul precision": (
            torch.get_float32_matmul_precision,
            torch.set_float32_matmul_precision,
        ),
        "mkldnn": (functions._get_mkldnn_enabled, functions._set_mkldnn_enabled),
        "nnpack": (functions._get_nnpack_enabled, functions._set_nnpack_enabled),
        "cudnn": _attribute(backends.cudnn, "enabled"),
        "cudnn benchmark": _attribute(backends.cudnn, "benchmark"),
        "cudnn deterministic": _attribute(backends.cudnn, "deterministic"),
        "cudnn tf32": (functions._get_cudnn_allow_tf32, functions._set_cudnn_allow_tf32),
        "fast path": (backends.mha.get_fastpath_enabled, backends.mha.set_fastpath_enabled),
        "flash": (backends.cuda.flash_sdp_enabled, backends.cuda.enable_flash_sdp),
        "math": (backends.cuda.math_sdp_enabled, backends.cuda.enable_math_sdp),
        "efficient": (
            backends.cuda.mem_efficient_sdp_enabled,
            backends.cuda.enable_mem_efficient_sdp,
        ),
        "autocast": (
            lambda: torch.is_autocast_enabled("cpu"),
            lambda value: torch.set_autocast_enabled("cpu", value),
        ),
        "autocast dtype": (
            lambda: torch.get_autocast_dtype("cpu"),
            lambda value: torch.set_autocast_dtype("cpu", value),
        ),
        "autocast on cuda": (
            lambda: torch.is_autocast_enabled("cuda"),
            lambda value: torch.set_autocast_enabled("cuda", value),
        ),
        "anomalies": (
            lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
            lambda value: torch.set_anomaly_enabled(*value),
        ),
    }


def _attribute(owner: Any, name: str) -> Flag:
    return lambda: getattr(owner, name), lambda value: setattr(owner, name, value)


def _default_device() -> Any:
    """The device that was set, None where none was."""
    import torch

    context = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
    return None if context is None else context.device


def _determinism() -> tuple[bool, bool]:
    import torch

    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


def _set_determinism(value: tuple[bool, bool]) -> None:
    import torch

    torch.use_deterministic_algorithms(value[0], warn_only=value[1])


def _flushes_denormal() -> bool:
    """Torch does not tell; arithmetic does, Python's too."""
    return not _DENORMAL * _ONE


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Random state, hooks on all modules, and modes that were entered and not left: given back."""
    import torch

    numpy = sys.modules.get("numpy")
    drawn = torch.get_rng_state()
    on_cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    in_numpy = None if numpy is None else numpy.random.get_state()
    hooks = [(held, dict(held)) for held in _global_hooks()]
    depth = [(pop, size()) for pop, size in _stacks()]
    inference = torch.is_inference_mode_enabled()
    saving = _saving()
    try:
        yield
    finally:
        for (pop, before), (_, size) in zip(depth, _stacks(), strict=True):
            for _ in range(size() - before):
                pop()
        while _saving() not in (None, saving):
            torch._C._autograd._pop_saved_tensors_default_hooks()
        if torch.is_inference_mode_enabled() != inference:
            # never left: the one that the model entered cannot be found to leave it
            _ENTERED.append(torch.inference_mode(mode=inference))
            _ENTERED[-1].__enter__()
        for held, before_hooks in hooks:
            if held != before_hooks:
                held.clear()
                held.update(before_hooks)
        torch.set_rng_state(drawn)
        if on_cuda is not None:
            torch.cuda.set_rng_state_all(on_cuda)
        if numpy is not None:
            numpy.random.set_state(in_numpy)


_ENTERED: list[Any] = []


def _global_hooks() -> list[dict[Any, Any]]:
    import torch

    named = vars(torch.nn.modules.module)
    return [
        held
        for name, held in named.items()
        if name.startswith("_global") and held is not None and isinstance(held, dict)
    ]


def _saving() -> Any:
    """What is called with every tensor that is saved for a backward pass."""
    import torch

    return torch._C._autograd._top_saved_tensors_default_hooks(True)


def _stacks() -> list[tuple[Callable[[], Any], Callable[[], int]]]:
    """How to leave a mode of torch functions and of dispatching, and how many are entered."""
    import torch

    return [
        (torch._C._pop_torch_function_stack, torch._C._len_torch_function_stack),
        (torch._C._pop_torch_dispatch_stack, torch._C._len_torch_dispatch_stack),
    ]
