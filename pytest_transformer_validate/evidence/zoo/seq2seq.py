"""Encoder-decoder translation model with cross attention; computes its loss from labels."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MultiHeadAttention(nn.Module):
    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.w_q = nn.Linear(d_model, d_model, bias=False)
        self.w_k = nn.Linear(d_model, d_model, bias=False)
        self.w_v = nn.Linear(d_model, d_model, bias=False)
        self.w_o = nn.Linear(d_model, d_model, bias=False)

    def heads(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), x.size(1), self.n_heads, -1).transpose(1, 2)

    def forward(self, query: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = self.heads(self.w_q(query)), self.heads(self.w_k(memory)), self.w_v(memory)
        scores = q @ k.transpose(2, 3) / math.sqrt(q.size(-1))
        if mask is not None:
            scores = scores.masked_fill(mask == 0, -1e9)
        out = scores.softmax(dim=-1) @ self.heads(v)
        return self.w_o(out.transpose(1, 2).flatten(2))


class PositionwiseFFN(nn.Module):
    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.w_1 = nn.Linear(d_model, d_ff)
        self.w_2 = nn.Linear(d_ff, d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.w_2(F.relu(self.w_1(x)))


class EncoderLayer(nn.Module):
    def __init__(self, d_model: int, n_heads: int, d_ff: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = MultiHeadAttention(d_model, n_heads)
        self.ffn = PositionwiseFFN(d_model, d_ff)
        self.norm1 = nn.LayerNorm(d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = self.norm1(x + self.drop(self.self_attn(x, x, mask)))
        return self.norm2(x + self.drop(self.ffn(x)))


class DecoderLayer(nn.Module):
    def __init__(self, d_model: int, n_heads: int, d_ff: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = MultiHeadAttention(d_model, n_heads)
        self.cross_attn = MultiHeadAttention(d_model, n_heads)
        self.ffn = PositionwiseFFN(d_model, d_ff)
        self.norm1 = nn.LayerNorm(d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.norm3 = nn.LayerNorm(d_model)
        self.drop = nn.Dropout(dropout)

    def forward(
        self, y: Tensor, memory: Tensor, causal: Tensor, memory_mask: Tensor | None
    ) -> Tensor:
        y = self.norm1(y + self.drop(self.self_attn(y, y, causal)))
        y = self.norm2(y + self.drop(self.cross_attn(y, memory, memory_mask)))
        return self.norm3(y + self.drop(self.ffn(y)))


class Seq2SeqTransformer(nn.Module):
    def __init__(
        self,
        vocab_size: int,
        d_model: int = 32,
        n_heads: int = 4,
        n_layers: int = 2,
        d_ff: int = 64,
        max_length: int = 40,
        dropout: float = 0.1,
        pad_token_id: int = 0,
        decoder_start_token_id: int = 1,
    ) -> None:
        super().__init__()
        self.pad = pad_token_id
        self.start = decoder_start_token_id
        self.shared = nn.Embedding(vocab_size, d_model)
        self.encoder_positions = nn.Embedding(max_length, d_model)
        self.decoder_positions = nn.Embedding(max_length, d_model)
        self.encoder_layers = nn.ModuleList(
            [EncoderLayer(d_model, n_heads, d_ff, dropout) for _ in range(n_layers)]
        )
        self.decoder_layers = nn.ModuleList(
            [DecoderLayer(d_model, n_heads, d_ff, dropout) for _ in range(n_layers)]
        )
        self.generator = nn.Linear(d_model, vocab_size)

    def encode(self, input_ids: Tensor, mask: Tensor | None) -> Tensor:
        steps = torch.arange(input_ids.size(1), device=input_ids.device)
        x = self.shared(input_ids) + self.encoder_positions(steps)
        for layer in self.encoder_layers:
            x = layer(x, mask)
        return x

    def decode(self, decoder_input_ids: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        length = decoder_input_ids.size(1)
        steps = torch.arange(length, device=decoder_input_ids.device)
        y = self.shared(decoder_input_ids) + self.decoder_positions(steps)
        causal = torch.ones(length, length, device=y.device).tril()[None, None]
        for layer in self.decoder_layers:
            y = layer(y, memory, causal, mask)
        return self.generator(y)

    def shift_right(self, labels: Tensor) -> Tensor:
        shifted = labels.roll(1, dims=1).masked_fill(labels.roll(1, dims=1) == -100, self.pad)
        shifted[:, 0] = self.start
        return shifted

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        if decoder_input_ids is None:
            if labels is None:
                raise ValueError("give decoder_input_ids or labels")
            decoder_input_ids = self.shift_right(labels)
        mask = None if attention_mask is None else attention_mask[:, None, None, :]
        memory = self.encode(input_ids, mask)
        logits = self.decode(decoder_input_ids, memory, mask)
        if labels is None:
            return {"logits": logits}
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        return {"loss": loss, "logits": logits}
