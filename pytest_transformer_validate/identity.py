"""Whether many names still stand for the very same objects, in one comparison of memory.

Containers compare what they hold with ``==``, which an object may answer as it likes;
``operator.is_`` over each pair takes twice as long.
"""

from __future__ import annotations

import ctypes
import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

_POINTER = ctypes.sizeof(ctypes.c_void_p)
_HEADER = tuple.__basicsize__


class Identities:
    """What some containers held, to be compared with what they hold later.

    ``views`` show what they hold at any time, as ``dict.values()`` does; ``held`` is the same of
    an earlier time, ``None`` for now.
    """

    def __init__(
        self,
        views: Sequence[Collection[object]],
        held: Sequence[Collection[object]] | None = None,
    ) -> None:
        self._views = views
        held = views if held is None else held
        self._sizes = list(map(len, held))
        self._held = _all(held)  # kept alive, for an address is given out again
        self._addresses = _addresses(self._held)

    def same(self) -> bool:
        """Whether each holds the very same objects in the same order."""
        return self.same_sizes() and _addresses(_all(self._views)) == self._addresses

    def same_sizes(self) -> bool:
        """Whether each holds as many objects."""
        return list(map(len, self._views)) == self._sizes


def _all(views: Sequence[Collection[object]]) -> tuple[object, ...]:
    return tuple(itertools.chain.from_iterable(views))


def _addresses(held: tuple[object, ...]) -> bytes:
    """The addresses of what a tuple holds, which stand behind its header (CPython)."""
    return ctypes.string_at(id(held) + _HEADER, len(held) * _POINTER)
