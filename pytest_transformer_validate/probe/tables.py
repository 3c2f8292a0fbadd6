"""Passes that only the tables of ``test_functions`` ask for."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pytest_transformer_validate.probe.compare import projection
from pytest_transformer_validate.probe.passes import Passes, remembered


@dataclass(frozen=True)
class GradientOf:
    """The gradient of one parameter: norm, mean and spread; ``None`` where there is none."""

    parameter: str
    norm: float | None
    mean: float | None
    std: float | None


@dataclass(frozen=True)
class Outputs:
    """Logits over random inputs: of the finite ones mean, spread and range."""

    mean: float
    std: float
    low: float
    high: float
    nan: bool
    infinite: bool


class Tables(Passes):
    """One backward, and many forwards."""

    @remembered
    def gradients(self) -> list[GradientOf]:
        """The gradient of a random projection of the logits at every parameter."""
        probe = self.probe
        batch = probe.batch(*probe.subject.sizes, "gradient table")
        with probe.running("gradient table", grad=True) as subject:
            logits = subject(batch).logits
            loss = torch.where(logits.isfinite(), logits, 0) @ projection(
                probe, logits.shape[-1]
            ).to(logits)
            for parameter in subject.model.parameters():
                parameter.grad = None
            loss.sum().backward()
            return [_gradient(name, p) for name, p in subject.model.named_parameters()]

    @remembered
    def outputs(self, samples: int) -> Outputs:
        """The logits of ``samples`` random inputs."""
        probe = self.probe
        length = probe.subject.sizes[1]
        parts = []
        for start in range(0, samples, probe.subject.full_batch):
            rows = min(probe.subject.full_batch, samples - start)
            batch = probe.batch(rows, length, "outputs", start)
            parts.append(probe.forward(batch).logits.flatten().double().cpu())
        logits = torch.cat(parts)
        finite = logits[logits.isfinite()]
        if not finite.numel():
            finite = torch.full((2,), float("nan"))
        return Outputs(
            mean=float(finite.mean()),
            std=float(finite.std()),
            low=float(finite.min()),
            high=float(finite.max()),
            nan=bool(logits.isnan().any()),
            infinite=bool(logits.isinf().any()),
        )


def _gradient(name: str, parameter: torch.nn.Parameter) -> GradientOf:
    if parameter.grad is None:
        return GradientOf(name, None, None, None)
    grad = parameter.grad.to_dense().detach().double()
    std = float(grad.std()) if grad.numel() > 1 else 0.0
    return GradientOf(name, float(grad.norm()), float(grad.mean()), std)
