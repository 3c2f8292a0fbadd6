"""GPT with what training and serving scripts rely on: a flag for fused attention, one for
activation checkpointing, and ``generate`` with temperature and top-k."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Attention(nn.Module):
    mask: Tensor

    def __init__(self, dim: int, heads: int, dropout: float, max_len: int) -> None:
        super().__init__()
        self.heads = heads
        self.flash = True
        self.dropout = dropout
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        mask = torch.ones(max_len, max_len, dtype=torch.bool).tril()
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, dim = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).unbind(2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        drop = self.dropout if self.training else 0.0
        if self.flash:
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=drop, is_causal=True)
        else:
            scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
            scores = scores.masked_fill(~self.mask[:length, :length], float("-inf"))
            y = F.dropout(scores.softmax(dim=-1), drop, self.training) @ v
        return self.out(y.transpose(1, 2).reshape(batch, length, dim))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, dropout: float, max_len: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads, dropout, max_len)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        x = x + self.drop(self.attn(self.norm1(x))) * scale
        return x + self.drop(self.mlp(self.norm2(x))) * scale


class TrainedGPT(nn.Module):
    def __init__(
        self,
        vocab_size: int,
        dim: int,
        heads: int,
        layers: int,
        max_len: int,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.max_len = max_len
        self.gradient_checkpointing = False
        self.tokens = nn.Embedding(vocab_size, dim)
        self.positions = nn.Embedding(max_len, dim)
        self.scales = nn.Parameter(torch.ones(layers))
        self.blocks = nn.ModuleList([Block(dim, heads, dropout, max_len) for _ in range(layers)])
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocab_size, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        steps = torch.arange(input_ids.size(1), device=input_ids.device)
        x = self.tokens(input_ids) + self.positions(steps)
        for block, scale in zip(self.blocks, self.scales, strict=True):
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, scale, use_reentrant=False)
            else:
                x = block(x, scale)
        return self.head(self.norm(x))

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
    ) -> Tensor:
        for _ in range(max_new_tokens):
            logits = self(input_ids[:, -self.max_len :])[:, -1] / temperature
            if top_k is not None:
                kept, _ = logits.topk(top_k, dim=-1)
                logits = logits.masked_fill(logits < kept[:, [-1]], float("-inf"))
            chosen = torch.multinomial(logits.softmax(dim=-1), num_samples=1)
            input_ids = torch.cat([input_ids, chosen], dim=1)
        return input_ids
