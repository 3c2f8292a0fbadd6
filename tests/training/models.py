"""Tiny models and data to train."""

from __future__ import annotations

import torch
from torch import nn

VOCABULARY = 16


class TinyLM(nn.Module):
    """Embeds ids, mixes each position with the mean of those before it, gives (B, T, V)."""

    def __init__(self, vocabulary: int = VOCABULARY, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.mix = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        hidden = self.embed(input_ids)
        weights = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        weights = weights.unsqueeze(-1).to(hidden.dtype)
        past = (hidden * weights).cumsum(1) / weights.cumsum(1).clamp(min=1)
        return self.head(self.norm(hidden + torch.relu(self.mix(past))))


def tiny_lm(seed: int = 0) -> TinyLM:
    """The same model for the same seed."""
    torch.manual_seed(seed)
    return TinyLM()


def rows(count: int, seed: int = 0, shortest: int = 4, longest: int = 9) -> list[torch.Tensor]:
    """Random texts of unequal lengths."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, longest + 1, (count,), generator=generator).tolist()
    return [torch.randint(1, VOCABULARY, (n,), generator=generator) for n in lengths]


def padded(texts: list[torch.Tensor], width: int | None = None) -> dict[str, torch.Tensor]:
    """A batch of texts, padded on the right with id 0, labels -100 there."""
    width = width or max(map(len, texts))
    ids = torch.zeros(len(texts), width, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = labels[row, : len(text)] = text
        mask[row, : len(text)] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
