"""Running what others wrote without their remarks: warnings, and lines of transformers."""

from __future__ import annotations

import contextlib
import sys
import warnings
from typing import TYPE_CHECKING

from pytest_transformer_validate.sources.directory import quiet

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """No warnings inside, whatever filters are in force, and no lines that transformers logs."""
    logging = sys.modules.get("transformers.utils.logging")
    silence = contextlib.nullcontext() if logging is None else quiet(logging)
    with silence, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
