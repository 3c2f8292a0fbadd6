"""Classifier that asks for the lengths of its texts, and takes the mean of what is real."""

import torch
from torch import Tensor, nn


def padding_of(lengths: Tensor, size: int) -> Tensor:
    """(B, T), True where padding is."""
    return torch.arange(size, device=lengths.device)[None, :] >= lengths[:, None]


class MeanOfTokens(nn.Module):
    def forward(self, x: Tensor, padding: Tensor, lengths: Tensor) -> Tensor:
        total = x.masked_fill(padding.unsqueeze(-1), 0.0).sum(dim=1)
        return total / lengths.clamp(min=1).unsqueeze(-1)


class LengthClassifier(nn.Module):
    def __init__(
        self,
        vocab_size: int,
        num_classes: int,
        d_model: int = 32,
        nhead: int = 4,
        num_layers: int = 2,
        max_len: int = 40,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.position = nn.Embedding(max_len, d_model)
        layers = [
            nn.TransformerEncoderLayer(
                d_model, nhead, 2 * d_model, dropout, batch_first=True, norm_first=True
            )
            for _ in range(num_layers)
        ]
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(d_model)
        self.pool = MeanOfTokens()
        self.classifier = nn.Linear(d_model, num_classes)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        padding = padding_of(lengths, tokens.size(1))
        steps = torch.arange(tokens.size(1), device=tokens.device)
        x = self.embedding(tokens) + self.position(steps)
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=padding)
        return self.classifier(self.pool(self.norm(x), padding, lengths))
