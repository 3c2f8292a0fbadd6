"""Numbers about what a model's output is made of."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_transformer_validate.measures.measurement import Measurement


@dataclass(frozen=True, kw_only=True)
class OutputKind(Measurement):
    """What the output is.

    ``operation`` is the last one that computes, ``field`` and ``kind`` how the model returns its
    result, ``width`` the last axis of it and ``expected`` what the task asks for (``None`` where
    nothing says). ``value`` is the width as well.
    """

    operation: str = ""
    field: str = ""
    kind: str = ""
    width: int = 0
    expected: int | None = None
