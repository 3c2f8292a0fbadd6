"""Seeing every operation that a model runs."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Self

import torch
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from types import TracebackType


class Operations(TorchDispatchMode):
    """Base of modes that watch operations, without importing the compiler.

    By default the first operation under a mode imports torch._dynamo, to keep the mode's own code
    from being compiled, and that takes as long as ``import torch`` does. Where it is loaded, a
    compiled model runs uncompiled instead; where it is not, nothing compiles.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._uncompiled = contextlib.ExitStack()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __enter__(self) -> Self:
        if "torch._dynamo" in sys.modules:
            self._uncompiled.enter_context(torch.compiler.set_stance("force_eager"))
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
