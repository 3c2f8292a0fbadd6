"""Bidirectional encoder with a masked-language-model head, post-norm as in BERT."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BertEmbeddings(nn.Module):
    def __init__(
        self, vocab_size: int, hidden_size: int, max_positions: int, type_vocab_size: int, pad: int
    ) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocab_size, hidden_size, padding_idx=pad)
        self.position_embeddings = nn.Embedding(max_positions, hidden_size)
        self.token_type_embeddings = nn.Embedding(type_vocab_size, hidden_size)
        self.layer_norm = nn.LayerNorm(hidden_size)
        self.dropout = nn.Dropout(0.1)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        positions = torch.arange(input_ids.size(1), device=input_ids.device)
        x = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)
        x = x + self.position_embeddings(positions)
        return self.dropout(self.layer_norm(x))


class BertSelfAttention(nn.Module):
    def __init__(self, hidden_size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size)
        self.value = nn.Linear(hidden_size, hidden_size)
        self.dropout = nn.Dropout(0.1)

    def transpose_for_scores(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        return x.view(batch, length, self.heads, width // self.heads).permute(0, 2, 1, 3)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        query = self.transpose_for_scores(self.query(hidden))
        key = self.transpose_for_scores(self.key(hidden))
        value = self.transpose_for_scores(self.value(hidden))
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.size(-1))
        scores = scores + mask
        probs = self.dropout(torch.softmax(scores, dim=-1))
        context = probs @ value
        return context.permute(0, 2, 1, 3).flatten(2)


class BertLayer(nn.Module):
    def __init__(self, hidden_size: int, heads: int, intermediate_size: int) -> None:
        super().__init__()
        self.attention = BertSelfAttention(hidden_size, heads)
        self.attention_output = nn.Linear(hidden_size, hidden_size)
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.intermediate = nn.Linear(hidden_size, intermediate_size)
        self.output = nn.Linear(intermediate_size, hidden_size)
        self.output_norm = nn.LayerNorm(hidden_size)
        self.dropout = nn.Dropout(0.1)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        attended = self.attention_output(self.attention(hidden, mask))
        hidden = self.attention_norm(hidden + self.dropout(attended))
        inner = self.output(F.gelu(self.intermediate(hidden)))
        return self.output_norm(hidden + self.dropout(inner))


class BertForMaskedLM(nn.Module):
    def __init__(
        self,
        vocab_size: int,
        hidden_size: int = 48,
        num_hidden_layers: int = 2,
        num_attention_heads: int = 4,
        intermediate_size: int = 96,
        max_position_embeddings: int = 40,
        type_vocab_size: int = 2,
        pad_token_id: int = 0,
    ) -> None:
        super().__init__()
        self.embeddings = BertEmbeddings(
            vocab_size, hidden_size, max_position_embeddings, type_vocab_size, pad_token_id
        )
        self.encoder = nn.ModuleList(
            [
                BertLayer(hidden_size, num_attention_heads, intermediate_size)
                for _ in range(num_hidden_layers)
            ]
        )
        self.transform = nn.Linear(hidden_size, hidden_size)
        self.transform_norm = nn.LayerNorm(hidden_size)
        self.decoder = nn.Linear(hidden_size, vocab_size)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        hidden = self.embeddings(input_ids, token_type_ids)
        mask = (1.0 - attention_mask[:, None, None, :].to(hidden.dtype)) * -1e9
        for layer in self.encoder:
            hidden = layer(hidden, mask)
        hidden = self.transform_norm(F.gelu(self.transform(hidden)))
        return self.decoder(hidden)
