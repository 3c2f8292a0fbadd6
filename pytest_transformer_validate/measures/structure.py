"""Numbers about attention and layers: what was looked at, and what is odd."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_transformer_validate.measures.measurement import Measurement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_transformer_validate.probe.identities import Identity

_NEARLY_ALL = 0.9
_SURE = 6.0
_SLIGHT = 0.1
_EXACT = 0.05
_NOTHING = 3e-4  # of what is passed on just as it is, rounded


@dataclass(frozen=True, kw_only=True)
class Structure(Measurement):
    """How many places were looked at (``value`` as well): sites of attention, or layers."""

    sites: int = 0
    layers: int = 0


def without_residual(group: Sequence[Identity]) -> Identity | None:
    """The one layer that does not pass its input on, where all the others of its kind do.

    A layer passes it on if nearly every feature moves with its own input; the one that does not
    has less than a third of the others' median slope, as it is and with both ends scaled to size
    one, and six times its uncertainty below them.
    """
    odd = [one for one in group if _lost(one, group)]
    if len(odd) != 1:
        return None
    others = [one for one in group if one is not odd[0]]
    return odd[0] if all(_keeps(one) for one in others) else None


def stack_without_residual(groups: Sequence[Sequence[Identity]]) -> Identity | None:
    """The first layer of a list none of whose layers passes its input on, where every layer of
    every other list does. A list of branches, ``x + layer(x)``, is none."""
    lost = [group for group in groups if all(map(_blind, group)) and group[-1].handed]
    kept = [group for group in groups if all(map(_keeps, group))]
    return lost[0][0] if len(lost) == 1 and kept and len(kept) == len(groups) - 1 else None


def doubled(groups: Sequence[Sequence[Identity]]) -> Identity | None:
    """The first layer that gives its input twice. Not the first of a list: a norm behind it makes
    small vectors larger by any factor."""
    layers = (one for group in groups for one in group if one.handed)
    return next((one for one in layers if _is_two(one)), None)


def _is_two(one: Identity) -> bool:
    return abs(one.share - 2) < _EXACT and one.spread < _EXACT / 2 and one.positive >= _NEARLY_ALL


def lost_inside(groups: Sequence[Sequence[Identity]]) -> list[Identity]:
    """Layers that pass their input on, and not what the attention in them gives."""
    layers = (one for group in groups for one in group)
    return [one for one in layers if one.inner and _blind(one.inner) and _keeps(one)]


def around_attention(groups: Sequence[Sequence[Identity]]) -> list[Sequence[Identity]]:
    """The lists in which no layer passes its input on, and every one passes on what the attention
    in it gives, with something else added to it: a sum starts from that alone."""
    return [
        group
        for group in groups
        if _handed_on(group) and all(one.inner and _adds_to(one.inner) for one in group)
    ]


def behind_attention(groups: Sequence[Sequence[Identity]]) -> list[Sequence[Identity]]:
    """The lists in which no layer passes on its input, nor what the attention in it gives."""
    return [
        group
        for group in groups
        if _handed_on(group) and all(one.inner and _blind(one.inner) for one in group)
    ]


def keep(found: Sequence[Identity], count: int) -> bool:
    """Whether there are so many, and each passes its input on."""
    return len(found) == count and all(map(_keeps, found))


def _adds_to(one: Identity) -> bool:
    return _keeps(one) and one.spread > _NOTHING


def _handed_on(group: Sequence[Identity]) -> bool:
    """Whether no layer passes its input on, and nothing is added around the layers."""
    return all(map(_blind, group)) and all(one.handed for one in group[1:])


def _blind(one: Identity) -> bool:
    """As many features move against their input as with it, and none of them by much."""
    return abs(one.positive - 0.5) < _NEARLY_ALL - 0.5 and abs(one.share) < _SLIGHT


def _keeps(one: Identity) -> bool:
    return one.positive >= _NEARLY_ALL and one.share > _SURE * one.spread


def _lost(one: Identity, group: Sequence[Identity]) -> bool:
    others = [other for other in group if other is not one]
    share = statistics.median(other.share for other in others)
    relative = statistics.median(other.relative for other in others)
    certain = share - one.share > _SURE * one.spread
    return certain and one.share < share / 3 and one.relative < relative / 3
