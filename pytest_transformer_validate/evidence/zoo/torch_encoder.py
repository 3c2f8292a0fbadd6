"""Encoder on nn.TransformerEncoder with a key padding mask and a token head."""

import torch
from torch import Tensor, nn


class TokenEmbedding(nn.Module):
    def __init__(self, vocab_size: int, d_model: int, max_len: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocab_size, d_model)
        self.position = nn.Embedding(max_len, d_model)
        self.norm = nn.LayerNorm(d_model)

    def forward(self, input_ids: Tensor) -> Tensor:
        steps = torch.arange(input_ids.size(1), device=input_ids.device)
        return self.norm(self.token(input_ids) + self.position(steps))


class TransformerEncoderModel(nn.Module):
    def __init__(
        self,
        vocab_size: int = 149,
        d_model: int = 32,
        nhead: int = 4,
        num_layers: int = 2,
        dim_feedforward: int = 64,
        max_len: int = 40,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.embedding = TokenEmbedding(vocab_size, d_model, max_len)
        layer = nn.TransformerEncoderLayer(
            d_model, nhead, dim_feedforward, dropout, activation="gelu", batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)
        self.mlm_head = nn.Linear(d_model, vocab_size)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        padding = None if attention_mask is None else attention_mask == 0
        hidden = self.encoder(self.embedding(input_ids), src_key_padding_mask=padding)
        return self.mlm_head(hidden)
