"""Numbers of predictions for texts that say the same."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pytest_transformer_validate.measures.measurement import Measurement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_transformer_validate.probe.texts import Pair


@dataclass(frozen=True, kw_only=True)
class TextInvariance(Measurement):
    """``value`` is the part of all pairs whose prediction is the same, ``rates`` that of each
    kind of change; ``moved`` the mean distance of the probabilities (0 to 1) by kind;
    ``changed`` up to eight pairs whose prediction is not the same."""

    pairs: int = 0
    rates: dict[str, float] = field(default_factory=dict)
    moved: dict[str, float] = field(default_factory=dict)
    changed: list[tuple[str, str]] = field(default_factory=list)


def of_pairs(pairs: Sequence[Pair]) -> TextInvariance:
    """The numbers of all pairs, by kind."""
    kinds = {kind: [p for p in pairs if p.kind == kind] for kind in dict.fromkeys(_kinds(pairs))}
    return TextInvariance(
        value=sum(pair.same for pair in pairs) / len(pairs),
        pairs=len(pairs),
        rates={kind: sum(p.same for p in own) / len(own) for kind, own in kinds.items()},
        moved={kind: sum(p.moved for p in own) / len(own) for kind, own in kinds.items()},
        changed=[(pair.text, pair.changed) for pair in pairs if not pair.same][:8],
    )


def _kinds(pairs: Sequence[Pair]) -> list[str]:
    return [pair.kind for pair in pairs]
