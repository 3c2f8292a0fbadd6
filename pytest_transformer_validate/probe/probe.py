"""A Subject with a memory: each pass happens at most once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_transformer_validate.subject.subject import Subject


class Probe:
    def __init__(self, subject: Subject, *, seed: int = 0, weights: str = "as given") -> None:
        self.subject = subject
        self.seed = seed
        self.weights = weights

    def context(self) -> dict[str, Any]:
        """What is in force: task, parameters, device, dtype, seed, weights."""
        subject = self.subject
        return {
            "task": str(subject.task),
            "parameters": sum(p.numel() for p in subject.model.parameters()),
            "device": str(subject.device),
            "dtype": str(subject.dtype).removeprefix("torch."),
            "seed": self.seed,
            "weights": self.weights,
        }
