"""Numbers about one model computed in two ways."""

from __future__ import annotations

from dataclasses import dataclass, field

from pytest_transformer_validate.measures.measurement import Measurement


@dataclass(frozen=True, kw_only=True)
class Backends(Measurement):
    """``value`` is how far the outputs of the worst pair of ways are apart; ``moved`` the same by
    way, ``worst`` the way that it is about."""

    moved: dict[str, float] = field(default_factory=dict)
    worst: str | None = None
