"""Models that read several texts a row and choose among them."""

from __future__ import annotations

from typing import Any

import torch


def as_choices(role: str, value: Any) -> Any:
    """What is (B, T) as (B, 2, T), for models that read several texts a row: the text, and the
    same with its first two tokens exchanged."""
    if not isinstance(value, torch.Tensor) or value.dim() != 2 or role == "labels":
        return value
    other = value.clone()
    if role == "input_ids" and value.shape[1] > 1:
        other[:, :2] = value[:, :2].flip(1)
    return torch.stack([value, other], dim=1)
