"""How the axes of a model's output stand, and how to read them as (B, T, V) or (B, K)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

LAYOUTS = {
    "rows": "(B, T, V), (B, K) or anything else that is read as it is",
    "time": "(T, B, V)",
    "flat": "(B x T, V)",
    "time_flat": "(T x B, V)",
    "scores": "(B, T), one number a token",
    "channels": "(B, V, T), as cross_entropy takes it",
    "column": "(B,), one number a text",
    "heads": "(H, B, T, V), several heads one after the other",
}


def find_layout(shape: tuple[int, ...], rows: int, length: int, *, per_token: bool) -> str:
    """The layout (a key of LAYOUTS) of an output of ``shape`` for ``rows`` x ``length`` ids.

    ``per_token`` says that a task with one output a token is declared, or that the second axis
    was seen to follow the length.
    """
    if shape == (rows,):
        return "column"
    if len(shape) == 2 and shape[0] == rows * length:
        return "flat"
    if shape == (rows, length) and per_token:
        return "scores"
    if len(shape) == 3 and shape[0] == rows and shape[2] == length != shape[1]:
        return "channels"
    if len(shape) == 4 and shape[0] != rows and shape[1:3] == (rows, length):
        return "heads"
    return "rows"


def arrange(logits: torch.Tensor, layout: str, rows: int, length: int) -> torch.Tensor:
    """The output as (B, T, V) or (B, K); as it is where it does not have the layout."""
    if layout == "time" and logits.dim() == 3:
        return logits.transpose(0, 1)
    if layout == "flat" and logits.dim() == 2 and logits.shape[0] == rows * length:
        return logits.reshape(rows, length, logits.shape[-1])
    if layout == "time_flat" and logits.dim() == 2 and logits.shape[0] == rows * length:
        return logits.reshape(length, rows, logits.shape[-1]).transpose(0, 1)
    if layout == "scores" and logits.dim() == 2:
        return logits.unsqueeze(-1)
    if layout == "channels" and logits.dim() == 3:
        return logits.transpose(1, 2)
    if layout == "column" and logits.dim() == 1:
        return logits.unsqueeze(-1)
    if layout == "heads" and logits.dim() == 4:
        return logits.movedim(0, 2)
    return logits
