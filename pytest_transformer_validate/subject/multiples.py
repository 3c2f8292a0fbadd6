"""Lengths of which a model says itself that they have to be multiples of something."""

from __future__ import annotations

import linecache
import re
import traceback
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable

_SAYS = re.compile(r"%|multiples?\b|divisible|divides", re.IGNORECASE)
_RESHAPED = re.compile(r"is invalid for input of size|expanded size of the tensor")
_ACROSS = re.compile(r"size of tensor a \(\d+\) must match .* at non-singleton dimension [23]")
_ADDED = re.compile(r"size of tensor a \((\d+)\) must match .* b \((\d+)\) at .* dimension [01]")
_MOST = 512  # ids that a single length may have
_CANDIDATES = (*range(2, 65), 96, 128, 256)


def says_multiple(error: Exception) -> bool:
    """Whether the model's own code refuses a length for its remainder: an ``assert`` or a
    ``raise ValueError`` that speaks of it. A shape that merely does not fit says nothing."""
    if not isinstance(error, AssertionError | ValueError):
        return False
    last = traceback.extract_tb(error.__traceback__)[-1]
    return bool(_SAYS.search(f"{error} {last.line or ''}"))


def named_lengths(error: Exception) -> list[int]:
    """The numbers that are named where a length is refused: those in the text of an ``assert`` or
    a ``raise ValueError`` of the model's own code, and what ``self.name`` is in the line that
    refuses; the sizes of two tensors that could not be added, as a whole table of positions."""
    added = _ADDED.search(str(error))
    if added:
        return [int(size) for size in added.groups() if 1 < int(size) <= _MOST]
    if not isinstance(error, AssertionError | ValueError) or error.__traceback__ is None:
        return []
    frame, number = list(traceback.walk_tb(error.__traceback__))[-1]
    line = linecache.getline(frame.f_code.co_filename, number)
    own = frame.f_locals.get("self")
    kept = [getattr(own, name, None) for name in re.findall(r"\bself\.(\w+)", line)]
    said = [int(digits) for digits in re.findall(r"\b\d{1,3}\b", str(error))]
    return list(dict.fromkeys(n for n in (*kept, *said) if type(n) is int and 1 < n <= _MOST))


def whole_table(error: Exception, length: int) -> bool:
    """Whether another length failed where a tensor of ``length`` positions was added to a text's
    vectors: a table that is not cut to the text."""
    added = _ADDED.search(str(error))
    return added is not None and str(length) in added.groups()


def whole_lengths(model: nn.Module) -> list[int]:
    """Lengths at which a linear layer reads the vectors of a whole text side by side, longest
    first: a classifier behind ``flatten(1)`` takes no other one. Then those of square weights of
    no layer's own, which may mix the positions of a text."""
    widths = {m.embedding_dim for m in model.modules() if isinstance(m, nn.Embedding)}
    sizes = {m.in_features for m in model.modules() if isinstance(m, nn.Linear)}
    found = {size // width for size in sizes for width in widths if size % width == 0}
    layers = (nn.Linear, nn.Embedding, nn.MultiheadAttention, nn.modules.conv._ConvNd)
    own = [p for m in model.modules() if not isinstance(m, layers) for p in m._parameters.values()]
    square = {
        p.shape[-1] for p in own if p is not None and p.dim() > 1 and len({*p.shape[-2:]}) < 2
    }
    lengths = [*sorted(found, reverse=True), *sorted(square - found, reverse=True)]
    return [length for length in lengths if 1 < length <= _MOST]


def typed_length(error: Exception) -> bool:
    """Whether a length failed at a view or an expand: the one that works stands in the code, where
    a mixer's stands in its weights."""
    return bool(_RESHAPED.search(str(error)))


def uncut_mask(error: Exception, model: nn.Module, length: int) -> bool:
    """Whether a length failed at scores, queries by keys, and nothing that is learned has as many
    of both as the one length that works: a mask of that size was not cut to the text."""
    learned = any(p.shape[-2:] == (length, length) for p in model.parameters())
    return bool(_ACROSS.search(str(error))) and not learned


def find_multiple(longest: int | None, runs: Callable[[int], bool]) -> int:
    """The number of which lengths have to be multiples, 1 where none is seen.

    ``runs(length)`` says whether the model takes a length.
    """
    for number in _CANDIDATES:
        if longest is not None and number > longest:
            return 1
        if not runs(number):
            continue
        further = [n for n in (2 * number, 3 * number) if longest is None or n <= longest]
        return number if all(map(runs, further)) and not runs(number + 1) else 1
    return 1
