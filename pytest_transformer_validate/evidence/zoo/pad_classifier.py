"""Classifier that finds padding by its id and reads the last real token."""

import torch
from torch import Tensor, nn


class PaddedEncoderLayer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.wide = nn.Linear(width, 2 * width)
        self.narrow = nn.Linear(2 * width, width)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + self.attention(h, h, h, key_padding_mask=padding, need_weights=False)[0]
        return x + self.narrow(torch.relu(self.wide(self.norm2(x))))


class LastToken(nn.Module):
    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        last = (~padding).sum(dim=1) - 1
        return x[torch.arange(x.size(0), device=x.device), last]


class LastTokenClassifier(nn.Module):
    def __init__(
        self,
        vocab_size: int,
        num_classes: int,
        width: int = 32,
        heads: int = 4,
        layers: int = 2,
        max_len: int = 40,
        pad_id: int = 0,
    ) -> None:
        super().__init__()
        self.pad_id = pad_id
        self.embedding = nn.Embedding(vocab_size, width, padding_idx=pad_id)
        self.positions = nn.Embedding(max_len, width)
        self.layers = nn.ModuleList([PaddedEncoderLayer(width, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.last = LastToken()
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        padding = tokens == self.pad_id
        x = self.embedding(tokens)
        x = x + self.positions(torch.arange(tokens.size(1), device=tokens.device))
        for layer in self.layers:
            x = layer(x, padding)
        return self.classifier(self.last(self.norm(x), padding))
