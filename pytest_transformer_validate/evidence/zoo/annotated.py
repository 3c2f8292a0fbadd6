"""The Annotated Transformer: the caller makes both masks, True where attention may look."""

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def clones(module: nn.Module, number: int) -> nn.ModuleList:
    return nn.ModuleList([copy.deepcopy(module) for _ in range(number)])


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    scores = torch.matmul(query, key.transpose(-2, -1)) / math.sqrt(query.size(-1))
    if mask is not None:
        scores = scores.masked_fill(mask == 0, -1e9)
    return torch.matmul(scores.softmax(dim=-1), value)


class MultiHeadedAttention(nn.Module):
    def __init__(self, h: int, d_model: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.d_k = d_model // h
        self.h = h
        self.linears = clones(nn.Linear(d_model, d_model), 4)
        self.dropout = nn.Dropout(p=dropout)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        if mask is not None:
            mask = mask.unsqueeze(1)  # the same for all heads
        rows = query.size(0)
        query, key, value = (
            linear(x).view(rows, -1, self.h, self.d_k).transpose(1, 2)
            for linear, x in zip(self.linears, (query, key, value), strict=False)
        )
        x = attention(query, key, value, mask)
        x = x.transpose(1, 2).contiguous().view(rows, -1, self.h * self.d_k)
        return self.linears[-1](self.dropout(x))


class PositionwiseFeedForward(nn.Module):
    def __init__(self, d_model: int, d_ff: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.w_1 = nn.Linear(d_model, d_ff)
        self.w_2 = nn.Linear(d_ff, d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.w_2(self.dropout(self.w_1(x).relu()))


class EncoderLayer(nn.Module):
    def __init__(self, d_model: int, self_attn: nn.Module, feed_forward: nn.Module) -> None:
        super().__init__()
        self.self_attn = self_attn
        self.feed_forward = feed_forward
        self.norms = clones(nn.LayerNorm(d_model), 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.norms[0](x)
        x = x + self.self_attn(y, y, y, mask)
        return x + self.feed_forward(self.norms[1](x))


class DecoderLayer(nn.Module):
    def __init__(
        self, d_model: int, self_attn: nn.Module, src_attn: nn.Module, feed_forward: nn.Module
    ) -> None:
        super().__init__()
        self.self_attn = self_attn
        self.src_attn = src_attn
        self.feed_forward = feed_forward
        self.norms = clones(nn.LayerNorm(d_model), 3)

    def forward(self, x: Tensor, memory: Tensor, src_mask: Tensor, tgt_mask: Tensor) -> Tensor:
        y = self.norms[0](x)
        x = x + self.self_attn(y, y, y, tgt_mask)
        x = x + self.src_attn(self.norms[1](x), memory, memory, src_mask)
        return x + self.feed_forward(self.norms[2](x))


class Embeddings(nn.Module):
    pe: Tensor

    def __init__(self, d_model: int, vocab: int, max_len: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.lut = nn.Embedding(vocab, d_model)
        self.d_model = d_model
        self.dropout = nn.Dropout(dropout)
        position = torch.arange(max_len).unsqueeze(1)
        rate = torch.exp(torch.arange(0, d_model, 2) * -(math.log(10000.0) / d_model))
        pe = torch.zeros(max_len, d_model)
        pe[:, 0::2], pe[:, 1::2] = torch.sin(position * rate), torch.cos(position * rate)
        self.register_buffer("pe", pe.unsqueeze(0))

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.lut(x) * math.sqrt(self.d_model) + self.pe[:, : x.size(1)])


class EncoderDecoder(nn.Module):
    def __init__(
        self, src_vocab: int, tgt_vocab: int, N: int, d_model: int, d_ff: int, h: int, max_len: int
    ) -> None:
        super().__init__()
        attn = MultiHeadedAttention(h, d_model)
        ff = PositionwiseFeedForward(d_model, d_ff)
        self.src_embed = Embeddings(d_model, src_vocab, max_len)
        self.tgt_embed = Embeddings(d_model, tgt_vocab, max_len)
        encoder = EncoderLayer(d_model, copy.deepcopy(attn), copy.deepcopy(ff))
        decoder = DecoderLayer(d_model, copy.deepcopy(attn), copy.deepcopy(attn), ff)
        self.encoder = clones(encoder, N)
        self.decoder = clones(decoder, N)
        self.encoder_norm = nn.LayerNorm(d_model)
        self.decoder_norm = nn.LayerNorm(d_model)
        self.generator = nn.Linear(d_model, tgt_vocab)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.xavier_uniform_(p)

    def encode(self, src: Tensor, src_mask: Tensor) -> Tensor:
        x = self.src_embed(src)
        for layer in self.encoder:
            x = layer(x, src_mask)
        return self.encoder_norm(x)

    def decode(self, memory: Tensor, src_mask: Tensor, tgt: Tensor, tgt_mask: Tensor) -> Tensor:
        x = self.tgt_embed(tgt)
        for layer in self.decoder:
            x = layer(x, memory, src_mask, tgt_mask)
        return self.decoder_norm(x)

    def forward(self, src: Tensor, tgt: Tensor, src_mask: Tensor, tgt_mask: Tensor) -> Tensor:
        memory = self.encode(src, src_mask)
        return F.log_softmax(self.generator(self.decode(memory, src_mask, tgt, tgt_mask)), dim=-1)
