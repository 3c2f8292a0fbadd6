"""Numbers about decoding with a cache."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_transformer_validate.measures.measurement import Measurement


@dataclass(frozen=True, kw_only=True)
class KvCache(Measurement):
    """How far logits that were decoded with a cache are from those of the whole text.

    ``value`` is the largest distance; ``protocol`` says how the cache travels, ``pieces`` how the
    text was cut; ``position`` is the first that is off and ``cached`` the number of tokens that
    were in the cache then (``None`` where nothing is off).
    """

    protocol: str = ""
    rows: int = 0
    pieces: tuple[int, ...] = ()
    position: int | None = None
    cached: int | None = None
