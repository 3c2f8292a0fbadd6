"""Numbers about what each position sees, of the tokens it should see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_transformer_validate.measures.measurement import Measurement

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from pytest_transformer_validate.probe.footprints import Footprint
    from pytest_transformer_validate.probe.positions import Swaps

_NOTHING = 1e-12


@dataclass(frozen=True, kw_only=True)
class Context(Measurement):
    """What outputs depend on.

    ``value`` is the smallest dependency of an output on a token that it should see, relative to
    its largest; ``unseen`` the number of pairs (position, token) below the limit and ``pairs``
    that of all; ``reach`` the largest distance over which anything is seen in a text of
    ``length`` tokens, ``long_reach`` in one of ``long_length``; ``window`` a declared one, and
    ``module_reach`` the distance that each module reaches back by itself.
    """

    unseen: int = 0
    pairs: int = 0
    length: int = 0
    reach: int | None = None
    long_reach: int | None = None
    long_length: int | None = None
    window: int | None = None
    module_reach: tuple[tuple[str, int], ...] = ()


def relative(matrix: torch.Tensor) -> torch.Tensor:
    """Each entry of a dependency matrix relative to the largest in its row."""
    return matrix / matrix.amax(-1, keepdim=True).clamp(min=1e-300)


def displaced(values: torch.Tensor) -> int:
    """How far from its own place every output depends most on a token, on its own by less than
    half as much on average; 0 where outputs belong to their places, or are not one a token.
    ``values`` (outputs, T) are relative."""
    if values.shape[0] != values.shape[1]:
        return 0
    most = [int(row.argmax()) - place for place, row in enumerate(values)]
    shift = max(set(most), key=most.count)
    inside = [place for place in range(len(most)) if 0 <= place + shift < len(most)]
    own = sum(float(values[k, k]) for k in inside) / len(inside)
    alike = all(most[k] == shift for k in inside) and len(inside) > len(most) // 2
    return shift if alike and own < 0.5 else 0


@dataclass(frozen=True)
class Pattern:
    """The shape of what is seen: ``all``, ``shifted`` (all but itself), ``alone`` (nothing but
    itself), ``band`` (the last ``reach``), ``past`` or ``future`` (one side only), ``holes``."""

    name: str
    reach: int
    unseen: tuple[tuple[int, int], ...] = ()


def causal_pattern(seen: torch.Tensor) -> Pattern:
    """The pattern below and on the diagonal of ``seen`` (T, T)."""
    length = len(seen)
    sees = seen.tolist()
    past = [(k, s) for k in range(length) for s in range(k + 1)]
    unseen = tuple((k, s) for k, s in past if not sees[k][s])
    distances = {k - s for k, s in past if sees[k][s]}
    reach = max(distances, default=0)
    if not unseen:
        return Pattern("all", reach)
    if not reach:
        return Pattern("alone", 0, unseen)
    if all(k == s for k, s in unseen) and len(unseen) == length:
        return Pattern("shifted", reach)
    beyond = {(k, s) for k, s in past if k - s > reach}
    if set(unseen) == beyond:
        return Pattern("band", reach, unseen)
    return Pattern("holes", reach, unseen)


def full_pattern(seen: torch.Tensor, positions: tuple[int, ...] | None = None) -> Pattern:
    """The pattern of ``seen`` (K, T), of which row k is that of ``positions[k]``."""
    places = positions or tuple(range(seen.shape[1]))
    visible, unseen = set(), []
    for k, row in zip(places, seen.tolist(), strict=False):
        for s, sees in enumerate(row):
            if sees:
                visible.add(s - k)
            else:
                unseen.append((k, s))
    reach = max(map(abs, visible), default=0)
    if not unseen:
        return Pattern("all", reach)
    missing = tuple(unseen)
    if not reach:
        return Pattern("alone", 0, missing)
    if max(visible) <= 0:
        return Pattern("past", reach, missing)
    if min(visible) >= 0:
        return Pattern("future", reach, missing)
    if all(abs(k - s) > reach for k, s in missing):
        return Pattern("band", reach, missing)
    return Pattern("holes", reach, missing)


def module_pattern(footprint: Footprint) -> Pattern | None:
    """What one module carries between positions of its own sequence."""
    matrix = footprint.own
    if matrix is None or not float(matrix.max()) > 0:
        return None
    return full_pattern(matrix > _NOTHING * float(matrix.max()), footprint.positions)


def mixers(footprints: Iterable[Footprint], length: int) -> list[Footprint]:
    """The innermost modules that carry anything from one position of a sequence of ``length``
    tokens to another, in the order of execution."""
    found = [f for f in footprints if f.length == length and _mixes(f)]
    names = {f.module for f in found}
    return [f for f in found if not any(inside(other, f.module) for other in names)]


def inside(module: str, other: str) -> bool:
    """Whether one module is a part of another."""
    return module != other and (other == "(model)" or module.startswith(f"{other}."))


def _mixes(footprint: Footprint) -> bool:
    pattern = module_pattern(footprint)
    return pattern is not None and pattern.name != "alone"


def look_back(footprint: Footprint, k: int) -> int:
    """How far the output at ``k`` looks back within its own sequence."""
    matrix = footprint.own
    if matrix is None:
        return 0
    row = matrix[footprint.positions.index(k)]
    seen = (row > _NOTHING * float(matrix.max())).nonzero().flatten().tolist()
    return max((k - s for s in seen if s <= k), default=0)


def longest_reach(swaps: Swaps, limit: float) -> int:
    """The largest distance between a replaced token and a later output that moved."""
    distances = [
        int(moved[-1]) - start
        for row, start in enumerate(swaps.start)
        if not swaps.suffix[row]
        and len(moved := (swaps.effect[row] > limit).nonzero().flatten())
        and int(moved[-1]) >= start
    ]
    return max(distances, default=0)


def band(seen: torch.Tensor) -> int | None:
    """How far every position of ``seen`` (H, T, T) looks back, where that is a fixed number of
    tokens for all heads and less than the text."""
    length = seen.shape[-1]
    reach = length - 1 - int(seen[0, -1].int().argmax())
    if not 0 < reach < length - 1:
        return None
    wanted = seen.new_ones(length, length).tril().triu(-reach)
    return reach if bool((seen == wanted).all()) else None


def cliff(values: torch.Tensor) -> int | None:
    """The distance to the last of ``values`` (T,) beyond which all are zero; ``None`` where none
    is, or where they fade (a recurrence forgets)."""
    beyond = values > 0
    start = int(beyond.int().argmax())
    clean = bool(beyond[start:].all()) and float(values[start]) > 1e-9 * float(values.max())
    return len(values) - 1 - start if start and clean else None


def alike(module: str) -> str:
    """A module's name without the numbers of layers."""
    return ".".join("*" if part.isdigit() else part for part in module.split("."))
