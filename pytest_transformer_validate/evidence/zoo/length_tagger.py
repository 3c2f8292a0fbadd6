"""Tagger that is told how many tokens of each text are real; attention runs over (B x heads)."""

import math

import torch
from torch import Tensor, nn


def masked_softmax(scores: Tensor, valid_lens: Tensor | None) -> Tensor:
    """Softmax over the last axis; scores (N, T, T), valid_lens (N,)."""
    if valid_lens is None:
        return torch.softmax(scores, dim=-1)
    steps = torch.arange(scores.size(-1), device=scores.device)
    hidden = steps[None, :] >= valid_lens[:, None]
    return torch.softmax(scores.masked_fill(hidden[:, None, :], -1e6), dim=-1)


class MultiHeadAttention(nn.Module):
    def __init__(self, num_hiddens: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = nn.Dropout(dropout)
        self.W_q = nn.Linear(num_hiddens, num_hiddens, bias=False)
        self.W_k = nn.Linear(num_hiddens, num_hiddens, bias=False)
        self.W_v = nn.Linear(num_hiddens, num_hiddens, bias=False)
        self.W_o = nn.Linear(num_hiddens, num_hiddens, bias=False)

    def split(self, x: Tensor) -> Tensor:
        x = x.reshape(x.size(0), x.size(1), self.num_heads, -1).permute(0, 2, 1, 3)
        return x.reshape(-1, x.size(2), x.size(3))

    def forward(self, x: Tensor, valid_lens: Tensor | None) -> Tensor:
        queries, keys, values = self.split(self.W_q(x)), self.split(self.W_k(x)), self.W_v(x)
        if valid_lens is not None:
            valid_lens = torch.repeat_interleave(valid_lens, self.num_heads, dim=0)
        scores = torch.bmm(queries, keys.transpose(1, 2)) / math.sqrt(queries.size(-1))
        y = torch.bmm(self.dropout(masked_softmax(scores, valid_lens)), self.split(values))
        y = y.reshape(-1, self.num_heads, y.size(1), y.size(2)).permute(0, 2, 1, 3)
        return self.W_o(y.reshape(x.shape))


class EncoderBlock(nn.Module):
    def __init__(self, num_hiddens: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(num_hiddens, num_heads, dropout)
        self.norm1 = nn.LayerNorm(num_hiddens)
        self.dense1 = nn.Linear(num_hiddens, 2 * num_hiddens)
        self.dense2 = nn.Linear(2 * num_hiddens, num_hiddens)
        self.norm2 = nn.LayerNorm(num_hiddens)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, valid_lens: Tensor | None) -> Tensor:
        x = self.norm1(x + self.dropout(self.attention(x, valid_lens)))
        return self.norm2(x + self.dropout(self.dense2(torch.relu(self.dense1(x)))))


class LengthTagger(nn.Module):
    def __init__(
        self,
        vocab_size: int,
        num_tags: int,
        num_hiddens: int = 32,
        num_heads: int = 4,
        num_blks: int = 2,
        max_len: int = 40,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, num_hiddens)
        self.pos_embedding = nn.Parameter(torch.randn(1, max_len, num_hiddens) * 0.02)
        self.blks = nn.ModuleList(
            [EncoderBlock(num_hiddens, num_heads, dropout) for _ in range(num_blks)]
        )
        self.tagger = nn.Linear(num_hiddens, num_tags)

    def forward(self, tokens: Tensor, valid_lens: Tensor | None = None) -> Tensor:
        x = self.embedding(tokens) + self.pos_embedding[:, : tokens.size(1)]
        for blk in self.blks:
            x = blk(x, valid_lens)
        return self.tagger(x)
