"""Masked language model with a bias for each distance in buckets, as in T5; head is tied."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RelativeBias(nn.Module):
    """One number a head for the distance between two tokens: exact nearby, the rest by side."""

    def __init__(self, heads: int, buckets: int) -> None:
        super().__init__()
        self.reach = (buckets - 1) // 2
        self.table = nn.Embedding(buckets, heads)

    def forward(self, length: int) -> Tensor:
        steps = torch.arange(length, device=self.table.weight.device)
        distance = steps[None, :] - steps[:, None]
        bucket = distance.clamp(-self.reach, self.reach) + self.reach
        return self.table(bucket).permute(2, 0, 1)[None]


class SelfAttention(nn.Module):
    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        batch, length, dim = x.shape
        q, k, v = (
            part(x).view(batch, length, self.heads, dim // self.heads).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        drop = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=drop)
        return self.output(y.transpose(1, 2).reshape(batch, length, dim))


class EncoderLayer(nn.Module):
    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, heads, dropout)
        self.mlp_norm = nn.LayerNorm(dim)
        self.inner = nn.Linear(dim, 4 * dim)
        self.outer = nn.Linear(2 * dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), bias))
        gate, value = self.inner(self.mlp_norm(x)).chunk(2, dim=-1)
        return x + self.dropout(self.outer(F.gelu(gate) * value))


class RelativeEncoder(nn.Module):
    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        num_hidden_layers: int,
        num_attention_heads: int,
        relative_attention_num_buckets: int = 25,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, hidden_size)
        self.relative = RelativeBias(num_attention_heads, relative_attention_num_buckets)
        self.layers = nn.ModuleList(
            [
                EncoderLayer(hidden_size, num_attention_heads, dropout)
                for _ in range(num_hidden_layers)
            ]
        )
        self.norm = nn.LayerNorm(hidden_size)
        self.head = nn.Linear(hidden_size, vocab_size)
        self.apply(self.init_weights)
        self.head.weight = self.embed.weight

    def init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.05)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.embed(input_ids)
        bias = self.relative(input_ids.size(1))
        if attention_mask is not None:
            hidden = attention_mask[:, None, None, :] == 0
            bias = bias.masked_fill(hidden, torch.finfo(x.dtype).min)
        for layer in self.layers:
            x = layer(x, bias)
        return self.head(self.norm(x))
