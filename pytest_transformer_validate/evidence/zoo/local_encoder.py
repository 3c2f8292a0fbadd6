"""Encoder whose tokens see their neighbours only, with a head tied to the embedding."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LocalAttention(nn.Module):
    def __init__(self, hidden_size: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.dense = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        q, k, v = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        steps = torch.arange(x.size(1), device=x.device)
        near = (steps[:, None] - steps).abs() <= self.window // 2
        scores = torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(q.size(-1))
        scores = scores.masked_fill(~(near & keep[:, None, None]), torch.finfo(x.dtype).min)
        mixed = torch.einsum("bhij,bhjd->bihd", scores.softmax(dim=-1), v)
        return self.dense(mixed.flatten(2))


class LocalLayer(nn.Module):
    def __init__(self, hidden_size: int, heads: int, window: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(hidden_size), nn.LayerNorm(hidden_size)
        self.attention = LocalAttention(hidden_size, heads, window)
        self.wide = nn.Linear(hidden_size, 3 * hidden_size)
        self.narrow = nn.Linear(3 * hidden_size, hidden_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x), keep))
        return x + self.dropout(self.narrow(F.gelu(self.wide(self.norm2(x)))))


class LocalEncoder(nn.Module):
    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        num_hidden_layers: int,
        num_attention_heads: int,
        local_attention: int,
        max_position_embeddings: int,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(vocab_size, hidden_size)
        self.positions = nn.Embedding(max_position_embeddings, hidden_size)
        self.layers = nn.ModuleList(
            LocalLayer(hidden_size, num_attention_heads, local_attention, dropout)
            for _ in range(num_hidden_layers)
        )
        self.norm = nn.LayerNorm(hidden_size)
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        nn.init.normal_(self.embeddings.weight, std=0.05)
        nn.init.normal_(self.positions.weight, std=0.05)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        keep = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        steps = torch.arange(input_ids.size(1), device=input_ids.device)
        x = self.embeddings(input_ids) + self.positions(steps)
        for layer in self.layers:
            x = layer(x, keep.bool())
        return F.linear(self.norm(x), self.embeddings.weight, self.bias)
