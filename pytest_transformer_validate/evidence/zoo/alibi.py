"""Decoder with ALiBi: a distance penalty on the attention scores instead of positions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def alibi_slopes(heads: int) -> Tensor:
    return torch.tensor([2.0 ** (-8.0 * (head + 1) / heads) for head in range(heads)])


class AlibiAttention(nn.Module):
    slopes: Tensor

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        self.register_buffer("slopes", alibi_slopes(heads).view(1, heads, 1, 1))

    def split(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), x.size(1), self.heads, -1).transpose(1, 2)

    def bias(self, length: int) -> Tensor:
        steps = torch.arange(length, device=self.slopes.device)
        distance = steps[None, :] - steps[:, None]
        bias = self.slopes * distance
        return bias.masked_fill(distance > 0, float("-inf"))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias(x.size(1)))
        return self.out(y.transpose(1, 2).flatten(2))


class AlibiBlock(nn.Module):
    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(dim)
        self.attention = AlibiAttention(dim, heads)
        self.norm_mlp = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_attention(x))
        return x + self.mlp(self.norm_mlp(x))


class AlibiLM(nn.Module):
    def __init__(
        self, vocab_size: int, dim: int, depth: int, heads: int, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, dim)
        self.blocks = nn.Sequential(*[AlibiBlock(dim, heads, dropout) for _ in range(depth)])
        self.final_norm = nn.LayerNorm(dim)
        self.to_logits = nn.Linear(dim, vocab_size)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token_embedding(tokens)
        x = self.blocks(x)
        return self.to_logits(self.final_norm(x))
