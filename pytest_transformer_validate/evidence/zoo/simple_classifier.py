"""Sentiment classifier as in a tutorial: one encoder block, average over time, no mask."""

import torch
from torch import Tensor, nn


class TransformerBlock(nn.Module):
    def __init__(self, embed_dim: int, num_heads: int, ff_dim: int, rate: float) -> None:
        super().__init__()
        self.att = nn.MultiheadAttention(embed_dim, num_heads, batch_first=True)
        self.ffn = nn.Sequential(
            nn.Linear(embed_dim, ff_dim), nn.ReLU(), nn.Linear(ff_dim, embed_dim)
        )
        self.layernorm1 = nn.LayerNorm(embed_dim, eps=1e-6)
        self.layernorm2 = nn.LayerNorm(embed_dim, eps=1e-6)
        self.dropout1 = nn.Dropout(rate)
        self.dropout2 = nn.Dropout(rate)

    def forward(self, inputs: Tensor) -> Tensor:
        attended, _ = self.att(inputs, inputs, inputs)
        out1 = self.layernorm1(inputs + self.dropout1(attended))
        return self.layernorm2(out1 + self.dropout2(self.ffn(out1)))


class TokenAndPositionEmbedding(nn.Module):
    def __init__(self, maxlen: int, vocab_size: int, embed_dim: int) -> None:
        super().__init__()
        self.token_emb = nn.Embedding(vocab_size, embed_dim)
        self.pos_emb = nn.Embedding(maxlen, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.token_emb(x) + self.pos_emb(torch.arange(x.size(-1), device=x.device))


class SentimentModel(nn.Module):
    def __init__(
        self,
        vocab_size: int,
        maxlen: int = 40,
        embed_dim: int = 32,
        num_heads: int = 2,
        ff_dim: int = 32,
        num_classes: int = 2,
    ) -> None:
        super().__init__()
        self.embedding = TokenAndPositionEmbedding(maxlen, vocab_size, embed_dim)
        self.block = TransformerBlock(embed_dim, num_heads, ff_dim, rate=0.1)
        self.hidden = nn.Linear(embed_dim, 20)
        self.out = nn.Linear(20, num_classes)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.embedding(x))
        x = self.dropout(x.mean(dim=1))
        x = self.dropout(torch.relu(self.hidden(x)))
        return self.out(x)
