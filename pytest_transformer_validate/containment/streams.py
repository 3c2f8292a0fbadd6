"""Standard streams and their descriptors: what a model closes is open again for the next."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_NAMES = ("stdin", "stdout", "stderr", "__stdin__", "__stdout__", "__stderr__")
_CLOSING = ("close", "detach")
_DESCRIPTORS = (0, 1, 2)


@contextlib.contextmanager
def kept_open() -> Iterator[None]:
    """Streams do not close and do not lose what is below them; the descriptors 0 to 2 lead in the
    end to where they led."""
    held = list(_streams())
    for stream in held:
        for name in _CLOSING:
            setattr(stream, name, _stays_open)
    copies = [(number, copy) for number in _DESCRIPTORS if (copy := _copy(number)) is not None]
    try:
        yield
    finally:
        for number, copy in copies:
            with contextlib.suppress(OSError):  # a model closed the copies, too
                if _file(number) != _file(copy):
                    os.dup2(copy, number)
                os.close(copy)
        for stream in held:
            for name in _CLOSING:
                vars(stream).pop(name, None)


def _streams() -> Iterator[Any]:
    """The standard streams and what they write to, as far as Python lets them have attributes."""
    seen: set[int] = set()
    for name in _NAMES:
        stream = getattr(sys, name, None)
        for each in (stream, getattr(stream, "buffer", None)):
            own = getattr(each, "__dict__", None)
            if isinstance(own, dict) and id(each) not in seen and own.keys().isdisjoint(_CLOSING):
                seen.add(id(each))
                yield each


def _stays_open() -> None:
    """In place of ``close``: the stream is everybody's."""


def _copy(number: int) -> int | None:
    try:
        return os.dup(number)
    except OSError:
        return None


def _file(number: int) -> tuple[int, int] | None:
    try:
        found = os.fstat(number)
    except OSError:
        return None
    return found.st_dev, found.st_ino
