"""What happened to one check on one model: plain data that travels through xdist."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

STATUSES = ("passed", "failed", "broken", "blocked", "skipped", "xfailed", "stale")
FAILURES = frozenset({"failed", "broken", "blocked", "stale"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """The outcome of one check (or one case of it) on one model.

    ``status`` is one of STATUSES; ``message`` the text for a person (failure text, reason of a
    skip, empty for a pass); ``where`` the first module in which the property breaks; ``numbers``
    the measurement; ``context`` what was in force (task, parameters, device, dtype, seed,
    weights); ``seconds`` wall time.
    """

    model: str
    tier: int
    check: str
    status: str
    case: str | None = None
    message: str = ""
    where: str | None = None
    numbers: dict[str, Any] = field(default_factory=dict)
    context: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """``check`` or ``check[case]``."""
        return self.check if self.case is None else f"{self.check}[{self.case}]"

    @property
    def failure(self) -> bool:
        """Whether pytest counts it as a failure."""
        return self.status in FAILURES

    def to_json(self) -> dict[str, Any]:
        """JSON-able dict; ``from_json`` gives the record back. They share numbers and context."""
        return {name: getattr(self, name) for name in _FIELDS}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Record:
        """The record that ``to_json`` gave."""
        return cls(**data)


_FIELDS = tuple(each.name for each in dataclasses.fields(Record))
