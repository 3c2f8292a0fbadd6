"""Batch sizes and lengths that no other axis of a model can be taken for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

LARGE = 20_000_000  # parameters from which on passes are short
WIDE = 1 << 16  # and ids
_PRIMES = (5, 7, 11, 13, 17, 19, 23, 29, 31)


def probe_sizes(model: nn.Module, longest: int | None, multiple: int = 1) -> tuple[int, int]:
    """(B, T): different primes that no axis of a weight has, T from 11 on where that fits (7 in a
    large model); T is a multiple where lengths have to be."""
    if multiple > 1:
        return _multiples(model, longest, multiple)[0]
    free = _free(model, longest, _PRIMES) or [
        p for p in (2, 3, *_PRIMES) if longest is None or p <= longest
    ]
    large = sum(p.numel() for p in model.parameters()) > LARGE
    lengths = [p for p in free if p >= (7 if large else 11)] or free[-1:]
    length = lengths[0] if lengths else 1
    return next((p for p in free if p != length), 3), length


def other_sizes(
    model: nn.Module, longest: int | None, sizes: tuple[int, int], multiple: int = 1
) -> tuple[int, int]:
    """A second (B, T), different from ``sizes`` in both."""
    if multiple > 1:
        return _multiples(model, longest, multiple)[1]
    free = [p for p in _free(model, longest, (3, *_PRIMES)) if p not in sizes]
    if len(free) > 1:
        return free[0], free[1]
    return sizes[0] + 1, max(1, sizes[1] - 1)


def longer_than(
    model: nn.Module, length: int, longest: int | None, multiple: int = 1
) -> int | None:
    """A length a little above ``length`` that no axis of a weight has, if one fits."""
    if multiple > 1:
        return length + multiple if longest is None or length + multiple <= longest else None
    return next((p for p in _free(model, longest, _PRIMES) if p > length), None)


def long_text(model: nn.Module, longest: int | None, most: int, multiple: int = 1) -> int:
    """The largest length up to ``most`` that fits and that no axis of a weight has."""
    largest = min(longest or most, most)
    fitting = range(largest - largest % multiple, largest // 2, -multiple)
    taken = _taken(model)
    return next((n for n in fitting if n not in taken), largest - largest % multiple)


def _multiples(model: nn.Module, longest: int | None, multiple: int) -> list[tuple[int, int]]:
    """Two (B, T) whose T is a multiple, short, and where that fits no axis of a weight."""
    rows = _free(model, None, _PRIMES)
    lengths = [k * multiple for k in (1, 2, 3, 5, 7)]
    fitting = [n for n in lengths if longest is None or n <= longest] or lengths[:1]
    taken = _taken(model)
    fitting.sort(key=lambda n: (n < 11, n > max(48, 2 * multiple), n in taken, n))
    return [(rows[0], fitting[0]), (rows[1], fitting[min(1, len(fitting) - 1)])]


def _taken(model: nn.Module) -> set[int]:
    return {size for parameter in model.parameters() for size in parameter.shape}


def _free(model: nn.Module, longest: int | None, primes: tuple[int, ...]) -> list[int]:
    taken = _taken(model)
    return [p for p in primes if p not in taken and (longest is None or p <= longest)]
