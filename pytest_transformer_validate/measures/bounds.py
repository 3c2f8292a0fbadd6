"""Numbers about the edges of vocabulary and length."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_transformer_validate.measures.measurement import Measurement


@dataclass(frozen=True, kw_only=True)
class Vocabulary(Measurement):
    """Sizes of the vocabulary: ``declared``, ``rows`` of the table that the ids of ``role`` index
    and ``width`` of the output; ``row`` is what was read in place of id ``given``."""

    role: str = "input_ids"
    declared: int | None = None
    rows: int = 0
    width: int = 0
    given: int | None = None
    row: int | None = None


@dataclass(frozen=True, kw_only=True)
class Length(Measurement):
    """What a model does with one token more than ``longest``: ``raised``, or the ``positions``
    of its output and how far it moved with the last token (``value``)."""

    longest: int = 0
    raised: str | None = None
    positions: int | None = None


def padded(declared: int, width: int) -> bool:
    """Whether an output as wide as ``width`` stands for ``declared`` ids: wider by any padding;
    another vocabulary altogether where it is narrower by more than a few ids."""
    return width >= declared or declared - width > max(2, declared // 50)
