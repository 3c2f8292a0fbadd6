"""Hybrid decoder: a GRU reads the tokens, attention layers look back over its states."""

import torch
from torch import Tensor, nn


class RecurrentMixer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gru = nn.GRU(width, width, batch_first=True)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.gru(x)
        return self.out(states)


class AttentionLayer(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ff_norm = nn.LayerNorm(width)
        self.ff = nn.Sequential(
            nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        length = x.size(1)
        future = torch.full((length, length), float("-inf"), device=x.device).triu(1)
        h = self.norm(x)
        attended, _ = self.attn(h, h, h, attn_mask=future, need_weights=False)
        x = x + self.dropout(attended)
        return x + self.dropout(self.ff(self.ff_norm(x)))


class HybridLM(nn.Module):
    def __init__(
        self,
        vocab_size: int,
        width: int,
        num_layers: int,
        num_heads: int,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, width)
        self.mixer = RecurrentMixer(width)
        self.layers = nn.ModuleList(
            [AttentionLayer(width, num_heads, dropout) for _ in range(num_layers)]
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab_size)

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embed(input_ids)
        x = x + self.mixer(x)
        for layer in self.layers:
            x = layer(x)
        hidden = self.norm(x)
        return self.head(hidden), hidden
