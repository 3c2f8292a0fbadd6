"""Inputs of a model, by role."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Batch:
    """Inputs by role: ``input_ids`` (B, T) or ``pixel_values`` (B, C, H, W), and what else is
    given: ``attention_mask`` (B, T; 1 keeps), ``decoder_input_ids`` (B, T_decoder), ``labels``...
    """

    inputs: dict[str, torch.Tensor] = field(default_factory=dict)

    def __getitem__(self, role: str) -> torch.Tensor:
        return self.inputs[role]

    @property
    def main(self) -> torch.Tensor:
        """The ids or the image."""
        return next(iter(self.inputs.values()))

    @property
    def rows(self) -> int:
        """Batch size B."""
        return self.main.shape[0]

    def with_(self, **inputs: torch.Tensor) -> Batch:
        """The same batch with some inputs replaced or added."""
        return replace(self, inputs={**self.inputs, **inputs})

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Batch:
        """The batch on another device; floating point inputs in ``dtype``."""
        return Batch(
            {
                role: t.to(device, dtype if t.is_floating_point() else None)
                for role, t in self.inputs.items()
            }
        )
