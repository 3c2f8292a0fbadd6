"""The traceback of a model's own exception, without frames of pytest and of this package."""

from __future__ import annotations

import traceback
from pathlib import Path

from pytest_transformer_validate.errors import text_of
from pytest_transformer_validate.report.text import capped

_PACKAGE = str(Path(__file__).parent.parent)
_EVIDENCE = str(Path(_PACKAGE) / "evidence")
_FRAMES = 12
_LAST_RESORT = 3
_LIBRARIES = frozenset(
    {"torch", "_pytest", "pluggy", "contextlib.py", "functools.py", "pytest_timeout.py"}
)


def model_traceback(error: BaseException) -> str:
    """The exception and the frames a model's author can act on, newest last; never this
    package's own.

    At most 12 frames and 8 KiB; an exception whose text cannot be made is said to be unprintable.
    """
    every = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in every if not _is_machinery(frame.filename)]
    if not frames:
        outside = [frame for frame in every if not frame.filename.startswith(_PACKAGE)]
        frames = outside[-_LAST_RESORT:]
    return capped("".join(traceback.format_list(frames[-_FRAMES:])) + exception_line(error))


def exception_line(error: BaseException) -> str:
    """``RuntimeError: message``, capped at 8 KiB."""
    name, text = type(error).__qualname__, text_of(error)
    return capped(f"{name}: {text}" if text else name)


def _is_machinery(filename: str) -> bool:
    if filename.startswith(_EVIDENCE):
        return False
    parts = Path(filename).parts
    if filename.startswith((_PACKAGE, "<frozen")):
        return True
    return not _LIBRARIES.isdisjoint(parts)
