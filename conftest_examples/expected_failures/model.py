"""A prefix language model: the first four tokens see each other, as T5 and PaLM's variants do."""

import torch
from torch import Tensor, nn

PREFIX = 4


class Decoder(nn.Module):
    def __init__(
        self,
        vocab_size: int = 64,
        max_seq_len: int = 32,
        d_model: int = 32,
        n_heads: int = 4,
        n_layers: int = 2,
        norm_first: bool = True,
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, d_model)
        self.positions = nn.Embedding(max_seq_len, d_model)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                d_model, n_heads, 4 * d_model, batch_first=True, norm_first=norm_first
            )
            for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, vocab_size, bias=False)
        for table in (self.tokens, self.positions, self.head):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, input_ids: Tensor) -> Tensor:
        length = input_ids.shape[1]
        ahead = torch.ones(length, length, dtype=torch.bool, device=input_ids.device).triu(1)
        ahead[:PREFIX, :PREFIX] = False
        x = self.tokens(input_ids) + self.positions.weight[:length]
        for block in self.blocks:
            x = block(x, src_mask=ahead)
        return self.head(self.norm(x))
