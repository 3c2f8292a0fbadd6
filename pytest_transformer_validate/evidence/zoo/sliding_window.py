"""Decoder with sliding-window attention: a token sees itself and the few before it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WindowAttention(nn.Module):
    def __init__(self, hidden_size: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        self.q = nn.Linear(hidden_size, hidden_size)
        self.kv = nn.Linear(hidden_size, 2 * hidden_size)
        self.o = nn.Linear(hidden_size, hidden_size)

    def band(self, length: int, device: torch.device) -> Tensor:
        steps = torch.arange(length, device=device)
        back = steps[:, None] - steps[None, :]
        return (back >= 0) & (back < self.window)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        shape = (batch, length, self.heads, width // self.heads)
        key, value = self.kv(x).chunk(2, dim=-1)
        q = self.q(x).view(shape).transpose(1, 2)
        k = key.reshape(shape).transpose(1, 2)
        v = value.reshape(shape).transpose(1, 2)
        allowed = self.band(length, x.device)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        return self.o(y.transpose(1, 2).reshape(batch, length, width))


class WindowLayer(nn.Module):
    def __init__(self, hidden_size: int, heads: int, window: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size)
        self.attn = WindowAttention(hidden_size, heads, window)
        self.norm2 = nn.LayerNorm(hidden_size)
        self.fc_in = nn.Linear(hidden_size, 2 * hidden_size)
        self.fc_out = nn.Linear(2 * hidden_size, hidden_size)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.attn(self.norm1(x)))
        return x + self.drop(self.fc_out(F.gelu(self.fc_in(self.norm2(x)))))


class SlidingWindowLM(nn.Module):
    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        num_hidden_layers: int,
        num_attention_heads: int,
        sliding_window: int,
        max_position_embeddings: int,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, hidden_size)
        self.embed_pos = nn.Embedding(max_position_embeddings, hidden_size)
        self.layers = nn.ModuleList(
            [
                WindowLayer(hidden_size, num_attention_heads, sliding_window, dropout)
                for _ in range(num_hidden_layers)
            ]
        )
        self.norm = nn.LayerNorm(hidden_size)
        self.lm_head = nn.Linear(hidden_size, vocab_size, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        steps = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.embed(input_ids) + self.embed_pos(steps)[None]
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.norm(x))
