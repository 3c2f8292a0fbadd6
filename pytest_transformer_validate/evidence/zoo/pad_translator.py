"""Translation model on nn.Transformer's layers that makes its masks from the padding ids."""

import torch
from torch import Tensor, nn


class Translator(nn.Module):
    def __init__(
        self,
        src_vocab_size: int,
        tgt_vocab_size: int,
        d_model: int = 32,
        nhead: int = 4,
        num_layers: int = 2,
        max_len: int = 48,
        src_pad_idx: int = 1,
        trg_pad_idx: int = 1,
    ) -> None:
        super().__init__()
        self.src_pad_idx, self.trg_pad_idx = src_pad_idx, trg_pad_idx
        self.src_tokens = nn.Embedding(src_vocab_size, d_model)
        self.trg_tokens = nn.Embedding(tgt_vocab_size, d_model)
        self.src_positions = nn.Embedding(max_len, d_model)
        self.trg_positions = nn.Embedding(max_len, d_model)
        self.encoder = nn.ModuleList(
            [
                nn.TransformerEncoderLayer(d_model, nhead, 2 * d_model, batch_first=True)
                for _ in range(num_layers)
            ]
        )
        self.decoder = nn.ModuleList(
            [
                nn.TransformerDecoderLayer(d_model, nhead, 2 * d_model, batch_first=True)
                for _ in range(num_layers)
            ]
        )
        self.fc_out = nn.Linear(d_model, tgt_vocab_size)

    def place(self, ids: Tensor, tokens: nn.Embedding, positions: nn.Embedding) -> Tensor:
        return tokens(ids) + positions(torch.arange(ids.size(1), device=ids.device))

    def forward(self, src: Tensor, trg: Tensor) -> Tensor:
        src_padding = src == self.src_pad_idx
        trg_padding = trg == self.trg_pad_idx
        length = trg.size(1)
        later = torch.ones(length, length, dtype=torch.bool, device=trg.device).triu(1)
        memory = self.place(src, self.src_tokens, self.src_positions)
        for layer in self.encoder:
            memory = layer(memory, src_key_padding_mask=src_padding)
        x = self.place(trg, self.trg_tokens, self.trg_positions)
        for layer in self.decoder:
            x = layer(
                x,
                memory,
                tgt_mask=later,
                tgt_key_padding_mask=trg_padding,
                memory_key_padding_mask=src_padding,
            )
        return self.fc_out(x)
