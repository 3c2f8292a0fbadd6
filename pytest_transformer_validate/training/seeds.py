"""One seed for a run."""

from __future__ import annotations

import contextlib
import os
import random
import sys
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


def set_random_seed(seed: int, deterministic: bool = False) -> None:
    """Seed Python, torch and NumPy (where it is loaded); with ``deterministic``, only operations
    that give the same bits each time are taken (torch warns of those that have no such form)."""
    random.seed(seed)
    torch.manual_seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False


@contextlib.contextmanager
def settings_kept() -> Iterator[None]:
    """Give torch's deterministic flag back."""
    was, warned = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was, warn_only=warned)
