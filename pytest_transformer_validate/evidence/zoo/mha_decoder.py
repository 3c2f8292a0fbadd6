"""Decoder-only language model on nn.MultiheadAttention, sinusoidal positions, pre-norm."""

import math

import torch
from torch import Tensor, nn


class SinusoidalPositions(nn.Module):
    table: Tensor

    def __init__(self, d_model: int, max_seq_len: int) -> None:
        super().__init__()
        position = torch.arange(max_seq_len).unsqueeze(1)
        rate = torch.exp(torch.arange(0, d_model, 2) * (-math.log(10000.0) / d_model))
        table = torch.zeros(max_seq_len, d_model)
        table[:, 0::2] = torch.sin(position * rate)
        table[:, 1::2] = torch.cos(position * rate)
        self.register_buffer("table", table.unsqueeze(0))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table[:, : x.size(1)]


class SelfAttention(nn.Module):
    def __init__(self, d_model: int, nhead: int, dropout: float) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(d_model, nhead, dropout=dropout, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        out, _ = self.mha(x, x, x, attn_mask=mask, need_weights=False)
        return out


class FeedForward(nn.Module):
    def __init__(self, d_model: int, d_ff: int, dropout: float) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, d_ff)
        self.down = nn.Linear(d_ff, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.dropout(torch.relu(self.up(x))))


class DecoderLayer(nn.Module):
    def __init__(self, d_model: int, nhead: int, d_ff: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attn = SelfAttention(d_model, nhead, dropout)
        self.norm2 = nn.LayerNorm(d_model)
        self.ffn = FeedForward(d_model, d_ff, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.dropout(self.attn(self.norm1(x), mask))
        return x + self.dropout(self.ffn(self.norm2(x)))


class TransformerDecoderLM(nn.Module):
    def __init__(
        self,
        vocab_size: int,
        d_model: int = 32,
        nhead: int = 4,
        num_layers: int = 2,
        d_ff: int = 64,
        max_seq_len: int = 48,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.d_model = d_model
        self.embed = nn.Embedding(vocab_size, d_model)
        self.positions = SinusoidalPositions(d_model, max_seq_len)
        self.layers = nn.ModuleList(
            [DecoderLayer(d_model, nhead, d_ff, dropout) for _ in range(num_layers)]
        )
        self.norm = nn.LayerNorm(d_model)
        self.lm_head = nn.Linear(d_model, vocab_size)

    def causal_mask(self, length: int, device: torch.device) -> Tensor:
        ones = torch.ones(length, length, dtype=torch.bool, device=device)
        return torch.triu(ones, diagonal=1)

    def forward(self, input_ids: Tensor) -> Tensor:
        mask = self.causal_mask(input_ids.size(1), input_ids.device)
        x = self.embed(input_ids) * math.sqrt(self.d_model)
        x = self.positions(x)
        for layer in self.layers:
            x = layer(x, mask)
        return self.lm_head(self.norm(x))
