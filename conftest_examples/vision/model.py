"""A small vision transformer: patches, a class token, learned positions."""

import torch
from torch import Tensor, nn


class Vision(nn.Module):
    def __init__(
        self,
        image_size: int = 32,
        patch_size: int = 8,
        num_channels: int = 3,
        num_classes: int = 10,
        d_model: int = 48,
        n_heads: int = 4,
        n_layers: int = 2,
    ) -> None:
        super().__init__()
        patches = (image_size // patch_size) ** 2
        self.patches = nn.Conv2d(num_channels, d_model, patch_size, stride=patch_size)
        self.first = nn.Parameter(torch.randn(1, 1, d_model) * 0.02)
        self.positions = nn.Parameter(torch.randn(1, patches + 1, d_model) * 0.02)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                d_model, n_heads, 2 * d_model, batch_first=True, norm_first=True
            )
            for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, num_classes)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.patches(pixel_values).flatten(2).transpose(1, 2)  # (B, patches, d_model)
        x = torch.cat([self.first.expand(len(x), -1, -1), x], dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))
