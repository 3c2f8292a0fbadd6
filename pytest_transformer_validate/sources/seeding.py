"""Building a model from one seed without moving anyone else's random numbers."""

from __future__ import annotations

import contextlib
import functools
import random
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python, torch and, where it is imported, numpy; give their states back."""
    import torch

    cuda = torch.cuda
    devices = list(range(cuda.device_count())) if cuda.is_initialized() else []
    python_state = random.getstate()
    with torch.random.fork_rng(devices=devices), _numpy_seeded(seed):
        # torch.manual_seed notes a traceback for every kind of device, also where there is none
        seed_torch = torch.manual_seed if _accelerated() else torch.default_generator.manual_seed
        seed_torch(seed)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)


@functools.cache
def _accelerated() -> bool:
    """Whether there is another device than the CPU to draw on."""
    import torch

    return torch.accelerator.is_available()


@contextlib.contextmanager
def _numpy_seeded(seed: int) -> Iterator[None]:
    numpy = sys.modules.get("numpy")
    if numpy is None:
        yield
        return
    state = numpy.random.get_state()
    numpy.random.seed(seed % 2**32)
    try:
        yield
    finally:
        numpy.random.set_state(state)
