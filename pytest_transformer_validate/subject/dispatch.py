"""Seeing every operation that a model runs."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any, Self

import torch
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from types import TracebackType


class Operations(TorchDispatchMode):
    """Base of modes that watch operations, without importing the compiler.

    By default the first operation under a mode imports torch._dynamo, to keep the mode's own code
    from being compiled, and that takes as long as ``import torch`` does. Where it is loaded, a
    compiled model runs uncompiled instead; where it is not, nothing compiles. Operators that are
    given functions (flex_attention) come through as any other.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._uncompiled = contextlib.ExitStack()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __enter__(self) -> Self:
        self._uncompiled.enter_context(uncompiled())
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        self._uncompiled.close()


def operation(func: Any) -> Any:
    """What is called, whatever the overload; operators that are given functions have none."""
    return getattr(func, "overloadpacket", func)


def uncompiled() -> contextlib.AbstractContextManager[Any]:
    """Inside, what is compiled runs as it is written; nothing where the compiler is not loaded,
    for nothing is compiled there."""
    if "torch._dynamo" not in sys.modules:
        return contextlib.nullcontext()
    stance: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def parts_uncompiled(model: torch.nn.Module) -> contextlib.AbstractContextManager[Any]:
    """Inside, what a model compiles by itself (flex_attention, a function) runs uncompiled; a
    model that is compiled as a whole does not."""
    whole = hasattr(model, "_orig_mod") or model._compiled_call_impl is not None
    return contextlib.nullcontext() if whole else uncompiled()
