"""Whether many names still stand for the very same objects, in one comparison of memory.

Containers compare what they hold with ``==``, which an object may answer as it likes;
``operator.is_`` over each pair takes twice as long. Dicts of modules and classes need not be
looked through where nothing was written to them, which CPython counts.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import operator
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

_POINTER = ctypes.sizeof(ctypes.c_void_p)
_HEADER = tuple.__basicsize__
_VERSION = 3 * _POINTER  # of a dict, behind its count of references, its type and its size
_NUMBER = operator.attrgetter("value")


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


class Writes:
    """Writes to the dicts of modules and classes, and to others that belong to no instance.

    PEP 509 gives every dict of CPython a number that each write changes (3.11 to 3.13; PEP 699
    takes it away again). Where there is none, ``none`` is never true.
    """

    def __init__(self, dicts: Sequence[Any]) -> None:
        """``dicts`` are dicts, or the views of them that ``vars(cls)`` gives."""
        self._dicts = list(map(_dict_behind, dicts))  # kept alive, as their numbers are read
        self._numbers = list(map(_version, self._dicts))
        self.note()

    def note(self) -> None:
        """Count from now on."""
        self._noted = list(map(_NUMBER, self._numbers))

    def none(self) -> bool:
        """Whether nothing was written since."""
        return COUNTED and list(map(_NUMBER, self._numbers)) == self._noted


def _dict_behind(view: Any) -> dict[Any, Any]:
    found: dict[Any, Any] = view
    if isinstance(view, types.MappingProxyType):
        (found,) = gc.get_referents(view)
    return found


def _version(held: dict[Any, Any]) -> ctypes.c_uint64:
    return ctypes.c_uint64.from_address(id(held) + _VERSION)


def _counts_writes() -> bool:
    """Whether this Python counts writes where they are looked for."""
    module, kind, plain = types.ModuleType("module"), type("Kind", (), {}), {"name": 0}
    dicts = list(map(_dict_behind, (vars(module), vars(kind), plain)))
    numbers = list(map(_version, dicts))
    seen = [list(map(_NUMBER, numbers))]
    for value in (1, 2):
        module.name = kind.name = plain["name"] = value  # type: ignore[attr-defined]
        seen.append(list(map(_NUMBER, numbers)))
    reads = [dict(held) for held in dicts]
    unmoved = list(map(_NUMBER, numbers)) == seen[-1]
    return unmoved and all(len(set(each)) == len(reads) for each in zip(*seen, strict=True))


COUNTED = _counts_writes()
