"""Decoder with a causal depthwise convolution before attention, which is all it has for order."""

import torch.nn.functional as F
from torch import Tensor, nn


class CausalConv(nn.Module):
    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__()
        self.left = kernel_size - 1
        self.conv = nn.Conv1d(dim, dim, kernel_size, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x.transpose(1, 2), (self.left, 0))
        return self.conv(x).transpose(1, 2)


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, dim = x.shape
        q, k, v = (
            part.view(batch, length, self.heads, dim // self.heads).transpose(1, 2)
            for part in self.to_qkv(x).chunk(3, dim=-1)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.to_out(y.transpose(1, 2).reshape(batch, length, dim))


class ConvBlock(nn.Module):
    def __init__(self, dim: int, heads: int, kernel_size: int, dropout: float) -> None:
        super().__init__()
        self.conv_norm = nn.LayerNorm(dim)
        self.conv = CausalConv(dim, kernel_size)
        self.attn_norm = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads)
        self.ff_norm = nn.LayerNorm(dim)
        self.ff = nn.Sequential(nn.Linear(dim, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.conv(self.conv_norm(x)))
        x = x + self.drop(self.attn(self.attn_norm(x)))
        return x + self.drop(self.ff(self.ff_norm(x)))


class ConvGPT(nn.Module):
    def __init__(
        self,
        vocab_size: int,
        dim: int = 32,
        depth: int = 2,
        heads: int = 4,
        kernel_size: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, dim)
        self.blocks = nn.ModuleList(
            [ConvBlock(dim, heads, kernel_size, dropout) for _ in range(depth)]
        )
        self.norm = nn.LayerNorm(dim)
        self.unembedding = nn.Linear(dim, vocab_size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x)
        for block in self.blocks:
            x = block(x)
        return self.unembedding(self.norm(x))
