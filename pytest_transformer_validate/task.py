"""What a model is for, and so what has to be true of it."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from pytest_transformer_validate.errors import SpecError

TASKS = ("causal_lm", "masked_lm", "seq2seq", "classification", "vision_classification")
ALIASES = {"lm": "causal_lm", "text_classification": "classification"}


@dataclass(frozen=True)
class TaskSpec:
    """A task and where it is known from.

    ``origin`` is the words that reports print: ``declared by --tb-task``, ``config.json``,
    ``architectures``, ``assumed``.
    """

    task_type: str
    origin: str = "declared"

    def __post_init__(self) -> None:
        object.__setattr__(self, "task_type", canonical_task(self.task_type))

    def __str__(self) -> str:
        if self.origin == "assumed":
            return f"{self.task_type} (assumed; declare with --tb-task)"
        return f"{self.task_type} ({self.origin})"

    @property
    def reads_tokens(self) -> bool:
        """Whether the input is token ids."""
        return self.task_type != "vision_classification"

    @property
    def per_token(self) -> bool:
        """Whether there is one output a token: (B, T, V)."""
        return self.task_type in {"causal_lm", "masked_lm", "seq2seq"}


def canonical_task(name: str) -> str:
    """The task that ``name`` means. Raises SpecError for an unknown one, naming the nearest."""
    task = ALIASES.get(name, name)
    if task not in TASKS:
        known = [*TASKS, *ALIASES]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise SpecError(f"unknown task {name!r}; known are {', '.join(known)}{hint}")
    return task
