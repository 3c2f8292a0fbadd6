"""The numbers of a check, in a form that every reporter can read."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A limit and where it comes from, e.g. ``Limit(value=1.1e-6, rule="16 u")``."""

    value: float
    rule: str

    def __str__(self) -> str:
        return f"{self.value:.2g} = {self.rule}"


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Base of every measurement.

    ``value`` is the headline number of the check and ``limit`` what it was held against, both
    ``None`` where there is nothing to compare; ``notes`` are facts that a reader of the record
    should know (an arbitration in float64, a structural reason that explains an exception).
    """

    value: float | None = None
    limit: Limit | None = None
    notes: tuple[str, ...] = ()

    def numbers(self) -> dict[str, Any]:
        """The fields as JSON-able types; a number that is not finite becomes its name."""
        return _fields(self)


def _fields(instance: Any) -> dict[str, Any]:
    return {f.name: _plain(getattr(instance, f.name)) for f in dataclasses.fields(instance)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return _fields(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
